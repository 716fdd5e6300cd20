"""The whole flow: what is measured is what the quantisers do, and what is advised helps."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from patients import WIDE, cnn, labelled, metric, mlp, outlier, steps, through, uneven, written
from torch import nn
from torch.utils.data import TensorDataset

import deepcomp
from deepcomp import Data, InputError, UsageError
from deepcomp.model.evaluate import evaluate
from deepcomp.steps import STEPS, Step


def rules(found):
    return [entry.rule for entry in found.advice]


def test_the_parts_are_measured_as_compress_would_leave_them(tmp_path):
    net = cnn()
    data = labelled(net, (3, 8, 8))
    recipe = written(tmp_path, [{"do": "fold-bn"}, *steps(bits=3, per="tensor")])
    found = deepcomp.diagnose(net, data=data, recipe=recipe, items=1000)
    deepcomp.compress(net, tmp_path / "x.dcz", recipe=recipe, data=data)
    assert found.items == len(data.test)
    assert found.original == evaluate(net, data).value == 100
    both, weights = (evaluate(deepcomp.load(tmp_path / "x.dcz", runtime=way), data) for way in ("simulated", "float"))
    assert found.parts["both"].value == both.value
    assert found.parts["weights"].value == weights.value
    assert found.parts["weights"].drop == 100 - weights.value
    assert found.parts["fp32"].drop == 0
    assert math.isinf(found.parts["fp32"].snr)


def test_every_step_is_checked_in_floating_point(tmp_path):
    net = cnn()
    rows = [{"do": "fold-bn"}, {"do": "equalize"}, *steps()]
    found = deepcomp.diagnose(net, data=labelled(net, (3, 8, 8)), recipe=written(tmp_path, rows))
    assert [check.behind for check in found.fp32] == ["capture", *(row["do"] for row in rows)]
    assert all(check.change < 1e-5 for check in found.fp32)
    assert all(check.value == 100 for check in found.fp32)
    assert [row["do"] for row in found.steps] == [row["do"] for row in rows]


def test_each_quantiser_is_swept_once_the_noisiest_first(tmp_path):
    net = cnn()
    found = deepcomp.diagnose(net, data=labelled(net, (3, 8, 8)), recipe=written(tmp_path, steps(bits=4)))
    rows = {(row.kind, row.name, row.bits) for row in found.sweep}
    weights = {("weight", f"{name}.weight", 4) for name in ("stem", "deep", "last")}
    names = found.steps[-1]["sites"]
    assert {"x", "stem", "last"} <= set(names)
    assert rows == weights | {("activation", name, 8) for name in names}
    assert len(rows) == len(found.sweep) == len(found.channels)
    noise = [row.outcome.snr for row in found.sweep]
    assert noise == sorted(noise)
    assert [(row.kind, row.name) for row in found.channels] == [(row.kind, row.name) for row in found.sweep]


def test_one_scale_for_channels_300_times_apart_is_found_and_what_is_advised_helps(tmp_path):
    net = uneven(mlp())
    data = labelled(net)
    recipe = written(tmp_path, [{"do": "fold-bn"}, *steps(bits=5, per="tensor")])
    found = deepcomp.diagnose(net, data=data, recipe=recipe)
    assert found.parts["weights"].drop > 10
    assert rules(found)[:2] == ["equalize", "per-channel"]
    assert found.advice[0].places[0] == "0.weight"
    (row,) = [row for row in found.channels if row.name == "0.weight"]
    assert row.spread > 100
    assert row.used < 1
    lost = found.parts["weights"].drop
    wise = written(tmp_path, [{"do": "fold-bn"}, {"do": "equalize"}, *steps(bits=5, per="tensor")])
    equalized = deepcomp.diagnose(net, data=data, recipe=wise)
    assert equalized.parts["weights"].drop < lost / 3
    assert "equalize" not in rules(equalized)
    channels = deepcomp.diagnose(net, data=data, recipe=recipe_again(tmp_path), settings=found.advice[1].settings)
    assert channels.parts["weights"].drop < lost / 3


def recipe_again(folder):
    return written(folder, [{"do": "fold-bn"}, *steps(bits=5, per="tensor")])


def test_an_activation_with_an_outlier_is_found_and_more_bits_help(tmp_path):
    net = outlier(mlp())
    data = labelled(net)
    found = deepcomp.diagnose(net, data=data, recipe=written(tmp_path, steps(bits=8)))
    assert found.parts["activations"].drop > 5 > found.parts["weights"].drop
    assert found.sweep[0].name == "0"
    given = {entry.rule: entry for entry in found.advice}
    assert given["activation-range"].places == ["0"]
    assert given["activation-equalize"].places == ["0"]
    bits = given["activation-bits"]
    assert bits.settings == {"quantize-activations.bits": {"0": 16, "*": 8}}
    assert '{ "0" = 16, "*" = 8 }' in bits.text
    better = deepcomp.diagnose(net, data=data, recipe=tmp_path / "mine.toml", settings=bits.settings)
    assert better.parts["activations"].drop < found.parts["activations"].drop / 3


def test_all_is_well_at_eight_bits(tmp_path):
    net = mlp()
    found = deepcomp.diagnose(net, data=labelled(net), recipe=written(tmp_path, steps(bits=8)))
    assert rules(found) == ["fine"]


def test_a_step_that_breaks_the_network_is_named(tmp_path, monkeypatch):
    @dataclass
    class Clumsy(Step):
        do: ClassVar[str] = "clumsy"

        def run(self, net):
            net.update("2.weight", torch.zeros(WIDE, WIDE))
            return {}

    monkeypatch.setitem(STEPS, "clumsy", Clumsy)
    net = mlp()
    found = deepcomp.diagnose(net, data=labelled(net), recipe=written(tmp_path, [{"do": "clumsy"}, *steps()]))
    assert found.advice[0].rule == "floating-point"
    assert found.advice[0].places == ["clumsy"]
    assert found.original == found.fp32[0].value == 100 > found.fp32[1].value
    assert found.parts["fp32"].value == found.fp32[-1].value


@pytest.mark.parametrize("better", [True, False])
def test_a_metric_of_ones_own_counts_in_its_own_direction(better, tmp_path):
    net = mlp()
    recipe = written(tmp_path, steps(bits=2, per="tensor"))
    found = deepcomp.diagnose(net, data=labelled(net, metric=metric(better)), recipe=recipe)
    assert found.metric == "share"
    assert found.higher_is_better == better
    assert found.parts["both"].drop > 0


def test_without_a_metric_the_change_of_the_outputs_counts(tmp_path):
    net, x = mlp(), torch.randn(80, 12)
    data = Data(TensorDataset(x, torch.zeros(80)))
    found = deepcomp.diagnose(net, data=data, recipe=written(tmp_path, steps(bits=2, per="tensor")), items=50)
    assert found.metric == "change of outputs"
    assert found.original is None
    assert found.items == 50
    worst = found.parts["both"]
    assert worst.value == worst.drop == pytest.approx(10 ** (-worst.snr / 20))
    assert "training" in rules(found)


def test_weights_alone_are_diagnosed_where_a_recipe_quantises_no_activations():
    net = mlp()
    found = deepcomp.diagnose(net, data=labelled(net), recipe="uniform", settings={"quantize.bits": 2})
    assert found.parts["activations"] is None
    assert found.parts["both"] == found.parts["weights"]
    assert {row.kind for row in found.sweep} == {"weight"}


def test_the_bias_of_a_weight_is_corrected_with_it_alone(tmp_path):
    net = mlp()
    rows = [{"do": "quantize", "bits": 3}, {"do": "correct-bias", "samples": 64}]
    recipe = written(tmp_path, rows)
    found = deepcomp.diagnose(net, data=labelled(net), recipe=recipe)
    assert {row.name for row in found.sweep} == {"0.weight", "2.weight", "4.weight"}


def test_a_file_with_quantisers_is_looked_at_as_it_is(tmp_path):
    net = outlier(mlp())
    data = labelled(net)
    deepcomp.compress(net, tmp_path / "x.dcz", recipe=written(tmp_path, steps(bits=6, per="tensor")), data=data)
    found = deepcomp.diagnose(tmp_path / "x.dcz", data=data)
    assert found.recipe is None
    assert (found.original, found.fp32, found.steps) == (None, [], [])
    assert found.parts["weights"] is None
    assert found.parts["both"] == found.parts["activations"]
    assert {row.kind for row in found.sweep} == {"activation"}
    assert found.sweep[0].name == "0"
    assert any("not seen here" in warning for warning in found.warnings)
    grids = [row for row in found.channels if row.kind == "weight"]
    assert [row.bits for row in grids] == [6, 6, 6]
    assert all(row.high > 0 > row.low for row in grids)
    told = " ".join(entry.text for entry in found.advice)
    assert "0 (alone" in told
    for given in ({"recipe": "ptq"}, {"settings": {"quantize.bits": 4}}):
        with pytest.raises(UsageError, match=r"x\.dcz: is quantised already"):
            deepcomp.diagnose(tmp_path / "x.dcz", data=data, **given)


def test_a_file_of_exact_weights_is_taken_through_the_recipe(tmp_path):
    net = mlp()
    data, recipe = labelled(net), written(tmp_path, steps(bits=3))
    deepcomp.compress(net, tmp_path / "x.dcz", data=data)
    found = deepcomp.diagnose(tmp_path / "x.dcz", data=data, recipe=recipe)
    given = deepcomp.diagnose(net, data=data, recipe=recipe)
    assert found.parts == given.parts
    assert not found.warnings
    deepcomp.compress(net, tmp_path / "y.dcz", recipe="uniform", data=data)
    (warning,) = deepcomp.diagnose(tmp_path / "y.dcz", data=data, recipe=recipe).warnings
    assert "y.dcz: 3 weights lie on grids already" in warning


def test_the_same_seed_finds_the_same_and_the_network_is_left_alone(tmp_path):
    net = uneven(mlp())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    recipe, found = written(tmp_path, steps(bits=4)), []
    for _ in range(2):
        done = deepcomp.diagnose(net, data=labelled(net), recipe=recipe, items=50, seed=3).to_dict()
        found.append({**done, "steps": [{**row, "seconds": 0} for row in done["steps"]]})
    assert found[0] == found[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_diagnosis_is_json(tmp_path):
    net = mlp()
    found = deepcomp.diagnose(net, data=labelled(net), recipe=written(tmp_path, steps(bits=2))).to_dict()
    assert list(found) == [
        *("input", "recipe", "seed", "items", "metric", "higher_is_better", "tolerance", "exact", "steps"),
        *("original", "fp32", "parts", "sweep", "channels", "advice", "warnings"),
    ]
    assert list(found["sweep"][0]) == ["kind", "name", "bits", "value", "drop", "snr", "error"]
    assert list(found["fp32"][0]) == ["behind", "value", "drop", "change"]
    assert list(found["parts"]) == ["fp32", "weights", "activations", "both"]
    json.dumps(found)


def test_the_recipe_is_ptq_unless_another_is_asked_for():
    net = cnn()
    found = deepcomp.diagnose(net, data=labelled(net, (3, 8, 8)), settings={"adaround.iterations": 5})
    assert found.recipe == "ptq"
    assert {"fold-bn", "equalize", "quantize", "adaround", "quantize-activations"} <= {row["do"] for row in found.steps}


def test_progress_names_each_quantiser(tmp_path):
    net, told = mlp(), []
    deepcomp.diagnose(
        net,
        data=labelled(net),
        recipe=written(tmp_path, steps()),
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert ("quantize", 0, 2) in told
    assert ("weight 2.weight", 1, 7) in told


def test_a_recipe_that_trains_is_said_to(tmp_path):
    net = mlp()
    rows = [{"do": "quantize", "bits": 4}, {"do": "finetune", "epochs": 1}]
    found = deepcomp.diagnose(net, data=labelled(net), recipe=written(tmp_path, rows))
    assert any("trains" in warning for warning in found.warnings)


def test_what_cannot_be_diagnosed_is_said():
    net = mlp()
    data = labelled(net)
    with pytest.raises(UsageError, match="--model"):
        deepcomp.diagnose(dict(net.state_dict()), data=data)
    with pytest.raises(UsageError, match="items = 0"):
        deepcomp.diagnose(net, data=data, items=0)
    with pytest.raises(UsageError, match="recipe 'nope'"):
        deepcomp.diagnose(net, data=data, recipe="nope")
    with pytest.raises(UsageError, match="seed = -1"):
        deepcomp.diagnose(net, data=data, seed=-1)

    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="Odd: its operations are needed, but"):
        deepcomp.diagnose(Odd(), data=data)


def test_finetune_behind_the_quantisers_trains_through_them(tmp_path):
    """As the last advice says."""
    net = mlp()
    data = labelled(net)
    rows = steps(bits=2, per="tensor")
    before = deepcomp.diagnose(net, data=data, recipe=written(tmp_path, rows))
    rows.append({"do": "finetune", "epochs": 8, "batch": 16, "rate": 0.02})
    trained = through(net, data, written(tmp_path, rows))
    assert evaluate(trained.interpreter(formed=True), data).value > before.parts["both"].value
