"""Sources: what is no weight file is said in one line that names it."""

import io

import pytest
import torch

from deepcomp.errors import InputError
from deepcomp.model.sources import from_path, from_tensors


def saved(legacy=False):
    out = io.BytesIO()
    torch.save({"w": torch.ones(40)}, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


DAMAGED = {
    "nothing": b"",
    "text": b"hello world\n",
    "a recipe": b"[[step]]\ndo = 'prune'\n",
    "zeros": bytes(1000),
    "half a zip": saved()[:200],
    **{f"{length} bytes of the old format": saved(legacy=True)[:length] for length in (28, 49, 154, 343)},
    "a flipped byte": saved(legacy=True).replace(b"protocol_version", b"protocol\x80version"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_state_dict_is_said_in_one_line(content, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt: [a-z]+.*[a-z]{4}") as caught:
        from_path(path)
    assert "\n" not in str(caught.value)
    assert not str(caught.value).rpartition(": ")[2].strip("'").isdigit()


def test_names_that_are_no_text_are_refused():
    with pytest.raises(InputError, match="a text name"):
        from_tensors({"w\ud800": torch.ones(3)})
