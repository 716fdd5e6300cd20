"""Drawings: whatever was measured is drawn, and nothing is replaced but a drawing."""

import math

import pytest

from deepcomp.errors import UsageError
from deepcomp.report.plot import curve, save_sensitivity


@pytest.mark.parametrize("qualities", [(90.0, 80.0), (90.0, None, math.nan, -math.inf), (None,), ()])
def test_runs_that_could_not_be_measured_are_left_out(qualities):
    points = [
        {"setting": "prune.density", "value": place, "bytes": 10 - place, "metric": "accuracy", "quality": quality}
        for place, quality in enumerate(qualities)
    ]
    assert curve("x", points).startswith(b"<?xml")


def test_a_scan_is_drawn_into_an_svg_file_alone(tmp_path):
    scan, chosen = {"w": [(1.0, 90.0), (0.5, 80.0)]}, {"w": 0.5}
    for _ in range(2):
        save_sensitivity(tmp_path / "scan.svg", scan, chosen)
    (tmp_path / "weights.pt").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"weights\.pt: .* \.svg expected"):
        save_sensitivity(tmp_path / "weights.pt", scan, chosen)
    assert (tmp_path / "weights.pt").read_bytes() == b"precious"
