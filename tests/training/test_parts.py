"""The parts of training: losses, dropout, augmentation, the sensitivity scan."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepcomp.errors import InputError, UsageError
from deepcomp.model.capture import capture
from deepcomp.runtime.interpreter import Interpreter
from deepcomp.steps.prune import Prune
from deepcomp.training.augment import augmentation
from deepcomp.training.dropout import adjusted_dropout
from deepcomp.training.losses import LOSSES, distillation
from deepcomp.training.sensitivity import allowed, scan
from deepcomp.training.trainee import Trainee


def test_distillation_is_the_divergence_of_softened_outputs(randn):
    student, teacher, t = randn(5, 7), randn(5, 7), 3.0
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    expected = t * t * (p * (p.log() - q.log())).sum(1).mean()
    assert distillation(student, teacher, t) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation(teacher, teacher, t)) == pytest.approx(0, abs=1e-6)
    assert distillation(randn(2, 3, 7), randn(2, 3, 7), t).ndim == 0


def test_cross_entropy_takes_any_leading_shape_and_leaves_out_what_does_not_count(randn):
    outputs, targets = randn(2, 4, 6), torch.tensor([[0, 1, -100, 5], [2, -100, 3, 4]])
    expected = F.cross_entropy(outputs.reshape(8, 6), targets.reshape(8))
    assert torch.allclose(LOSSES["cross-entropy"](outputs, targets), expected)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.late = nn.Dropout(0.4)

    def forward(self, x):
        return self.late(self.a(self.drop(torch.relu(self.b(x)))))


def test_dropout_falls_with_the_root_of_the_density_of_the_layer_behind_it_and_comes_back(randn):
    net = Dropping()
    with adjusted_dropout(net, {"a.weight": 0.25}, {}, randn(2, 8)):
        assert net.drop.p == pytest.approx(0.5 * math.sqrt(0.25))
        assert net.late.p == 0.4  # nothing follows
    assert net.drop.p == 0.5


def test_added_dropout_drops_inputs_while_training_only(randn):
    net, x = nn.Sequential(nn.Linear(4000, 1, bias=False)), torch.ones(1, 4000)
    nn.init.constant_(net[0].weight, 1 / 4000)
    with adjusted_dropout(net, {"0.weight": 0.25}, {"0": 0.8}, x):
        kept = {
            round(float(net.train()(x).detach()) * 0.6, 1) for _ in range(5)
        }  # 1 / (1 - 0.8 / 2) scales what is kept
        assert kept == {0.6}
        assert float(net.eval()(x).detach()) == pytest.approx(1, rel=1e-4)
    assert float(net.train()(x).detach()) == pytest.approx(1, rel=1e-4)
    with (
        pytest.raises(UsageError, match=r"no layer of that name is called$"),
        adjusted_dropout(net, {}, {"fc9": 0.1}, x),
    ):
        pass
    found = capture(net.eval(), x)
    rewired = Interpreter(found.graph, found.names, [("0.weight", net[0].weight.detach(), "parameter")])
    with (
        pytest.raises(UsageError, match="is called: behind steps that change the operations"),
        adjusted_dropout(rewired, {}, {"0": 0.1}, x),
    ):
        pass


def test_flip_crop_shifts_by_at_most_an_eighth_and_mirrors():
    image = torch.arange(1.0, 257).reshape(1, 1, 16, 16)
    torch.manual_seed(0)
    seen = augmentation("flip-crop")(image.repeat(500, 1, 1, 1))
    assert seen.shape == (500, 1, 16, 16)
    distinct = {tuple(x.flatten().tolist()) for x in seen}
    padded = F.pad(image, (2, 2, 2, 2))[0, 0]
    possible = set()
    for down in range(5):
        for across in range(5):
            crop = padded[down : down + 16, across : across + 16]
            possible |= {tuple(crop.flatten().tolist()), tuple(crop.flip(1).flatten().tolist())}
    assert distinct == possible
    with pytest.raises(InputError, match="images"):
        augmentation("flip-crop")(torch.zeros(3, 4))


@pytest.mark.parametrize("name", ["affine", "elastic"])
def test_warped_images_stay_near_themselves_and_differ_from_each_other(name):
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    blob = torch.exp(-((x - 13.5) ** 2 + (y - 13.5) ** 2) / 20)
    images = blob.expand(200, 2, 28, 28)
    seen = augmentation(name)(images)
    assert seen.shape == images.shape
    assert torch.equal(seen[:, 0], seen[:, 1])  # channels move together
    assert len({tuple(image.flatten().tolist()) for image in seen[:20, 0]}) == 20
    mass = seen[:, 0].sum((1, 2))
    centres = torch.stack([(seen[:, 0] * place).sum((1, 2)) / mass for place in (y, x)])
    assert float((centres - 13.5).abs().max()) < (2.5 if name == "affine" else 5)
    assert float((centres - 13.5).abs().mean()) > 0.3
    assert float(seen.mean() / images.mean()) == pytest.approx(1, abs=0.1)
    torch.manual_seed(5)
    once = augmentation(name)(images)
    torch.manual_seed(5)
    assert torch.equal(augmentation(name)(images), once)
    assert augmentation(name)(images.double()).dtype == torch.float64
    with pytest.raises(InputError, match=f"augment = {name}: inputs .* images"):
        augmentation(name)(torch.zeros(3, 4))


def test_a_scan_prunes_one_layer_at_a_time_and_changes_nothing(net, tmp_path):
    before = {name: tensor.clone() for name, tensor in net.tensors.items()}
    said = Prune(tolerance=5.0, plot=str(tmp_path / "scan.svg")).run(net)
    for name, row in said["sensitivity"].items():
        assert row["curve"][0][0] == 1.0
        scores = dict(row["curve"])
        assert scores[row["density"]] >= scores[1.0] - 5
        assert net.form(name).positions.numel() == round(row["density"] * before[name].numel())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.tensors.items())
    assert (tmp_path / "scan.svg").read_bytes().startswith(b"<?xml")
    net.data = None
    with pytest.raises(UsageError, match="needs the network and data"):
        scan(net, {}, None)


def test_a_scan_measures_the_network_with_that_layer_pruned(net, data):
    found = scan(net, {"2.weight": net.tensors["2.weight"]}, Prune.form)
    held = data.train[360:]
    for density, score in found["2.weight"]:
        probe = Trainee(net)
        with torch.no_grad():
            probe.module[2].weight.copy_(Prune.form(net.tensors["2.weight"], density).dense())
            right = (probe(held[0]).argmax(1) == held[1]).float().mean()
        assert score == pytest.approx(100 * float(right), abs=1e-4)


def test_tolerance_stops_at_the_first_density_beyond_it():
    curve = [(1.0, 90.0), (0.5, 89.5), (0.3, 88.0), (0.1, 89.9)]
    assert allowed(curve, 1.0, True) == 0.5
    assert allowed(curve, 2.0, True) == 0.1
    assert allowed([(1.0, 90.0), (0.5, 91.5), (0.1, 80.0)], 1.0, False) == 1.0
