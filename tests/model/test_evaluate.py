from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import deepcomp
from deepcomp.errors import InputError, UsageError
from deepcomp.model import zoo
from deepcomp.model.data import Data, Pairs
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import IGNORED, Score, call, drop, evaluate, output_change


class Table(nn.Module):
    """Looks the output of item i up: any outputs at all, for inputs that are indices."""

    def __init__(self, outputs):
        super().__init__()
        self.register_buffer("outputs", outputs)

    def forward(self, index):
        return self.outputs[index]


def tabled(outputs, targets, metric):
    """A network that answers `outputs`, and the data on which it does."""
    test = Pairs(torch.arange(len(targets)), targets)
    return Table(outputs), Data(test, test, metric)


# accuracy, perplexity, metrics of the user's own


def test_accuracy_is_the_percentage_of_right_answers_over_all_batches(randn):
    outputs = randn(1000, 7)
    targets = outputs.argmax(1)
    targets[::8] = (targets[::8] + 1) % 7
    score = evaluate(*tabled(outputs, targets, "accuracy"))
    assert score == Score("accuracy", 87.5, higher_is_better=True)


def test_accuracy_of_sequences_leaves_ignored_targets_out(randn):
    outputs = randn(10, 6, 5)
    targets = outputs.argmax(-1)
    targets[:, 3:] = IGNORED
    targets[:5, 0] = (targets[:5, 0] + 1) % 5
    assert evaluate(*tabled(outputs, targets, "accuracy")).value == pytest.approx(100 * 25 / 30)


def test_perplexity_of_a_uniform_guess_is_the_size_of_the_vocabulary():
    score = evaluate(*tabled(torch.zeros(300, 6, 11), torch.randint(11, (300, 6)), "perplexity"))
    assert (score.name, score.higher_is_better) == ("perplexity", False)
    assert score.value == pytest.approx(11, rel=1e-6)


def test_perplexity_weighs_tokens_not_batches(randn):
    """300 items leave a last batch that is smaller, and the ignored tokens make them uneven too."""
    outputs, targets = randn(300, 4, 9), torch.randint(9, (300, 4))
    targets[:200, 1:] = IGNORED
    counted = targets != IGNORED
    chosen = outputs.double().log_softmax(-1)[counted].gather(1, targets[counted][:, None])
    score = evaluate(*tabled(outputs, targets, "perplexity"))
    assert score.value == pytest.approx(math.exp(-chosen.mean()), rel=1e-6)


def test_hopeless_perplexity_is_infinite_not_an_overflow():
    outputs = torch.tensor([[0.0, 2000.0]])
    assert evaluate(*tabled(outputs, torch.tensor([0]), "perplexity")).value == math.inf


def test_a_metric_of_the_users_own_sees_the_whole_test_set_once(randn):
    seen = []

    def largest_error(outputs, targets):
        seen.append((outputs.shape, targets.shape))
        return (outputs - targets).abs().max()

    largest_error.higher_is_better = False
    outputs, targets = randn(700, 2), randn(700, 2)
    score = evaluate(*tabled(outputs, targets, largest_error))
    assert score == Score("largest_error", float((outputs - targets).abs().max()), higher_is_better=False)
    assert seen == [((700, 2), (700, 2))]


def test_a_metric_object_is_named_after_its_class(randn):
    class TopHalf:
        higher_is_better = True

        def __call__(self, outputs, targets):
            return 0.5

    assert evaluate(*tabled(randn(3, 2), randn(3), TopHalf())) == Score("TopHalf", 0.5, higher_is_better=True)


def test_a_metric_that_is_not_a_number_is_an_error(randn):
    def broken(outputs, targets):
        return float("nan")

    broken.higher_is_better = True
    with pytest.raises(InputError, match=r"broken.*NaN"):
        evaluate(*tabled(randn(3, 2), randn(3), broken))


def test_data_without_a_metric_cannot_be_evaluated(randn):
    with pytest.raises(UsageError, match="metric"):
        evaluate(*tabled(randn(3, 2), torch.zeros(3), None))


def test_nan_weights_behind_nan_outputs_are_named():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    items = [(torch.ones(4), torch.tensor(0))] * 8
    with torch.no_grad():
        net[1].weight[0, 1] = math.nan
    with pytest.raises(InputError, match=r"8 of 24 outputs of a batch are NaN; so are 1 of 9 values of 1\.weight$"):
        evaluate(net, Data(items, items, "accuracy"))


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
@pytest.mark.parametrize(
    ("outputs", "targets", "words"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long), r"\(4, 3\).*\(4, 1\)"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"\(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4), "float32 targets"),
        (torch.zeros(4, 3), torch.full((4,), IGNORED), "no target"),
        (torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long), "12 of 12 outputs .*NaN"),
    ],
)
def test_outputs_that_do_not_suit_the_metric_are_named(metric, outputs, targets, words):
    with pytest.raises(InputError, match=words) as caught:
        evaluate(*tabled(outputs, targets, metric))
    assert "\n" not in str(caught.value)


def test_perplexity_refuses_a_token_beyond_the_vocabulary():
    with pytest.raises(InputError, match=r"0 to 3 found, 0 to 2 expected"):
        evaluate(*tabled(torch.zeros(2, 3), torch.tensor([0, 3]), "perplexity"))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.booleans())
def test_drop_is_positive_exactly_where_it_got_worse(a, b, higher):
    before, after = Score("m", a, higher), Score("m", b, higher)
    assert (drop(before, after) > 0) == (b < a if higher else b > a)
    assert drop(before, after) == -drop(after, before)


# the checkpoints


CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


@pytest.mark.parametrize(
    ("name", "data", "limit"),
    [
        ("digits-cnn", "digits", 2.0),
        ("lenet-300-100", "mnist", 1.7),
        ("lenet-5", "mnist", 0.9),
        pytest.param("mobilenet-cifar", "cifar10", 20.0, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_has_the_error_its_metadata_says(request, name, data, limit):
    path = CHECKPOINTS / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["training"])
    found = load_data(data, None if data == "digits" else request.getfixturevalue("data_dir"))
    model = zoo.build(name)
    model.load_state_dict(load_file(path), strict=True)
    error = 100 - evaluate(model, found).value
    assert error <= limit
    assert error == pytest.approx(facts["test_error"], abs=1.5 * 100 / len(found.test))  # one image may round over


@pytest.mark.parametrize(("name", "limit", "ratio"), [("lenet-300-100", 1.65, 210), ("lenet-5", 0.9, 1100)])
def test_a_smallest_file_runs_in_a_fresh_process_and_keeps_its_bounds(data_dir, name, limit, ratio):
    path = CHECKPOINTS / f"{name}.smallest.dcz"
    command = [sys.executable, "-m", "deepcomp", "evaluate", str(path), "--data", "mnist", "--json"]
    said = subprocess.run([*command, "--data-dir", str(data_dir)], check=True, capture_output=True, text=True).stdout
    assert 100 - json.loads(said)["value"] <= limit
    assert (CHECKPOINTS / f"{name}.safetensors").stat().st_size / path.stat().st_size >= ratio


@pytest.mark.slow
@pytest.mark.parametrize(("name", "perplexity"), [("lstm-wikitext2", 124.36), ("transformer-wikitext2", 131.43)])
def test_a_language_model_has_the_perplexity_its_table_says(data_dir, name, perplexity):
    model = deepcomp.load(CHECKPOINTS / f"{name}.dcz")
    assert evaluate(model, load_data("wikitext2", data_dir)).value == pytest.approx(perplexity, abs=0.02)


@pytest.mark.parametrize("name", ["lstm-wikitext2", "transformer-wikitext2"])
def test_a_language_model_is_float32_that_float16_holds(name):
    weights = deepcomp.load_state_dict(CHECKPOINTS / f"{name}.dcz")
    assert weights.keys() == zoo.build(name).state_dict().keys()
    for tensor in weights.values():
        assert tensor.dtype == torch.float32
        assert tensor.half().float().equal(tensor)


# how a module is called


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y, y + 1),
        lambda y: {"hidden": y + 1, "logits": y},
        lambda y: SimpleNamespace(hidden=y + 1, logits=y),
        lambda y: {"last": y},
        lambda y: (None, y),
    ],
    ids=["tensor", "tuple", "dict", "object", "first-of-dict", "first-of-tuple"],
)
def test_the_leading_output_is_the_logits_or_the_first_tensor(randn, wrap):
    class Wrapped(nn.Module):
        def forward(self, x):
            return wrap(x)

    x = randn(2, 3)
    assert call(Wrapped(), x).equal(x)


def test_an_output_without_a_tensor_is_named():
    class Speechless(nn.Module):
        def forward(self, x):
            return "nothing"

    with pytest.raises(InputError, match="Speechless: a str without a tensor"):
        call(Speechless(), torch.zeros(1))


def test_tuples_are_positional_and_dicts_keyword_arguments(randn):
    class Difference(nn.Module):
        def forward(self, left, right):
            return left - right

    a, b = randn(2, 3), randn(2, 3)
    assert call(Difference(), (a, b)).equal(a - b)
    assert call(Difference(), {"right": a, "left": b}).equal(b - a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_take_the_floating_type_of_the_module(randn, dtype):
    assert call(nn.Linear(3, 2).to(dtype), randn(4, 3)).dtype == dtype
    assert call(nn.Embedding(5, 2).to(dtype), torch.tensor([1, 4])).dtype == dtype


def test_long_sequences_go_through_in_small_batches():
    class Counting(nn.Module):
        largest = 0

        def forward(self, x):
            self.largest = max(self.largest, len(x))
            return torch.zeros(*x.shape, 3)

    for length, largest in ((1, 64), (512, 4), (5000, 1)):
        model, test = Counting(), Pairs(*2 * [torch.zeros(70, length, dtype=torch.long)])
        assert evaluate(model, Data(test, test, "perplexity")).value == pytest.approx(3)
        assert model.largest == largest


def test_evaluation_leaves_modes_gradients_and_statistics_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    data = Data([(torch.randn(4), 0)] * 5, [(torch.randn(4), 1)] * 5, "accuracy")
    assert evaluate(model, data) == evaluate(model, data)
    assert [part.training for part in model.modules()] == modes
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


class Broken(nn.Module):
    def forward(self, x):
        return {"a": x}["b"]


def broken_metric(outputs, targets):
    return 1 / 0


def wordy_metric(outputs, targets):
    return "good"


broken_metric.higher_is_better = wordy_metric.higher_is_better = True


class BrokenItems:
    """A data set of four items of which the third cannot be read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise OSError("no such\nimage")
        return torch.zeros(3), torch.tensor(0)


GOOD = Pairs(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("module", "test", "metric", "words"),
    [
        (Broken(), GOOD, "accuracy", "^Broken does not run on this data: KeyError: 'b'$"),
        (nn.Identity(), GOOD, broken_metric, "^metric broken_metric: ZeroDivisionError: division by zero$"),
        (nn.Identity(), GOOD, wordy_metric, "^metric wordy_metric: ValueError: could not convert"),
        (nn.Identity(), BrokenItems(), "accuracy", "^data set: items 0 to 3 .*: OSError: no such image$"),
        (nn.Identity(), [(torch.zeros(3), "cat")] * 2, "accuracy", "^data set: targets of list found, a tensor expec"),
        (nn.Identity(), [(torch.zeros(i + 1), 0) for i in range(2)], "accuracy", "^data set: items 0 to 1 do not form"),
    ],
)
def test_errors_of_the_users_own_code_are_one_line_that_says_whose_they_are(module, test, metric, words):
    with pytest.raises(InputError, match=words) as caught:
        evaluate(module, Data(GOOD, test, metric))
    assert "\n" not in str(caught.value)


def test_outputs_of_different_lengths_are_said_to_be_the_metrics_trouble():
    class Uneven(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), len(x))

    test = Pairs(torch.zeros(65, 3), torch.zeros(65))
    with pytest.raises(InputError, match=r"^metric wordy_metric: RuntimeError: Sizes of tensors must match"):
        evaluate(Uneven(), Data(test, test, wordy_metric))


def test_modes_come_back_after_an_error():
    model = nn.Linear(2, 2).train()
    data = Data([(torch.zeros(2), 0)], [(torch.zeros(3), 0)], "accuracy")
    with pytest.raises(InputError, match="Linear does not run on this data"):
        evaluate(model, data)
    assert model.training
    assert torch.is_grad_enabled()


# change of the outputs


def test_a_network_does_not_differ_from_itself():
    model = zoo.build("digits-cnn")
    assert output_change(model, model, load_data("digits")) == 0


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, -1.0])
def test_outputs_scaled_by_a_factor_moved_by_one_minus_it(randn, factor):
    outputs = randn(600, 5)
    before, data = tabled(outputs, torch.zeros(600), None)
    assert output_change(before, Table(factor * outputs), data) == pytest.approx(abs(1 - factor), rel=1e-6)


def test_change_reads_no_more_than_count_items_of_the_test_set_where_there_is_one():
    class Counting(nn.Module):
        seen = 0

        def forward(self, x):
            assert x.min() >= 0
            self.seen += len(x)
            return x

    before, after = Counting(), Counting()
    train, test = Pairs(torch.full((500, 2), -1.0), torch.zeros(500)), Pairs(torch.ones(500, 2), torch.zeros(500))
    output_change(before, after, Data(train, test), count=300)
    assert (before.seen, after.seen) == (300, 300)
    output_change(before, after, Data(test), count=1000)
    assert before.seen == 800


def test_change_of_masked_logits_ignores_what_was_infinite(randn):
    outputs = randn(30, 4)
    outputs[:, 2] = -math.inf
    before, data = tabled(outputs, torch.zeros(30), None)
    assert output_change(before, before, data) == 0
    assert output_change(before, Table(torch.full((30, 4), math.inf)), data) == math.inf


def test_change_from_nothing_to_something_is_infinite():
    before, data = tabled(torch.zeros(3, 2), torch.zeros(3), None)
    assert output_change(before, Table(torch.ones(3, 2)), data) == math.inf
    assert output_change(before, before, data) == 0


@pytest.mark.parametrize(
    ("after", "words"), [(torch.zeros(3, 4), r"\(3, 4\) found"), (torch.full((3, 2), math.nan), "NaN")]
)
def test_outputs_that_cannot_be_compared_are_named(after, words):
    before, data = tabled(torch.ones(3, 2), torch.zeros(3), None)
    with pytest.raises(InputError, match=words):
        output_change(before, Table(after), data)
