"""The page of an inspection: every part of every form has a colour, and every text is escaped."""

import torch

import deepcomp
from deepcomp.report.html import page
from deepcomp.weights import FORMS


def inspection(parts):
    row = {"name": "w", "shape": [2, 3], "dtype": "float32", "form": "raw", "density": 1.0, "bits": 3.0, "bytes": 9}
    frame = {"header": 6, "index": 20, "checksums": 4, "trailer": 40}
    return {
        "file": "x.dcz", "bytes": 100, "format": "1.0", "metadata": {}, "tensors": [{**row, "parts": parts}],
        "frame": frame, "dense_bytes": 24, "ratio": 0.24, "runnable": False,
    }  # fmt: skip


def test_every_part_that_a_form_has_is_drawn_in_a_colour_of_its_own():
    names = dict.fromkeys(name for form in FORMS.values() for name in (*form.symbols, *form.tables))
    drawn = page(inspection(dict.fromkeys(names, 1)))
    colours = {name: drawn.split(f"</i>{name}<")[0].rsplit("background:", 1)[1].split('"')[0] for name in names}
    assert len(set(colours.values())) == len(names), colours


def test_a_part_of_a_later_version_is_drawn_too():
    assert "</i>&lt;new&gt;<" in page(inspection({"<new>": 3, "plane": 2, "planet": 1, "plane99": 1}))


def test_a_file_with_shifted_rows_has_a_page(tmp_path, randn):
    weight = randn(40, 200) * 2.0 ** torch.linspace(-6, 6, 40)[:, None]
    deepcomp.compress({"w": weight}, tmp_path / "x.dcz")
    found = deepcomp.inspect(tmp_path / "x.dcz")
    assert found["tensors"][0]["form"] == "shifted"
    assert "shift: " in page(found)
