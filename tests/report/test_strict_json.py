"""JSON: what is printed is what every reader of JSON takes."""

import json
import math

import pytest

from deepcomp.report.strict_json import dumps


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_null(bad):
    value = {"a": [bad, 1.5, (bad, {"b": bad})], "c": "NaN", "d": None, "e": 3}
    found = json.loads(dumps(value), parse_constant=pytest.fail)
    assert found == {"a": [None, 1.5, [None, {"b": None}]], "c": "NaN", "d": None, "e": 3}
