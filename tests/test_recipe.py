"""Recipes: what is written is what runs, and nothing unknown passes."""

import pytest

from deepcomp.errors import UsageError
from deepcomp.recipe import Recipe, names
from deepcomp.steps import STEPS


@pytest.mark.parametrize("name", names())
def test_every_built_in_recipe_loads_and_its_dial_turns(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    if recipe.dial:
        key, values = recipe.dial
        for value in values:
            assert Recipe.load(name, {key: value}).value(key) == value


def test_settings_replace_values_in_every_step_of_that_name():
    text = "[[step]]\ndo = 'quantize'\nbits = 4\n[[step]]\ndo = 'quantize'\nlayers = 'fc*'\nbits = 2"
    assert [step.bits for step in Recipe.parse(text, "x", {"quantize.bits": 6}).steps] == [6, 6]


def test_a_whole_number_will_do_for_a_float():
    assert Recipe.load("deep-compression", {"prune.density": 1}).value("prune.density") == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[step]]\ndo = 'nope'", "'nope' is not known"),
        ("[[step]]\nbits = 3", "None is not known"),
        ("[[step]]\ndo = 'quantize'\nbit = 3", "quantize.bit is not known"),
        ("[[step]]\ndo = 'quantize'\nbits = '3'", "quantize.bits = '3': int expected"),
        ("[[step]]\ndo = 'quantize'\nbits = true", "int expected"),
        ("[[step]]\ndo = 'prune'\ndensity = 1.5", "prune.density"),
        ("[[step]]\ndo = 'share'\nvalues = 70000", "2 to 65536"),
        ("steps = 3", "'steps' is not known"),
        ("step = 3", r"\[\[step\]\]"),
        ("[[step", "recipe x"),
        ("[dial]\nset = 'a.b'", "dial"),
        ("[dial]\nset = 'a.b'\nvalues = [1]", "a.b"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(text, words):
    with pytest.raises(UsageError, match=words):
        Recipe.parse(text, "x")


@pytest.mark.parametrize("key", ["no.such", "quantize.nope", "bits", "quantize", "quantize.do"])
def test_unknown_settings_are_refused_by_name(key):
    with pytest.raises(UsageError, match=key):
        Recipe.load("uniform", {key: 1})


def test_unknown_recipe_lists_those_there_are():
    with pytest.raises(UsageError, match=r"no-such.*deep-compression, .*lossless, uniform"):
        Recipe.load("no-such")


def test_every_step_names_its_idea():
    for do, step in STEPS.items():
        assert step.do == do
        assert step.__doc__


PRUNE = "[[step]]\ndo = 'prune'\n"


def test_steps_marked_for_data_are_taken_with_data_only():
    text = PRUNE + "when = 'data'\ndensity = 0.1\n" + PRUNE + "when = 'no-data'\n[[step]]\ndo = 'share'"
    assert [step.do for step in Recipe.parse(text, "x").steps] == ["prune", "share"]
    assert Recipe.parse(text, "x").value("prune.density") == 0.5
    assert Recipe.parse(text, "x", data=True).value("prune.density") == 0.1
    with pytest.raises(UsageError, match=r"prune\.when = 'never': data or no-data"):
        Recipe.parse(PRUNE + "when = 'never'", "x")


def test_a_setting_may_be_a_table_of_layers():
    step = Recipe.parse(PRUNE + "density = { conv1 = 1, 'fc*' = 0.1 }", "x").steps[0]
    assert step.density == {"conv1": 1.0, "fc*": 0.1}
    with pytest.raises(UsageError, match=r"density\.conv1 = 'all': float expected"):
        Recipe.parse(PRUNE + "density = { conv1 = 'all' }", "x")
    with pytest.raises(UsageError, match="float or table expected"):
        Recipe.parse(PRUNE + "density = 'all'", "x")


def test_the_training_between_rounds_is_a_table_and_its_settings_can_be_replaced():
    text = PRUNE + "rounds = 3\nretrain = { epochs = 2, dropout = { fc1 = 0.1 } }"
    step = Recipe.parse(text, "x", {"prune.retrain.rate": 1}).steps[0]
    assert (step.retrain.epochs, step.retrain.rate, step.retrain.dropout) == (2, 1.0, {"fc1": 0.1})
    assert Recipe.parse(text, "x").steps[0].retrain.rate == 0.01
    with pytest.raises(UsageError, match=r"retrain\.epoch is not known"):
        Recipe.parse(text, "x", {"prune.retrain.epoch": 1})
    with pytest.raises(UsageError, match=r"prune\.rounds = 3: 1 expected"):
        Recipe.parse(PRUNE + "rounds = 3", "x")
