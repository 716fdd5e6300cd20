"""Steps: what each promises of the weights it leaves."""

import itertools

import pytest
import torch

from deepcomp.errors import InputError, UsageError
from deepcomp.network import Network
from deepcomp.steps.prune import Prune, largest
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.share import Share
from deepcomp.steps.store import Store
from deepcomp.training import Plan
from deepcomp.weights import Codebook, Grid, Mask, Raw


@pytest.fixture
def net(randn):
    tensors = {"a.weight": randn(20, 30), "a.bias": randn(20), "b.weight": 3 * randn(8, 5, 3, 3), "n": torch.arange(9)}
    return Network(tensors)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_density_is_exact_in_each_layer(net, density):
    Prune(density=density).run(net)
    for name in ("a.weight", "b.weight"):
        weight, kept = net.tensors[name], net.form(name).dense()
        assert int((kept != 0).sum()) == round(density * weight.numel())
        assert torch.equal(kept[kept != 0], weight[kept != 0])
        if (kept == 0).any() and (kept != 0).any():
            assert weight[kept != 0].abs().min() >= weight[kept == 0].abs().max()


def test_of_equal_magnitudes_the_first_are_kept():
    assert largest(torch.tensor([1.0, -1.0, 1.0, 2.0]), 0.5).tolist() == [True, False, False, True]


def test_density_of_the_network_is_exact_by_one_threshold(net):
    said = Prune(density=0.3, per="network").run(net)
    kept = torch.cat([net.form(n).dense().reshape(-1) for n in ("a.weight", "b.weight")])
    assert int((kept != 0).sum()) == round(0.3 * kept.numel())
    assert said["density"] == pytest.approx(0.3, abs=0.01)
    assert net.form("b.weight").positions.numel() > 0.6 * 360  # the layer with larger weights keeps more


def test_a_drawing_that_cannot_be_made_is_refused_before_the_work():
    with pytest.raises(UsageError, match=r"ending in \.svg"):
        Prune(plot="scan.png")


def test_lamp_ranks_a_weight_by_its_share_of_the_energy_not_larger_than_its_own(net):
    Prune(density=0.2, per="network", rank="lamp").run(net)
    scores = {}
    for name in ("a.weight", "b.weight"):
        energy = net.tensors[name].double().flatten() ** 2
        scores[name] = torch.stack([e / energy[energy >= e].sum() for e in energy])
    everything = torch.cat(list(scores.values()))
    limit = everything.sort(descending=True).values[round(0.2 * len(everything)) - 1]
    for name, score in scores.items():
        assert torch.equal(net.form(name).positions, torch.nonzero(score >= limit * (1 - 1e-12)).flatten())
    assert abs(net.form("a.weight").positions.numel() / 600 - net.form("b.weight").positions.numel() / 360) < 0.1
    with pytest.raises(UsageError, match="magnitude, lamp"):
        Prune(rank="gradient")


def test_a_table_prunes_the_layers_it_names_the_first_pattern_that_matches(net):
    Prune(density={"a": 0.25, "*": 0.5}, layers="a*").run(net)
    assert set(net.forms) == {"a.weight"}
    assert net.form("a.weight").positions.numel() == 150
    Prune(density={"b": 0.1, "a.*": 0.05, "*": 0.9}, per="network").run(net)
    assert (net.form("a.weight").positions.numel(), net.form("b.weight").positions.numel()) == (30, 36)
    Share(values={"b": 4}).run(net)
    assert isinstance(net.form("a.weight").inner, Raw)
    assert len(net.form("b.weight").inner.values) == 4


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
def test_rounds_end_at_the_density_and_masks_only_shrink_on_the_way(randn, schedule, monkeypatch):
    net, seen = Network({"a.weight": randn(40, 50)}), []

    def train(net, plan, what):
        weight = net.form("a.weight")
        seen.append(set(weight.positions.tolist()))
        with torch.no_grad():
            weight.inner.value.add_(randn(len(weight.inner.value)))  # survivors move, and others become the smallest
        return {"validation": []}

    monkeypatch.setattr("deepcomp.steps.prune.train", train)
    Prune(density=0.1, rounds=4, schedule=schedule, retrain=Plan()).run(net)
    left = [3 / 4, 2 / 4, 1 / 4, 0]
    expected = [0.1 + 0.9 * (share**3 if schedule == "cubic" else share) for share in left]
    assert [len(kept) for kept in seen] == [round(2000 * density) for density in expected]
    assert all(later <= earlier for earlier, later in itertools.pairwise(seen))


def test_sigma_prunes_below_its_threshold(net):
    Prune(sigma=1.0).run(net)
    weight, kept = net.tensors["a.weight"], net.form("a.weight").dense()
    assert torch.equal(kept != 0, weight.abs() >= weight.std(correction=0))


def test_masks_only_shrink(net):
    Prune(density=0.5).run(net)
    first = set(net.form("a.weight").positions.tolist())
    Prune(density=0.2).run(net)
    assert set(net.form("a.weight").positions.tolist()) < first


@pytest.mark.parametrize("step", [Share(values=4), Quantize()])
def test_what_is_shared_or_quantised_is_not_pruned_any_more(net, step):
    step.run(net)
    with pytest.raises(UsageError, match=r"a\.weight is a (codebook|grid) already"):
        Prune().run(net)


def test_only_matrices_and_kernels_are_touched(net):
    Prune().run(net)
    Quantize().run(net)
    assert set(net.forms) == {"a.weight", "b.weight"}


def test_forms_compose_under_a_mask(net):
    Prune(density=0.4).run(net)
    Share(values=8, layers="a*").run(net)
    Quantize(bits=3, layers="b.weight").run(net)
    a, b = net.form("a.weight"), net.form("b.weight")
    assert isinstance(a, Mask)
    assert isinstance(a.inner, Codebook)
    assert len(a.inner.values) == 8
    assert isinstance(b, Mask)
    assert isinstance(b.inner, Grid)
    assert int((b.dense() != 0).sum()) <= b.positions.numel() == round(0.4 * 360)


def test_layers_and_skip_choose_by_tensor_or_layer_name(net):
    assert net.names("a") == ["a.weight", "a.bias"]
    assert net.names("*.weight", skip="b") == ["a.weight"]
    assert net.names("a.bias, b.*") == ["a.bias", "b.weight"]


def test_store_rounds_vectors_and_keeps_what_it_is_told_to(net):
    Quantize(bits=2).run(net)
    Store(layers="b").run(net)
    Store(dtype="float16", vectors=True).run(net)
    assert torch.equal(net.form("b.weight").dense(), net.tensors["b.weight"])
    assert isinstance(net.form("a.bias"), Raw)
    assert torch.equal(net.form("a.bias").dense(), net.tensors["a.bias"].half().float())
    assert torch.equal(net.form("n").dense(), net.tensors["n"])


def test_store_refuses_values_beyond_the_narrow_type(net):
    net.tensors["a.bias"][3] = 1e6
    with pytest.raises(UsageError, match=r"a\.bias"):
        Store(dtype="float16", vectors=True).run(net)


@pytest.mark.parametrize("step", [Prune(), Share(), Quantize()])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_lossy_steps_refuse_weights_that_are_not_finite_by_name(net, step, bad):
    net.tensors["b.weight"][1, 2, 0, 0] = bad
    with pytest.raises(InputError, match=r"b\.weight: 1 of 360"):
        step.run(net)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Prune(density=-0.1),
        lambda: Prune(per="tensor"),
        lambda: Prune(sigma=-1.0),
        lambda: Share(values=1),
        lambda: Share(start="kmeans++"),
        lambda: Share(values=1025),
        lambda: Share(values={"a": 16, "b": 1025}),
        lambda: Quantize(bits=1),
        lambda: Quantize(bits=0, symmetric=False),
        lambda: Quantize(bits=17),
        lambda: Quantize(range="max"),
        lambda: Quantize(per="row"),
        lambda: Quantize(size=0),
        lambda: Quantize(percentile=50.0),
        lambda: Store(dtype="int8"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(UsageError, match=r"^(prune|share|quantize|store)\.[a-z]+ = "):
        wrong()


def test_settings_a_weight_cannot_follow_are_refused(net):
    with pytest.raises(UsageError, match=r"quantize\.axis = 2: a\.weight has 2 dimensions"):
        Quantize(axis=2).run(net)


def test_many_values_are_shared_from_any_start_but_the_optimal_one(net, randn):
    net.tensors["a.weight"] = randn(60, 50)
    Share(values=2000, start="linear", layers="a").run(net)
    assert 1024 < len(net.form("a.weight").values) <= 2000
    Quantize(bits=1, symmetric=False, layers="b").run(net)


def test_layers_of_which_nothing_is_left_are_shared_and_quantised(net):
    net.tensors["a.weight"] = torch.zeros(20, 30)
    for step in (Share(values=4), Quantize(range="percentile"), Quantize(range="mse", symmetric=False)):
        net.forms.clear()
        Prune(density={"a": 0.5, "b": 0.0}).run(net)
        step.run(net)
        assert not any(net.form(name).dense().any() for name in ("a.weight", "b.weight"))


@pytest.mark.parametrize(
    "make",
    [
        lambda layers: Prune(layers=layers),
        lambda layers: Prune(density={"a": 0.5, layers: 0.5}),
        lambda layers: Prune(sigma={"a": 0.5, layers: 0.5}),
        lambda layers: Share(layers=layers),
        lambda layers: Share(values={layers: 4}),
        lambda layers: Quantize(layers=layers),
        lambda layers: Store(layers=layers),
    ],
)
@pytest.mark.parametrize("layers", ["nosuch", "a, nosuch", "b.weight,nosuch.*"])
def test_a_pattern_of_layers_that_matches_no_tensor_is_refused_by_name(net, make, layers):
    with pytest.raises(UsageError, match=r"layers 'nosuch.*': no tensor has such a name, nor a layer"):
        make(layers).run(net)


def test_a_pattern_to_skip_may_match_nothing(net):
    assert Quantize(skip="nosuch").run(net) == {"tensors": 2, "weights": 960}
    Quantize(layers="*.bias").run(net)  # tensors there are, though no weights
    assert Quantize().run(Network({})) == {"tensors": 0, "weights": 0}


def test_what_a_step_did_is_told_in_tensors_and_weights(net):
    assert Prune().run(net).items() >= {"weights": 960, "density": 0.5}.items()
    assert Share(values=4, layers="a").run(net) == {"tensors": 1, "weights": 600}
    assert Quantize(layers="b").run(net) == {"tensors": 1, "weights": 360}
    assert Store(layers="*.bias").run(net) == {"tensors": 1, "weights": 20}


def test_wide_weights_that_lossy_steps_cannot_compute_with_are_not_called_infinite(net):
    net.tensors["a.weight"] = torch.tensor([[1e300, 1.0], [1.0, 1.0]], dtype=torch.float64)
    with pytest.raises(InputError, match=r"a\.weight: 1 of 4 weights are beyond the range of float32"):
        Quantize().run(net)
