"""Recipes: what is written is what runs, and nothing unknown passes."""

import dataclasses
import re

import pytest

from deepcomp.errors import UsageError
from deepcomp.recipe import Dial, Recipe, names
from deepcomp.steps import STEPS


@pytest.mark.parametrize("name", names())
def test_every_built_in_recipe_loads_and_its_dial_turns(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    if recipe.dial:
        for value in recipe.dial.values:
            assert Recipe.load(name, {recipe.dial.set: value}).value(recipe.dial.set) == value


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
        ("[[step]]\ndo = 'quantize'\nbits = '3'", "quantize.bits = '3': int or table expected"),
        ("[[step]]\ndo = 'quantize'\nbits = true", "int or table expected"),
        ("[[step]]\ndo = 'prune'\ndensity = 1.5", "prune.density"),
        ("[[step]]\ndo = 'share'\nvalues = 70000", "2 to 65536"),
        ("steps = 3", "'steps' is not known"),
        ("step = 3", r"\[\[step\]\]"),
        ("[[step", "recipe x"),
        ("[dial]\nset = 'a.b'", "dial"),
        ("[dial]\nset = 'a.b'\nvalues = [1]", "a.b"),
        ("[dial]\nset = 3\nvalues = [1]", "dial"),
        ("[dial]\nset = 'a.b'\nvalues = 3", "dial"),
        ("dial = 3", "dial"),
        ("[dial]\nset = 'a.b'\nvalues = [1]\nshape = 'a.c'", "dial"),
        ("[[step]]\ndo = 'allocate'\n[dial]\nset = 'allocate.share'\nvalues = [0.1]\nsize = 'allocate.no'", "no"),
        ("[[step]]\ndo = 'allocate'\n[dial]\nset = 'allocate.share'\nvalues = [0.1]\nsize = 3", "dial"),
        ("[[step]]\ndo = 'quantize'\n[dial]\nset = 'quantize.bits'\nvalues = []", "dial"),
        ("[[step]]\ndo = 'quantize'\n[dial]\nset = 'quantize.bits'\nvalues = [8, 20]", "bits = 20"),
        ("[[step]]\ndo = ['x']", r"\['x'\] is not known"),
        ("[[step]]\ndo = 'prune'\nwhen = ['data']", "prune.when"),
        ("[[step]]\ndo = 'quantize'\nbits = [8]", "quantize.bits = "),
        ("[[step]]\ndo = 'prune'\nretrain = 3", "prune.retrain = 3"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(text, words):
    with pytest.raises(UsageError, match=words):
        Recipe.parse(text, "x")


@pytest.mark.parametrize("key", ["no.such", "quantize.nope", "bits", "quantize", "quantize.do", "quantize.when"])
def test_unknown_settings_are_refused_by_name(key):
    with pytest.raises(UsageError, match=key):
        Recipe.load("uniform", {key: 1})


def test_unknown_recipe_lists_those_there_are():
    with pytest.raises(UsageError, match=r"no-such.*deep-compression, .*lossless, .*uniform"):
        Recipe.load("no-such")


def test_every_step_names_its_idea():
    for do, step in STEPS.items():
        assert step.do == do
        assert not (step.__doc__ or "").startswith(f"{step.__name__}("), f"{do}: the docstring that dataclasses make up"
        settings = {field.name for field in dataclasses.fields(step)} - {"layers", "skip"}
        inherited = "".join(base.__doc__ or "" for base in step.__mro__)
        assert all(re.search(rf"^ +[\w, ]*\b{name}\b[\w, ]* : ", inherited, re.M) for name in settings), do


PRUNE = "[[step]]\ndo = 'prune'\n"


def test_steps_marked_for_data_are_taken_with_data_only():
    text = PRUNE + "when = 'data'\ndensity = 0.1\n" + PRUNE + "when = 'no-data'\n[[step]]\ndo = 'share'"
    assert [step.do for step in Recipe.parse(text, "x").steps] == ["prune", "share"]
    assert Recipe.parse(text, "x").value("prune.density") == 0.5
    assert Recipe.parse(text, "x", data=True).value("prune.density") == 0.1
    with pytest.raises(UsageError, match=r"prune\.when = 'never': data or no-data"):
        Recipe.parse(PRUNE + "when = 'never'", "x")


def test_settings_go_to_the_steps_that_are_taken_alone():
    step = Recipe.load("deep-compression", {"prune.rounds": 2}, data=True).steps[0]
    assert (step.do, step.rounds) == ("prune", 2)
    with pytest.raises(UsageError, match=r"'finetune.epochs'.* without data has the steps: prune, share"):
        Recipe.load("deep-compression", {"finetune.epochs": 2})
    Recipe.load("deep-compression", {"finetune.epochs": 2}, data=True)


@pytest.mark.parametrize("data", [True, False])
def test_what_is_wrong_with_a_step_that_is_not_taken_is_said_too(data):
    for when in ("data", "no-data"):
        with pytest.raises(UsageError, match=r"quantize\.bit is not known"):
            Recipe.parse(f"{PRUNE}[[step]]\ndo = 'quantize'\nwhen = '{when}'\nbit = 3", "x", data=data)


def test_a_dial_turns_where_its_step_is_taken():
    text = f"{PRUNE}when = 'data'\n[[step]]\ndo = 'share'\n[dial]\nset = 'prune.density'\nvalues = [0.5, 0.1]"
    assert Recipe.parse(text, "x").dial is None
    assert Recipe.parse(text, "x", data=True).dial == Dial("prune.density", [0.5, 0.1])


def test_a_dial_may_name_a_setting_that_takes_a_size():
    text = "[[step]]\ndo = 'allocate'\n[dial]\nset = 'allocate.share'\nvalues = [0.2, 0.1]\nsize = 'allocate.size'"
    assert Recipe.parse(text, "x").dial == Dial("allocate.share", [0.2, 0.1], "allocate.size")


def test_a_dial_may_turn_a_setting_in_a_table():
    text = PRUNE + "density = { fc1 = 0.4 }\n[dial]\nset = 'prune.density.fc1'\nvalues = [0.5, 0.1]"
    assert Recipe.parse(text, "x").value("prune.density.fc1") == 0.4
    assert Recipe.parse(text, "x").value("prune.density.fc2") is None
    text = PRUNE + "retrain = { rate = 0.5 }\n[dial]\nset = 'prune.retrain.rate'\nvalues = [0.5, 0.1]"
    assert Recipe.parse(text, "x").value("prune.retrain.rate") == 0.5


@pytest.mark.parametrize("path", ["prune.density.fc1", "prune.per.fc1"])
def test_a_table_setting_of_what_is_no_table_is_refused_by_name(path):
    with pytest.raises(UsageError, match=rf"setting '{path}': .* found, a table expected"):
        Recipe.parse(PRUNE + "density = 0.5\nper = 'layer'", "x", {path: 0.3})


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff")
    for path in (tmp_path / "x.toml", tmp_path / "none.toml", "a\0b.toml"):
        with pytest.raises(UsageError, match="cannot be read"):
            Recipe.load(path)


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
