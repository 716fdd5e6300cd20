from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import deepcomp
from deepcomp.errors import UsageError
from deepcomp.model import zoo
from deepcomp.model.zoo.images import BasicBlock, CifarMobileNetV2
from deepcomp.model.zoo.language import LENGTH, VOCABULARY

LANGUAGE = ("lstm-wikitext2", "transformer-wikitext2")

SOURCE = """
import torch
from torch import nn

class Holder:
    @staticmethod
    def make():
        return nn.Linear(2, 3)

def fine():
    return nn.Sequential(nn.Linear(2, 3), nn.Dropout()).train()

def fails():
    raise RuntimeError("first line\\nsecond line")

def number():
    return 3

constant = 4
"""


@pytest.fixture
def spec_module(tmp_path, monkeypatch):
    (tmp_path / "spec_nets.py").write_text(SOURCE)
    (tmp_path / "spec_broken.py").write_text("def half(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "spec_nets"
    for name in ("spec_nets", "spec_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_network_takes_its_example_and_gives_logits(name):
    model = zoo.build(name)
    assert not any(part.training for part in model.modules())
    with torch.no_grad():
        assert model(*zoo.example(name)).shape == ((2, LENGTH, VOCABULARY) if name in LANGUAGE else (2, 10))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_examples_are_the_same_every_time(name):
    torch.manual_seed(1)
    first = zoo.example(name)
    torch.manual_seed(2)
    assert all(a.equal(b) for a, b in zip(first, zoo.example(name), strict=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("lenet-300-100", 266_610),
        ("lenet-5", 431_080),
        ("digits-cnn", 38_330),
        ("resnet20", 269_722),
        ("mobilenet-cifar", 208_330),
        ("lstm-wikitext2", 3_421_328),
        ("transformer-wikitext2", 3_122_304),
    ],
)
def test_parameter_counts_are_those_of_the_checkpoints(name, count):
    assert sum(p.numel() for p in zoo.build(name).parameters()) == count


def test_lenet_5_has_the_shapes_of_caffe():
    shapes = {name: tuple(p.shape) for name, p in zoo.build("lenet-5").named_parameters() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (20, 1, 5, 5),
        "conv2.weight": (50, 20, 5, 5),
        "fc1.weight": (500, 800),
        "fc2.weight": (10, 500),
    }


@pytest.mark.parametrize(("name", "depth"), [(f"resnet{d}", d) for d in (20, 32, 44, 56, 110)])
def test_resnet_depth_counts_its_weight_layers(name, depth):
    layers = [p for n, p in zoo.build(name).named_parameters() if n.endswith("weight") and p.dim() > 1]
    assert len(layers) == depth


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    block = BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    with torch.no_grad():
        y = block(x)
    assert y[:, 1:3].equal(x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_mobilenet_filters_every_channel_on_its_own_between_linear_bottlenecks(randn):
    model = CifarMobileNetV2().eval()
    for block in model.blocks:
        depthwise = block.depthwise[0]
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
        assert [type(part) for part in block.project] == [nn.Conv2d, nn.BatchNorm2d]
        first = next(part for part in block.modules() if isinstance(part, nn.Conv2d))
        x = randn(2, first.in_channels, 8, 8)
        with torch.no_grad():
            y = block.project(block.depthwise(block.expand(x)))
            assert block(x).equal(y + x if y.shape == x.shape else y)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_word_changes_no_logits_before_its_place(name):
    model, (tokens,) = zoo.build(name), zoo.example(name)
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % VOCABULARY
    with torch.no_grad():
        differs = (model(tokens) - model(changed)).abs().amax((0, 2)) > 0
    assert differs.tolist() == [place >= 40 for place in range(LENGTH)]


@pytest.mark.parametrize("name", LANGUAGE)
def test_words_are_dropped_in_training_alone(name):
    model, (tokens,) = zoo.build(name), zoo.example(name)
    with torch.no_grad():
        assert model(tokens).equal(model(tokens))
        assert not model.train()(tokens).equal(model(tokens))


def test_the_transformer_decodes_with_its_embedding():
    model = zoo.build("transformer-wikitext2")
    assert [name for name, p in model.named_parameters() if VOCABULARY in p.shape] == ["embedding.weight"]


@pytest.mark.parametrize("name", ["mobilenet-cifar", *LANGUAGE])
def test_a_file_runs_as_the_network_did_for_any_batch(tmp_path, name):
    model, (x,) = zoo.build(name), zoo.example(name)
    report = deepcomp.compress(model, tmp_path / "x.dcz", example_inputs=x)
    assert not report.warnings
    loaded, more = deepcomp.load(tmp_path / "x.dcz"), torch.cat([x, x.flip(0), x[:1]])
    with torch.no_grad():
        assert loaded(more).equal(model(more))


def test_published_resnet20_loads_strictly(data_dir):
    path = data_dir / "resnet20-cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    zoo.build("resnet20").load_state_dict(load_file(path), strict=True)


def test_unknown_name_lists_the_networks():
    with pytest.raises(UsageError, match=r"'lenet-6'.*lenet-300-100.*resnet110"):
        zoo.resolve("lenet-6")
    with pytest.raises(UsageError, match="lenet-6"):
        zoo.example("lenet-6")


def test_resolve_builds_from_a_callable_in_eval_mode(spec_module):
    model = zoo.resolve(f"{spec_module}:fine")
    assert not any(part.training for part in model.modules())
    assert zoo.resolve(f"{spec_module}:Holder.make").out_features == 3


def test_resolve_finds_modules_of_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "spec_here.py").write_text("from torch import nn\nmake = nn.Identity\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    before = list(sys.path)
    try:
        assert isinstance(zoo.resolve("spec_here:make"), torch.nn.Identity)
    finally:
        sys.modules.pop("spec_here", None)
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_such_package_at_all:make", "cannot import"),
        ("spec_broken:half", "SyntaxError"),
        ("spec_nets:absent", "has no absent"),
        ("spec_nets:Holder.absent", "has no Holder.absent"),
        ("spec_nets:constant", "callable"),
        ("spec_nets:number", "int.*Module"),
        ("spec_nets:fails", "first line second line"),
        ("spec_nets:", "form"),
        (":make", "form"),
    ],
)
def test_a_bad_spec_is_one_line_naming_it(spec_module, spec, words):
    with pytest.raises(UsageError, match=words) as caught:
        zoo.resolve(spec)
    assert spec in str(caught.value)
    assert "\n" not in str(caught.value)
