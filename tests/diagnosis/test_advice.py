"""Advice: each rule speaks where its evidence is there, and not elsewhere; what it proposes exists."""

import math

import pytest

from deepcomp.diagnosis import Channels, Check, Diagnosis, Outcome, Single
from deepcomp.diagnosis.advice import RULES, advise
from deepcomp.recipe import Recipe
from deepcomp.steps import STEPS

PTQ = '[[step]]\ndo = "fold-bn"\n[[step]]\ndo = "quantize"\n{}\n[[step]]\ndo = "quantize-activations"\n{}\n'


def recipe(weights='per = "tensor"', activations='range = "min-max"', more=""):
    return Recipe.parse(PTQ.format(weights, activations) + more, "mine", data=True)


def outcome(drop, snr=20.0, error=0.0):
    return Outcome(90 - drop, drop, snr, error)


def single(name, snr, kind="weight", bits=8):
    return Single(kind, name, bits, outcome(0.0, snr))


def channels(name, used, kind="weight", bits=8, spread=50.0, shared=True):
    ends = (-1.0, 1.0) if shared else (None, None)
    return Channels(kind, name, bits, *[[0.0]] * 5, spread, used, *ends)


def diagnosis(weights=0.0, activations=0.0, both=None, sweep=(), rows=(), checks=(), steps=()):
    found = Diagnosis("net", "mine", 0, 500, "accuracy", True, 0.5, 1e-4, list(steps), 90.0, list(checks), {}, [], [])
    drops = {"fp32": 0.0, "weights": weights, "activations": activations}
    drops["both"] = max(weights or 0, activations or 0) if both is None else both
    found.parts = {name: None if drop is None else outcome(drop) for name, drop in drops.items()}
    given = sweep or [single(f"w{n}", 40 + n) for n in range(8)]
    others = [] if sweep else [single(f"a{n}", 50 + n, "activation") for n in range(8)]
    found.sweep = sorted([*given, *others], key=lambda row: row.outcome.snr)
    found.channels = list(rows)
    return found


def advice(found, plan=None):
    given = list(advise(found, (plan or recipe()).steps))
    for entry in given:
        text = (plan or recipe(), entry.settings)
        assert set(entry.steps) <= set(STEPS)
        check_settings(*text)
    return {entry.rule: entry for entry in given}


def check_settings(plan, settings):
    """What is proposed can be set."""
    for path, value in settings.items():
        do, _, key = path.partition(".")
        (step,) = [step for step in plan.steps if step.do == do]
        type(step)(**{key: value})


def test_nothing_lost_nothing_to_do():
    given = advice(diagnosis(0.2, 0.1, 0.3))
    assert list(given) == ["fine"]
    assert "lose 0.3 points of accuracy" in given["fine"].text
    assert given["fine"].places == ["w0"]
    assert "lose nothing" in advice(diagnosis(-0.2, -0.1, -0.3))["fine"].text


def test_a_loss_within_its_error_is_none():
    found = diagnosis(0.9)
    found.parts |= {"weights": outcome(0.9, error=0.5), "both": outcome(0.9, error=0.5)}
    assert list(advice(found)) == ["fine"]


@pytest.mark.parametrize(
    ("checks", "named"),
    [
        ([("capture", 0.0, 1e-7), ("fold-bn", 0.0, 3e-7)], []),
        ([("capture", 0.0, 1e-2), ("fold-bn", 0.0, 1e-2)], ["capture"]),
        ([("capture", 0.0, 1e-7), ("equalize", 0.0, 1e-3), ("quantize", 0.0, 1e-3)], ["equalize"]),
        ([("capture", 0.0, 0.0), ("absorb-bias", 0.1, 1e-2)], []),
        ([("capture", 0.0, 0.0), ("absorb-bias", 4.0, 1e-1), ("quantize", 4.0, 1e-1)], ["absorb-bias"]),
        ([("capture", 3.0, 1e-1), ("prune", 9.0, 0.5)], ["capture", "prune"]),
    ],
)
def test_the_step_that_breaks_floating_point_is_named(checks, named):
    found = diagnosis(checks=[Check(name, 90 - drop, drop, change) for name, drop, change in checks])
    given = [entry for entry in advise(found, recipe().steps) if entry.rule == "floating-point"]
    assert [entry.places[0] for entry in given] == named


def test_weights_whose_channels_differ_are_to_be_equalised_or_scaled_each():
    rows = [channels("even", 7.0), channels("odd", 2.2, spread=57.0), channels("worse", 1.5)]
    given = advice(diagnosis(4.1, rows=rows))
    assert given["equalize"].places == ["worse", "odd"]
    assert given["equalize"].steps == ["equalize"]
    assert "worse (and 1 more)" in given["equalize"].text
    assert "1.5 of 8 bits" in given["equalize"].text
    assert given["per-channel"].settings == {"quantize.per": "channel"}
    assert not {"equalize", "per-channel"} & set(advice(diagnosis(0.1, rows=rows)))
    even = advice(diagnosis(4.1, rows=rows[:1]))
    assert not {"equalize", "per-channel"} & set(even)
    assert "per-channel" not in advice(diagnosis(4.1, rows=rows), recipe('per = "channel"'))


def test_what_equalisation_could_not_help_says_why():
    said = {"do": "equalize", "skipped": {"odd": "its output is read by add and relu"}}
    plan = recipe(more='[[step]]\ndo = "equalize"\n')
    given = advice(diagnosis(4.1, rows=[channels("odd", 2.0)], steps=[said]), plan)
    assert "equalize" not in given
    assert "its output is read by add and relu" in given["per-channel"].text


def test_batch_norms_are_folded_before_channels_are_evened_out():
    plan = Recipe.parse('[[step]]\ndo = "quantize"\nper = "tensor"', "mine")
    (entry,) = [e for e in advise(diagnosis(4.1, rows=[channels("w", 1.0)]), plan.steps) if e.rule == "equalize"]
    assert entry.steps == ["fold-bn", "equalize"]


def test_grids_a_channel_are_not_blamed_for_uneven_channels():
    assert "per-channel" not in advice(diagnosis(4.1, rows=[channels("w", 2.0, shared=False)]))


def test_ranges_and_rounding_of_weights():
    given = advice(diagnosis(4.1))
    assert given["weight-range"].settings == {"quantize.range": "mse"}
    assert given["rounding"].steps == ["adaround"]
    assert "The weights alone lose 4.1 points of accuracy" in given["rounding"].text
    plan = recipe('range = "mse"', more='[[step]]\ndo = "adaround"\n')
    assert not {"weight-range", "rounding"} & set(advice(diagnosis(4.1), plan))
    assert not {"weight-range", "rounding"} & set(advice(diagnosis(activations=4.1)))


@pytest.mark.parametrize(("now", "other"), [("min-max", "mse"), ("mse", "percentile"), ("kl", "mse")])
def test_activations_with_outliers_are_to_be_clipped_otherwise(now, other):
    rows = [channels("hidden", 1.2, "activation")]
    plan = recipe(activations=f'range = "{now}"')
    given = advice(diagnosis(activations=3.0, rows=rows), plan)
    assert given["activation-range"].settings == {"quantize-activations.range": other}
    assert given["activation-range"].places == given["activation-equalize"].places == ["hidden"]
    without = advice(diagnosis(activations=3.0), plan)
    assert ("activation-range" in without) == (now == "min-max")


def test_few_quantisers_with_half_of_the_noise_get_more_bits():
    sweep = [single("bad", 5.0, bits=4), *(single(f"w{n}", 25.0, bits=4) for n in range(8))]
    given = advice(diagnosis(4.1, sweep=sweep), recipe("bits = 4"))
    assert given["weight-bits"].settings == {"quantize.bits": {"bad": 8, "*": 4}}
    assert "all-weights" not in given
    table = recipe('bits = { "w*" = 4, bad = 4 }')
    assert advice(diagnosis(4.1, sweep=sweep), table)["weight-bits"].settings == {"quantize.bits": {"bad": 8, "w*": 4}}
    ends = advice(diagnosis(4.1, sweep=sweep), recipe("bits = 2\nends = 4"))
    assert ends["weight-bits"].settings == {"quantize.ends": 8}


def test_where_none_stands_out_all_get_more_bits():
    given = advice(diagnosis(4.1, sweep=[single(f"w{n}", 20.0, bits=4) for n in range(9)]), recipe("bits = 4"))
    assert given["all-weights"].settings == {"quantize.bits": 8}
    assert "weight-bits" not in given
    most = advice(diagnosis(4.1, sweep=[single(f"w{n}", 20.0, bits=16) for n in range(9)]), recipe("bits = 16"))
    assert most["all-weights"].settings == {}


def test_losses_that_add_up():
    given = advice(diagnosis(0.4, 0.4, 0.9))
    assert list(given) == ["together", "training"]
    assert "0.9 points of accuracy" in given["together"].text
    assert set(given["together"].settings) <= {"quantize.bits", "quantize-activations.bits"}


def test_training_comes_last_and_only_where_something_is_lost():
    assert list(advice(diagnosis(4.1, 3.0)))[-1] == "training"
    assert "training" not in advice(diagnosis(0.1))


def test_a_file_without_a_recipe_is_advised_without_settings():
    found = diagnosis(
        None, 3.0, sweep=[single("bad", 3.0, "activation"), *(single(f"a{n}", 30.0, "activation") for n in range(8))]
    )
    given = list(advise(found, []))
    assert [entry.rule for entry in given] == ["activation-bits", "training"]
    assert given[0].settings == {}
    assert given[0].places == ["bad"]


def test_other_metrics_are_named():
    found = diagnosis(4.1)
    found.metric = "perplexity"
    assert "4.1 of perplexity" in next(
        entry.text for entry in advise(found, recipe().steps) if entry.rule == "rounding"
    )


def test_noise_free_quantisers_are_no_culprits():
    found = diagnosis(4.1, sweep=[single(f"w{n}", math.inf) for n in range(8)])
    assert "weight-bits" not in advice(found)


def test_the_order_is_that_of_the_flow():
    names = [rule.__name__ for rule in RULES]
    assert names[0] == "floating_point"
    assert names.index("equalize") < names.index("per_channel") < names.index("rounding") < names.index("few")
    assert names[-1] == "training"
