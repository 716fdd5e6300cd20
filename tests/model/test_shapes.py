"""Example inputs from text: what is written is what a graph can hold, or is refused in one line."""

import pytest
import torch

from deepcomp.errors import UsageError
from deepcomp.model import ops
from deepcomp.model.shapes import parse_inputs


def test_shapes_types_and_names():
    assert parse_inputs([]) is None
    (image,) = parse_inputs(["1x3x8x8"])
    assert (image.shape, image.dtype) == ((1, 3, 8, 8), torch.float32)
    assert torch.equal(image, parse_inputs(["1x3x8x8"])[0])
    both = parse_inputs(["x=1x6:float16", "word=1:int64"])
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in both.items()} == {
        "x": ((1, 6), torch.float16),
        "word": ((1,), torch.int64),
    }


@pytest.mark.parametrize("dtype", ops.DTYPES.values(), ids=str)
def test_every_type_that_a_graph_can_hold(dtype):
    assert parse_inputs([f"2x3:{str(dtype).removeprefix('torch.')}"])[0].dtype == dtype


@pytest.mark.parametrize(
    "specs",
    [["3x"], [""], ["0x3"], ["-1"], ["2x2:int99"], ["2:qint8"], ["2:complex64"], ["2:nn"], ["=2"], ["a b=2"],
     ["a=2", "2"], ["2", "a=2"], ["a=2", "a=3"], ["100000x100000x1000000"], ["9" * 5000]],
)  # fmt: skip
def test_everything_else_is_refused_in_one_line(specs):
    with pytest.raises(UsageError, match=r"^--input") as caught:
        parse_inputs(specs)
    assert "\n" not in str(caught.value)
