"""Sizes: what people write is understood, or refused in one line."""

import pytest

from deepcomp.errors import UsageError
from deepcomp.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("300kB", 300_000), ("300 kb", 300_000), ("1.5MiB", 3 << 19), ("4096", 4096), ("100B", 100), ("2GiB", 2 << 30)],
)
def test_sizes_with_and_without_units(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "kB", "3 apples", "-3", "0", "0.5", "nan", "inf", "1e30", "3bB", "300kBB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"^size "):
        parse_size(text)
