"""Training: what is pruned stays zero, what is shared stays shared, and a seed decides the rest."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from deepcomp.errors import InputError, UsageError
from deepcomp.model.data import Data
from deepcomp.steps.prune import Prune
from deepcomp.steps.quantize import Quantize
from deepcomp.steps.share import Share
from deepcomp.steps.store import Store
from deepcomp.training import Plan, train
from deepcomp.training.loop import split
from deepcomp.training.trainee import Trainee
from deepcomp.weights import Codebook, Mask

QUICK = Plan(epochs=3, batch=32, rate=0.05)


class Recurrent(nn.Module):
    """An LSTM and a linear layer over its last state."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 12, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.lstm(x.reshape(len(x), 4, 2))[0][:, -1])


class Attention(nn.Module):
    """One encoder layer with dropout and layer norm."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 16, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.layer(x.reshape(len(x), 4, 2)).flatten(1))


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_pruned_weights_stay_zero_and_survivors_move(net, optimiser):
    Prune(density=0.3).run(net)
    before = {name: form.dense().clone() for name, form in net.forms.items()}
    train(net, Plan(epochs=2, batch=16, rate=0.02, decay=1e-3, optimiser=optimiser))
    for name, old in before.items():
        new = net.form(name).dense()
        assert torch.equal(new[old == 0], old[old == 0])
        assert (new[old != 0] != old[old != 0]).float().mean() > 0.9
        assert torch.equal(net.module.get_parameter(name), new)


def test_training_leaves_the_weights_it_was_given_as_they_are(net):
    given = {name: tensor.clone() for name, tensor in net.tensors.items()}
    held, own = dict(net.tensors), dict(net.module.named_parameters())
    Quantize(bits=4).run(net)
    Store(layers="*.bias").run(net)
    train(net, QUICK)
    for name, tensor in given.items():
        assert torch.equal(held[name], tensor)
        assert torch.equal(own[name], tensor)


@pytest.mark.parametrize("module", [Recurrent, Attention])
def test_recurrent_and_attention_weights_train_under_a_mask(make_net, module):
    net = make_net(module())
    Prune(density=0.4).run(net)
    before = {name: form.dense().clone() for name, form in net.forms.items()}
    said = train(net, QUICK)
    assert said["loss"][-1] < said["loss"][0]
    for name, old in before.items():
        assert torch.equal(net.form(name).dense() == 0, old == 0)
        assert not torch.equal(net.form(name).dense(), old)


def test_shared_weights_stay_shared(net):
    Prune(density=0.5).run(net)
    Share(values=4).run(net)
    before = {name: (form.inner.index.clone(), form.inner.values.clone()) for name, form in net.forms.items()}
    train(net, QUICK)
    for name, (index, values) in before.items():
        inner = net.form(name).inner
        assert isinstance(inner, Codebook)
        assert torch.equal(inner.index, index)
        assert not torch.equal(inner.values, values)


def test_a_centroid_gets_the_sum_of_its_members_gradients_and_nothing_from_the_pruned(net, data):
    Prune(density=0.5).run(net)
    Share(values=4).run(net)
    x, y = data.train[:64]
    trainee = Trainee(net)
    nn.functional.cross_entropy(trainee(x), y).backward()
    plain = copy.deepcopy(net.module)
    with torch.no_grad():
        for name, form in net.forms.items():
            plain.get_parameter(name).copy_(form.dense())
    nn.functional.cross_entropy(plain(x), y).backward()
    for name, form in net.forms.items():
        gradient = plain.get_parameter(name).grad.reshape(-1)[form.positions]
        for k in range(4):
            total = gradient[form.inner.index.reshape(-1) == k].sum()
            assert form.inner.values.grad[k] == pytest.approx(float(total), abs=1e-6)


def test_biases_and_unpruned_weights_train_too_and_the_users_module_does_not(net):
    module = net.module
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    Prune(density=0.5, layers="0").run(net)
    train(net, QUICK)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert net.module is not module
    for name in ("0.bias", "2.weight", "2.bias"):
        assert not torch.equal(net.tensors[name], state[name])
        assert torch.equal(net.tensors[name], net.module.state_dict()[name])


def test_layers_and_skip_say_what_trains(net):
    before = {name: tensor.clone() for name, tensor in net.tensors.items()}
    Prune(density=0.5).run(net)
    pruned = net.form("2.weight").dense().clone()
    train(net, QUICK, layers="0.*", skip="*.bias")
    assert torch.equal(net.tensors["0.bias"], before["0.bias"])
    assert torch.equal(net.form("2.weight").dense(), pruned)
    assert not torch.equal(net.form("0.weight").dense(), before["0.weight"] * (net.form("0.weight").dense() != 0))
    with pytest.raises(UsageError, match="no parameter to train"):
        train(net, QUICK, skip="*")


def test_tied_weights_train_as_one(make_net):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.out(torch.relu(self.b(torch.relu(self.a(x)))))

    for prune in (True, False):
        net = make_net(Twice())
        if prune:
            Prune(density=0.5).run(net)
        before = net.module.a.weight.clone()
        train(net, QUICK)
        assert net.module.a.weight is net.module.b.weight
        assert not torch.equal(net.module.a.weight, before)
        if not prune:
            assert torch.equal(net.tensors["b.weight"], net.tensors["a.weight"])


def test_batch_norm_statistics_train_too(make_net):
    net = make_net(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)))
    train(net, QUICK)
    assert int(net.tensors["1.num_batches_tracked"]) > 0
    assert not torch.equal(net.tensors["1.running_mean"], torch.zeros(16))


def test_training_is_decided_by_the_seed(make_net):
    def result(seed):
        net = make_net(seed=seed)
        torch.manual_seed(17 * seed + 5)  # whatever was drawn before
        Prune(density=0.5).run(net)
        train(net, QUICK)
        return net.form("0.weight").dense()

    assert torch.equal(result(0), result(0))
    assert not torch.equal(result(0), result(1))


def test_the_best_epoch_on_held_out_items_is_kept_and_of_equals_the_later(net):
    said = train(net, Plan(epochs=6, batch=8, rate=0.5, schedule="constant"))
    best = max(said["validation"])
    assert said["chosen"] == max(i + 1 for i, score in enumerate(said["validation"]) if score == best)
    last = train(net, Plan(epochs=2, batch=8, rate=0.5, choose="last"))
    assert last["chosen"] == 2


def test_no_epochs_leave_the_network_as_it_is(net):
    before = {name: tensor.clone() for name, tensor in net.tensors.items()}
    train(net, Plan(epochs=0))
    assert all(torch.equal(net.tensors[name], tensor) for name, tensor in before.items())


def test_held_out_items_are_the_last_ones_a_tenth_at_most_or_the_sets_own(data):
    items, held = split(data, 30)
    assert (len(items), len(held)) == (370, 30)
    assert torch.equal(held[0][0], data.train[370][0])
    assert len(split(data, 5000)[1]) == 40
    own = Data(data.train, None, None, data.test)
    assert split(own, 30) == (own.train, own.validation)
    tiny = Data(Subset(data.train, range(5)))
    assert split(tiny, 30) == (tiny.train, tiny.train)


def test_without_a_metric_the_loss_judges(make_net, data):
    x, _ = data.train[:]
    unlabelled = Data(TensorDataset(x, x @ torch.ones(8, 3)))
    net = make_net(data=unlabelled)
    with pytest.raises(UsageError, match="loss = auto"):
        train(net, QUICK)
    said = train(net, Plan(epochs=8, rate=0.05, loss="mse"))
    assert said["validation"][-1] < said["validation"][0]


def test_distillation_needs_no_labels(make_net, data):
    x, _ = data.train[:]
    net = make_net(data=Data(TensorDataset(x, torch.zeros(len(x), dtype=torch.long)), data.test, "accuracy"))
    with torch.no_grad():
        net.teacher[2].weight.mul_(20)  # outputs as far apart as those of a trained network
        Prune(density=0.5).run(net)
        wanted = net.teacher(x).argmax(1)
        before = (Trainee(net)(x).argmax(1) == wanted).float().mean()
        train(net, Plan(epochs=30, rate=0.02, distill=1.0, choose="last"))
        assert (net.module(x).argmax(1) == wanted).float().mean() > (1 + before) / 2


def test_what_cannot_be_trained_is_said(net, make_net, data):
    with pytest.raises(UsageError, match="needs data"):
        train(make_net(data=None), QUICK)
    with pytest.raises(InputError, match="the loss is"):
        train(net, Plan(epochs=3, rate=1e12, schedule="constant"))
    wrong = TensorDataset(torch.randn(40, 8), torch.randn(40, 3))
    with pytest.raises(InputError, match="cross-entropy: outputs"):
        train(make_net(data=Data(wrong, wrong, "accuracy")), QUICK)
    net = make_net()
    net.teacher = None
    with pytest.raises(UsageError, match="needs the uncompressed network"):
        train(net, Plan(distill=0.5))
    net.module = None
    with pytest.raises(UsageError, match="weights alone"):
        train(net, QUICK)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"optimiser": "lion"}, "sgd, adam"),
        ({"schedule": "steps"}, "constant, linear"),
        ({"loss": "hinge"}, "cross-entropy"),
        ({"augment": "mixup"}, "flip-crop"),
        ({"batch": 0}, "batch = 0"),
        ({"distill": 2.0}, "distill"),
        ({"dropout": {"fc1": 1.0}}, "dropout of fc1"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, words):
    with pytest.raises(UsageError, match=words):
        Plan(**setting)


def test_masks_lie_over_what_trained(net):
    Prune(density=0.5).run(net)
    train(net, QUICK)
    Share(values=8).run(net)
    form = net.form("0.weight")
    assert isinstance(form, Mask)
    assert form.positions.numel() == 96
