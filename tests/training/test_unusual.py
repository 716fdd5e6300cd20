"""Training of what is rare and legitimate: dead channels, constants, one output, targets that do not count."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import deepcomp
from deepcomp.errors import InputError
from deepcomp.model.capture import capture
from deepcomp.model.data import Data
from deepcomp.model.evaluate import evaluate
from deepcomp.opening import open_network
from deepcomp.steps.finetune import Finetune
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.quantize_activations import QuantizeActivations
from deepcomp.steps.rate_train import RateTrain
from deepcomp.steps.share import Share
from deepcomp.steps.store import Store
from deepcomp.training import Plan, train
from deepcomp.training.trainee import Trainee

QUICK = {"epochs": 2, "batch": 16, "optimiser": "adam", "rate": 0.01, "choose": "last"}


def mlp(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))


def items(count=64, dtype=torch.float32):
    """Eight numbers, and which of the first three is the largest."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    return TensorDataset(x, x[:, :3].argmax(1))


def labelled(count=64, dtype=torch.float32):
    return Data(items(count, dtype), items(count, dtype), "accuracy")


def opened(module, data, x=None):
    net, _ = open_network(module.eval())
    x = data.train[0][0][None].repeat(2, *([1] * data.train[0][0].ndim)) if x is None else x
    net.data, net.captured, net.teacher = data, capture(net.module, x), net.module
    return net


@pytest.mark.parametrize("step", [Prune(density=0.5), Share(values=32), Store(dtype="exact")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_16_bits_in_a_form_learn_in_steps_too_small_for_them(step, dtype):
    net = opened(mlp().to(dtype), labelled(dtype=dtype))
    step.run(net)
    before = net.form("0.weight").dense()
    Finetune(**{**QUICK, "epochs": 8, "rate": 1e-4}).run(net)
    after = net.form("0.weight").dense()
    assert after.dtype == dtype
    assert after.isfinite().all()
    assert (after != before).float().mean() > 0.05
    assert torch.equal(net.module.state_dict()["0.weight"], after)


def test_what_is_stored_in_16_bits_learns_and_stays_such():
    net = opened(mlp(), labelled())
    Store(dtype="float16", vectors=True).run(net)
    Finetune(**QUICK).run(net)
    bias = net.form("0.bias").dense()
    assert not torch.equal(bias, mlp()[0].bias.half().float())
    assert torch.equal(bias, bias.half().float())


def test_vectors_of_the_recipe_may_go_on_no_grid(tmp_path):
    settings = {"rate-train.vectors": 0.0, "rate-train.epochs": 1, "rate-train.batch": 16}
    deepcomp.compress(mlp(), tmp_path / "a.dcz", recipe="smallest", data=labelled(), settings=settings)
    assert deepcomp.load(tmp_path / "a.dcz").state_dict()["0.bias"].isfinite().all()


class Shifted(nn.Module):
    """With a buffer that is not in the state dict, and a constant in the code."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()
        self.register_buffer("shift", torch.linspace(0, 1, 8), persistent=False)

    def forward(self, x):
        return self.inner(x + self.shift + torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]))


@pytest.mark.parametrize("between", ["", '[[step]]\ndo = "quantize-activations"\nsamples = 32\n'])
def test_constants_may_have_forms_and_do_not_train(tmp_path, between):
    recipe, out = tmp_path / "r.toml", tmp_path / "a.dcz"
    training = '[[step]]\ndo = "finetune"\nepochs = 1\nrate = 0.1\nchoose = "last"\n'
    recipe.write_text(f'[[step]]\ndo = "store"\ndtype = "float16"\n{between}{training}')
    deepcomp.compress(Shifted(), out, recipe=recipe, data=labelled())
    module = deepcomp.load(out)
    found = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    (constant,) = (name for name in found if name != "shift" and not name.startswith("inner"))
    assert torch.equal(found["shift"], torch.linspace(0, 1, 8).half().float())
    assert torch.equal(found[constant], torch.arange(1.0, 9.0))
    assert not torch.equal(found["inner.0.bias"], mlp()[0].bias.half().float())


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_dead_channel_does_no_harm_to_a_price(per):
    module = mlp()
    with torch.no_grad():
        module[0].weight[3] = 0
    net = opened(module, labelled())
    Quantize(bits=8, per=per).run(net)
    RateTrain(**{**QUICK, "price": 1e-4}).run(net)
    net = opened(module, labelled())
    Quantize(bits=8, per=per).run(net)
    before = net.forms["0.weight"].dense()
    Finetune(**{**QUICK, "price": 1e-4}).run(net)
    weight, scale = net.forms["0.weight"].dense(), net.forms["0.weight"].scale
    assert not before[3].any()
    assert weight.isfinite().all()
    assert scale.min() > scale.max() / 1000


def test_a_weight_of_zeros_can_learn_with_a_price():
    module = mlp()
    nn.init.zeros_(module[2].weight)
    net = opened(module, labelled())
    Quantize(bits=8).run(net)
    Finetune(**{**QUICK, "epochs": 10, "price": 1e-6}).run(net)
    assert net.forms["2.weight"].dense().any()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norms_that_count_batches_learn_their_statistics_behind_rewiring_too(momentum):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Linear(16, 3))
    net = opened(module, labelled(256))
    Quantize(bits=8).run(net)
    QuantizeActivations(samples=64).run(net)
    Finetune(**{**QUICK, "epochs": 20}).run(net)
    assert not torch.equal(net.tensors["1.running_mean"], torch.zeros(16))
    assert evaluate(net.module, net.data).value > 90


@pytest.mark.parametrize("rewired", [False, True])
def test_statistics_that_are_not_chosen_stay(rewired):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    for layers, stays in {"3": True, "1": False, "*": False}.items():
        net = opened(module, labelled())
        if rewired:
            QuantizeActivations(samples=32).run(net)
        before = {name: tensor.clone() for name, tensor in net.tensors.items()}
        Finetune(**QUICK, layers=layers).run(net)
        for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
            if not (rewired and name == "1.num_batches_tracked"):  # operations know nothing of it
                assert torch.equal(net.tensors[name], before[name]) == stays


def test_the_last_batch_may_be_one_item():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    net = opened(module, Data(items(65), items(), "accuracy", validation=items()))
    said = Finetune(**QUICK).run(net)
    assert len(said["loss"]) == 2


def test_networks_that_do_not_run_are_called_by_their_name():
    net = opened(Shifted(), labelled())
    net.data = Data(TensorDataset(torch.randn(64, 7), torch.zeros(64).long()), items(), "accuracy")
    with pytest.raises(InputError, match=r"^Shifted does not run on this data"):
        Finetune(**QUICK).run(net)


def test_a_batch_without_a_target_that_counts_is_no_loss():
    data = items()
    targets = data.tensors[1].clone()
    targets[::3] = -100
    net = opened(mlp(), Data(TensorDataset(data.tensors[0], targets), items(), "accuracy"))
    said = Finetune(**{**QUICK, "batch": 1}).run(net)
    assert all(map(torch.isfinite, torch.tensor(said["loss"])))


@pytest.mark.parametrize(("outputs", "found"), [(2, "0 to 2 found, 0 to 1"), (1, "0 to 2 found, 0 to 0")])
def test_targets_beyond_the_classes_are_an_error(outputs, found):
    net = opened(mlp(outputs), labelled())
    with pytest.raises(InputError, match=f"cross-entropy: targets from {found} expected"):
        Finetune(**QUICK).run(net)


@pytest.mark.parametrize("shape", ["N,1", "N", "N,3"])
def test_a_network_learns_from_the_original_alone_whatever_its_outputs_are(shape):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(1)

        def forward(self, x):
            return self.inner(x)[:, 0]

    module = {"N,1": mlp(1), "N": Flat(), "N,3": mlp()}[shape]
    net = opened(module, Data(items()))
    Quantize(bits=2).run(net)
    said = Finetune(**{**QUICK, "distill": 1.0, "epochs": 10}).run(net)
    assert said["loss"][-1] < 0.7 * said["loss"][0]
    assert len(said["validation"]) == 10


def test_a_class_alone_has_nothing_to_diverge():
    net = opened(mlp(1), Data(items(), TensorDataset(items().tensors[0], torch.zeros(64).long()), "accuracy"))
    with pytest.raises(InputError, match=r"distillation: outputs \(16, 1\) found, logits"):
        Finetune(**{**QUICK, "distill": 1.0}).run(net)


def raises(*_):
    raise KeyError("boom")


def vector(outputs, _):
    return outputs[:, 0]


def number(outputs, _):
    return 1.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "test_unusual:raises"}, r"loss test_unusual:raises: KeyError: 'boom'"),
        ({"loss": "test_unusual:vector"}, r"loss test_unusual:vector: a tensor \(16,\) found, a scalar"),
        ({"loss": "test_unusual:number"}, r"loss test_unusual:number: a float found, a scalar"),
        ({"augment": "test_unusual:raises"}, r"augment test_unusual:raises: KeyError: 'boom'"),
    ],
)
def test_what_is_wrong_with_functions_of_the_user_is_said(settings, words):
    with pytest.raises(InputError, match=words):
        Finetune(**QUICK, **settings).run(opened(mlp(), labelled()))


@pytest.mark.parametrize("steps", [(), (Quantize(bits=4),), (QuantizeActivations(samples=32),)])
def test_embeddings_with_sparse_gradients_learn(steps):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(20, 8, sparse=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.words(x).mean(1))

    words = torch.randint(20, (64, 5), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(words, words[:, 0] % 3)
    module = Words()
    net = opened(module, Data(data, data, "accuracy"), words[:2])
    for step in steps:
        step.run(net)
    before = net.form("words.weight").dense() if net.form("words.weight") else net.tensors["words.weight"].clone()
    Finetune(**QUICK).run(net)
    after = net.form("words.weight").dense() if net.form("words.weight") else net.tensors["words.weight"]
    assert not torch.equal(after, before)
    assert module.words.sparse


def test_frozen_weights_go_on_no_grid_for_training():
    module = mlp()
    module[0].requires_grad_(False)
    net = opened(module, labelled())
    RateTrain(**{**QUICK, "price": 1e-6}).run(net)
    assert "0.weight" not in net.forms
    assert "0.bias" not in net.forms
    assert "2.weight" in net.forms


@pytest.mark.parametrize(
    ("share", "epochs", "still"), [(0.7, 10, 7), (0.3, 10, 3), (0.5, 3, 1), (1.0, 3, 3), (0.0, 3, 0)]
)
def test_the_last_epochs_are_frozen(monkeypatch, share, epochs, still):
    frozen = []
    monkeypatch.setattr(Trainee, "freeze", lambda self: frozen.append(True))
    train(opened(mlp(), labelled()), Plan(**{**QUICK, "epochs": epochs, "frozen": share}))
    assert len(frozen) == still


def test_a_curve_trains_for_each_of_its_quantisers(tmp_path):
    """Literals of operations are in no state: a training made for others must not be taken for this one's."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[[step]]\ndo = "quantize-activations"\nsamples = 32\n[[step]]\ndo = "finetune"\nscales = 0.0\nepochs = 2\n'
        'batch = 16\nrate = 0.01\noptimiser = "adam"\nchoose = "last"\n'
        '[dial]\nset = "quantize-activations.bits"\nvalues = [8, 2]\n'
    )
    data, alone = labelled(), {}
    for bits in (8, 2):
        out = tmp_path / f"{bits}.dcz"
        deepcomp.compress(mlp(), out, recipe=recipe, data=data, settings={"quantize-activations.bits": bits})
        alone[bits] = evaluate(deepcomp.load(out), data).value
    deepcomp.compress(mlp(), tmp_path / "c.dcz", recipe=recipe, data=data, pareto=tmp_path / "c.json", max_drop=99)
    points = json.loads((tmp_path / "c.json").read_text())["points"]
    assert {point["value"]: point["quality"] for point in points} == pytest.approx(alone)


def test_modules_that_cannot_be_copied_are_an_error():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.cache = self.inner[0].weight * 2

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(InputError, match=r"^Cached cannot be copied: "):
        Finetune(**QUICK).run(opened(Cached(), labelled()))


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_targets_that_are_no_tensors_are_an_error(loss):
    data = [(x, (target, target)) for x, target in items()]
    with pytest.raises(InputError, match=rf"{loss}: targets of tuple found, a tensor expected"):
        Finetune(**QUICK, loss=loss).run(opened(mlp(), Data(data)))


@pytest.mark.parametrize("stored", [False, True])
def test_buffers_of_which_all_elements_are_one_are_no_obstacle(stored):
    class Expanded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.register_buffer("ones", torch.ones(1).expand(3))

        def forward(self, x):
            return self.inner(x) * self.ones

    net = opened(Expanded(), labelled())
    if stored:
        Store(dtype="float16", vectors=True).run(net)
    Finetune(**QUICK).run(net)
    assert torch.equal(net.module.state_dict()["ones"], torch.ones(3))
