import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.weights.scales import pack_scales, unpack_scales


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=8))
def test_scales_come_back_to_the_bit(scales):
    scale = np.array(scales, np.float32)
    assert np.array_equal(unpack_scales(pack_scales(scale)), scale)


@pytest.mark.parametrize(
    ("scales", "bytes_each"),
    [([0.25, 2.0], 1), ([0.3125, 1.5], 1), ([0.3], 4), ([-0.5, 0.0], 2), ([1.0009765625, 1024.0], 2), ([1.5, 1e5], 4)],
)
def test_scales_take_the_narrowest_type_that_holds_them(scales, bytes_each):
    scale = np.array(scales, np.float32)
    assert pack_scales(scale).itemsize == bytes_each
    assert np.array_equal(unpack_scales(pack_scales(scale)), scale)
