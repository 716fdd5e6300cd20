"""Makes golden files of the current format version: `python tests/golden/make.py FOLDER [NAME]...`, by default all.

A released version's files are never made again: they stay as they are, and must open for ever.
Beside each `.dcz` stands a `.json`: dtype, shape and SHA-256 of the bits of every tensor, and of a
runnable network an input (as a range of numbers) with the outputs to expect.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from deepcomp import loader
from deepcomp.container import MAJOR, MINOR, Writer
from deepcomp.model.capture import capture
from deepcomp.network import CONTEXT, Network
from deepcomp.serializer import write
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.share import Share
from deepcomp.weights import Codebook, Grid, Mask, Raw, Scaled
from deepcomp.weights.dtypes import DTYPES, from_words, to_words

RANDOM = torch.Generator().manual_seed(1)


def normal(*shape):
    return torch.randn(*shape, generator=RANDOM)


def bits(kind, *shape):
    """Random bits of an element type (of bool: 0 and 1)."""
    count = torch.Size(shape).numel() * kind.words
    raw = torch.randint(0, 2 if kind.name == "bool" else 256, (count * kind.word_bytes,), generator=RANDOM)
    return from_words(raw.to(torch.uint8).numpy().view(kind.word), kind.torch, shape)


def every_form():
    tensors, forms = {}, {}
    for kind in DTYPES.values():
        tensors[f"dtype.{kind.name}"] = bits(kind, 5, 3)
        tensors[f"zeros.{kind.name}"] = from_words(to_words(bits(kind, 40, 3)) * 0, kind.torch, (40, 3))
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64):
        tensors[f"planes.{kind}"] = (normal(30, 40) + 3).to(kind)
    tensors["shape.scalar"] = torch.tensor(2.5)
    tensors["shape.empty"] = torch.zeros(0, 4)
    tensors["shape.five"] = normal(2, 3, 2, 3, 2)
    tensors["special"] = torch.tensor([float("inf"), -0.0, float("nan"), 1e-42, -float("inf")] * 4)
    tensors["sparse.exact"] = normal(50, 60) * (normal(50, 60) > 1.5)
    tensors["few.values"] = normal(60, 70).round(decimals=1)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        tensors[f"shifted.{kind}"] = (normal(20, 60) * 2.0 ** torch.linspace(-4, 4, 20)[:, None]).to(kind)
    tensors["rows"] = normal(4, 9).repeat(12, 1)
    tensors["counting"] = torch.arange(-300, 3000)
    tensors["skewed"] = (normal(200, 100) > 2.2).float() + 2 * (normal(200, 100) > 2.5).float() + 1
    tensors["equal"] = tensors["special"].clone()
    tensors["tied"] = tensors["rows"]
    weight = normal(48, 10, 3)
    tensors["stored.float16"], forms["stored.float16"] = weight, Raw(weight, torch.float16)
    tensors["stored.bfloat16"], forms["stored.bfloat16"] = weight[:2, :2], Raw(weight[:2, :2], torch.bfloat16)
    books = {"codebook.5": 5, "codebook.32": 32, "codebook.700": 700}
    for name, k in books.items():
        tensors[name], forms[name] = weight, Codebook.cluster(weight, k)
    half = weight.half()
    tensors["codebook.half"], forms["codebook.half"] = half, Codebook.cluster(half, 9)
    grids = {
        "grid.tensor": {"bits": 8, "axis": None},
        "grid.channel": {"bits": 4},
        "grid.channel.1": {"bits": 5, "axis": 1, "symmetric": False},
        "grid.group": {"bits": 3, "group": 7},
        "grid.block": {"bits": 6, "size": 7, "symmetric": False},
        "grid.block.axis2": {"bits": 4, "axis": 2, "size": 100},
        "grid.power": {"bits": 4, "power_of_two": True},
        "grid.16": {"bits": 16},
        "grid.1": {"bits": 1, "symmetric": False},
    }
    for name, setting in grids.items():
        tensors[name], forms[name] = weight, Grid.fit(weight, **setting)
        mask = Mask.nonzero(weight, weight.abs() > 1)
        mask.inner = Grid.fit(mask.inner.dense(), at=mask.positions, shape=tuple(weight.shape), **setting)
        tensors[f"mask.{name}"], forms[f"mask.{name}"] = weight, mask
    wide = normal(300, 300)
    for name, level, k in (("mask.raw", 1.0, 0), ("mask.codebook", 0.5, 16), ("mask.codebook.rare", 3.2, 4)):
        mask = Mask.nonzero(wide, wide.abs() > level)
        if k:
            mask.inner = Codebook.cluster(mask.inner.dense(), k)
        tensors[name], forms[name] = wide, mask
    tensors["lanes"], forms["lanes"] = wide, Codebook.cluster(wide, 24)
    return Network(tensors, tied={"tied": "rows"}, forms=forms), None


def every_level():
    tensors, forms, weight = {}, {}, normal(24, 10, 3)
    settings = {
        "binary": {"levels": "binary"},
        "binary.tensor": {"levels": "binary", "axis": None},
        "ternary.sides": {"levels": "ternary", "sides": 2},
        "ternary.sides.axis1": {"levels": "ternary", "sides": 2, "axis": 1},
        "power.group": {"levels": "power-of-two", "bits": 5, "group": 7},
        "additive.block": {"levels": "additive-power-of-two", "bits": 4, "size": 7, "sides": 2},
        "fitted": {"levels": "lloyd-max", "bits": 6, "axis": None},
    }
    for name, setting in settings.items():
        tensors[name], forms[name] = weight, Scaled.fit(weight, **setting)
        mask = Mask.nonzero(weight, weight.abs() > 1)
        mask.inner = Scaled.fit(mask.inner.dense(), at=mask.positions, shape=tuple(weight.shape), **setting)
        tensors[f"mask.{name}"], forms[f"mask.{name}"] = weight, mask
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        tensors[f"{kind}"] = weight.to(kind)
        forms[f"{kind}"] = Scaled.fit(tensors[f"{kind}"], "ternary", sides=2)
    for name, scale in (("scale.powers", 0.25), ("scale.short", 0.15625), ("scale.negative", -0.3)):
        tensors[name], forms[name] = weight, Scaled.fit(weight, "ternary", axis=None)
        forms[name].scale.data.fill_(scale)
    return Network(tensors, forms=forms), None


def slim(*shape):
    """A weight in which whole rows, planes and places are zero, and most of the rest."""
    weight = normal(*shape)
    for axis in range(len(shape)):
        sides = [1] * len(shape)
        sides[axis] = shape[axis]
        weight = weight * (normal(*sides) > -0.5)
    return weight * (normal(*shape) > 0.3)


def every_context():
    """All that the context coder codes; the inputs of some are the rows of the one before."""
    tensors, forms = {}, {}
    shapes = {
        "conv": (12, 1, 5, 5), "conv2": (10, 12, 3, 3), "flat": (20, 160), "fc": (8, 20), "conv1d": (6, 8, 4),
        "pictures": (9, 36), "column": (30, 1), "line": (1, 30), "vector": (40,), "volume": (4, 3, 2, 3, 2),
    }  # fmt: skip
    for name, shape in shapes.items():
        tensors[name] = slim(*shape)
        forms[name] = Grid.fit(tensors[name], 4, axis=None)
    for name, shape, places in (("matrix", (60, 12), 1), ("channels", (25, 3, 3, 3), 16)):
        tensors[name], tensors[f"{name}.bias"] = slim(*shape), slim(shape[0])
        live = tensors[name].flatten(1).any(1).repeat_interleave(places)
        tensors[f"{name}.reader"] = normal(6, len(live)) * live
        for each in (name, f"{name}.bias", f"{name}.reader"):
            forms[each] = Grid.fit(tensors[each], 3, axis=None)
    weight = slim(24, 20)
    tensors["dense.8"], forms["dense.8"] = normal(24, 20), Grid.fit(normal(24, 20), 8, axis=0, symmetric=False)
    tensors["dense.16"], forms["dense.16"] = normal(6, 24), Grid.fit(normal(6, 24), 16)
    for name, settings in (("ternary", {"levels": "ternary", "sides": 2}), ("power", {"levels": "power-of-two"})):
        tensors[name], forms[name] = weight, Scaled.fit(weight, **settings)
    tensors["codebook"], forms["codebook"] = normal(20, 24), Codebook.cluster(normal(20, 24), 300)
    for kind in (torch.float32, torch.float16):
        for name, inner in (
            ("grid", lambda v, at: Grid.fit(v, 5, at=at, shape=(24, 20))),
            ("codebook", lambda v, at: Codebook.cluster(v, 9)),
            ("scaled", lambda v, at: Scaled.fit(v, "binary", at=at, shape=(24, 20))),
        ):
            mask = Mask.nonzero(weight.to(kind))
            mask.inner = inner(mask.inner.dense(), mask.positions)
            tensors[f"mask.{name}.{kind}"], forms[f"mask.{name}.{kind}"] = weight.to(kind), mask
    tensors["exact"] = weight.round()
    tensors["exact.rows"] = weight.round().repeat(4, 1)
    tensors["exact.int16"] = torch.arange(400).reshape(20, 20).to(torch.int16) % 9 * 100
    return Network(tensors, forms=forms, coder=CONTEXT), None


def every_fold():
    """Integers that lie around a large one."""
    weight = normal(60, 50)
    weight[0, 0] = 40
    settings = {"9": {"bits": 9}, "12": {"bits": 12}, "12.asymmetric": {"bits": 12, "symmetric": False}}
    tensors, forms = {}, {}
    for name, setting in settings.items():
        tensors[name], forms[name] = weight, Grid.fit(weight, axis=None, **setting)
    return Network(tensors, forms=forms), None


class Convolutional(nn.Module):
    """Convolutions, normalisation, a strided slice with padding, an average: what a CIFAR ResNet is made of."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        return self.linear(x.mean((2, 3)))


class Recurrent(nn.Module):
    """An embedding tied to its decoder around an LSTM."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
        self.out = nn.Linear(8, 20)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return {"logits": self.out(self.lstm(self.embed(tokens))[0])}


def network(module, inputs, *steps):
    torch.manual_seed(2)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_() if tensor.dim() > 1 else tensor.uniform_(0.1, 1)
    module.eval()
    state = module.state_dict()
    first = {}
    tied = {
        name: first[id(p)]
        for name, p in module.named_parameters(remove_duplicate=False)
        if first.setdefault(id(p), name) != name
    }
    buffers = {name for name, _ in module.named_buffers()}
    net = Network(state, {name: int(name in buffers) for name in state}, tied, capture(module, inputs))
    for step in steps:
        step.run(net)
    return net, inputs


def side_by_side():
    """Operations, tensors of one to three parts, references, a chunk that is closed and one that is open."""
    net, inputs = network(
        Convolutional(), torch.arange(144.0).reshape(2, 2, 6, 6) / 100, Quantize(bits=4, per="tensor")
    )
    net.coder = CONTEXT
    large = normal(30, 40)
    sparse = large[:, :30] * (large[:, :30] > 1)
    net.tensors |= {
        "more.large": large,
        "more.equal": large.clone(),
        "more.tied": large,
        "more.rows": sparse[:3].repeat(9, 1),
    }
    net.tied["more.tied"] = "more.large"
    net.tensors |= {"more.sparse": sparse, "more.narrow": large[:5], "more.scalar": torch.tensor(7)}
    net.store("more.sparse", Mask.nonzero(sparse))
    net.store("more.narrow", Raw(large[:5], torch.float16))
    return net, inputs


def main(folder, names):
    files = {
        "forms": every_form(),
        "tiny": (Network({"w": torch.tensor([1.0, 2.0])}), None),
        "nothing": (Network({}), None),
        "conv": network(Convolutional(), torch.arange(144.0).reshape(2, 2, 6, 6) / 100, Quantize(bits=5)),
        "levels": every_level(),
        "lstm": network(Recurrent(), torch.arange(10).reshape(2, 5), Prune(density=0.5), Share(values=8)),
        "context": every_context(),
        "folded": every_fold(),
        "columns": side_by_side(),
    }
    for name in names or files:
        net, inputs = files[name]
        path = folder / f"{name}-{MAJOR}.{MINOR}.dcz"
        with Writer(path, force=True) as writer:
            for _ in write(net, writer, {"golden": name}):
                pass
        state = loader.load_state_dict(path)
        rows = {
            key: [str(tensor.dtype), list(tensor.shape), hashlib.sha256(to_words(tensor).tobytes()).hexdigest()]
            for key, tensor in state.items()
        }
        known = {"tensors": rows}
        if inputs is not None:
            outputs = loader.load(path)(inputs)
            outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
            known |= {"inputs": inputs.tolist(), "outputs": outputs.tolist()}
        path.with_suffix(".json").write_text(json.dumps(known) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]), sys.argv[2:])
