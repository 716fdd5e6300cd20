"""Budgets: few runs, all shown, and at the end a file that fits if one was seen."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.budget import Budget, search
from deepcomp.errors import BudgetError, InfeasibleError
from deepcomp.pipeline import Report
from deepcomp.recipe import Dial, Recipe

KEY, SIZE = "quantize.bits", "quantize.size"


def report(path, size, drop=None):
    path.write_bytes(b"")
    metric = None if drop is None else {"name": "accuracy", "before": 90.0, "after": 90.0 - drop, "drop": drop}
    return Report("in", str(path), 1 << 20, size, 1.0, "x", 0, "0", "", [], metric, [])


class Trial:
    """A recipe whose files have given sizes and drops, along a dial whose values are the places on it."""

    def __init__(self, sizes, drops=None, hand_over=None):
        self.sizes, self.drops, self.hand_over = sizes, drops or [0.0] * len(sizes), hand_over
        steps = Recipe.load("uniform").steps
        self.recipe = Recipe("x", steps, Dial(KEY, [*range(len(sizes))], "" if hand_over is None else SIZE))
        self.runs = []

    def run(self, settings, path):
        self.runs.append(settings)
        if SIZE in settings:
            return report(path, self.hand_over(settings[SIZE]), 0.0)
        return report(path, self.sizes[settings[KEY]], self.drops[settings[KEY]])

    def search(self, given=None, **budget):
        """The report of the file that is left, and whether it keeps the budget."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = search(Budget(**budget), self.recipe, given or {}, self.run, Path(folder) / "x.dcz", False)
            except BudgetError as error:
                assert (Path(folder) / "x.dcz").exists()
                return error.report, False
            assert [path.name for path in Path(folder).iterdir()] == ["x.dcz"]
            return found, True


sizes = st.lists(st.integers(1, 10**6), min_size=1, max_size=40)
falling = sizes.map(lambda found: sorted(found, reverse=True))


@settings(deadline=None)
@given(sizes=falling, limit=st.integers(1, 10**6))
def test_the_largest_file_that_fits_is_found_in_no_more_runs_than_bisection_takes(sizes, limit):
    trial = Trial(sizes)
    found, met = trial.search(max_size=limit)
    assert met == (min(sizes) <= limit)
    assert found.output_bytes == max((size for size in sizes if size <= limit), default=min(sizes))
    assert len(found.points) == len(trial.runs) <= len(sizes).bit_length()


@settings(deadline=None)
@given(sizes=falling, data=st.data())
def test_the_smallest_file_that_keeps_the_quality_is_found_by_bisection(sizes, data):
    count = len(sizes)
    drops = sorted(data.draw(st.lists(st.floats(-1, 50), min_size=count, max_size=count)))
    limit = data.draw(st.floats(0, 50))
    trial = Trial(sizes, drops)
    found, met = trial.search(max_drop=limit)
    kept = [size for size, drop in zip(sizes, drops, strict=True) if drop <= limit]
    assert met == bool(kept)
    assert found.output_bytes == min(kept) if kept else found.metric["drop"] == min(drops)
    assert len(trial.runs) <= count.bit_length()


@settings(deadline=None)
@given(sizes=sizes, drops=st.lists(st.floats(0, 9), min_size=40, max_size=40), limit=st.integers(1, 10**6))
def test_curves_that_do_not_fall_steadily_end_with_what_fits_if_it_was_seen(sizes, drops, limit):
    trial = Trial(sizes, drops)
    found, met = trial.search(max_size=limit)
    seen = [point["bytes"] for point in found.points]
    assert seen == sorted(seen, reverse=True)
    assert met == any(size <= limit for size in seen)
    assert found.output_bytes == max((size for size in seen if size <= limit), default=min(seen))
    found, met = trial.search(max_drop=3.0)
    assert met == any(point["drop"] <= 3 for point in found.points)
    assert len(trial.runs) <= 2 * len(sizes).bit_length()


def bisection(sizes, limit):
    """The runs that it takes."""
    low, high, runs = 0, len(sizes), 0
    while low < high:
        middle, runs = (low + high) // 2, runs + 1
        low, high = (low, middle) if sizes[middle] <= limit else (middle + 1, high)
    return runs


def test_sizes_of_files_tell_where_to_look():
    sizes = [round(10**6 * 0.83**place) for place in range(20)]
    saved = []
    for limit in (round(size * 1.05) for size in sizes):
        trial = Trial(sizes)
        trial.search(max_size=limit)
        saved.append(bisection(sizes, limit) - len(trial.runs))
    assert sum(saved) > len(saved) / 3


# ---------------------------------------------------------------- a recipe that takes a size


def test_a_size_handed_over_takes_one_run():
    trial = Trial([1000] * 9, hand_over=lambda size: size - 3)
    found, met = trial.search(max_size=5000)
    assert (found.output_bytes, met, trial.runs) == (4997, True, [{SIZE: 5000}])
    assert found.points[0]["setting"] == SIZE


def test_what_comes_on_top_is_taken_off():
    trial = Trial([1000] * 9, hand_over=lambda size: size + 37)
    found, met = trial.search(max_size=5000)
    assert (found.output_bytes, met, len(trial.runs)) == (5000, True, 2)


@settings(deadline=None)
@given(least=st.integers(1, 5000), most=st.integers(0, 300), limit=st.integers(1, 6000), seed=st.integers(0, 99))
def test_a_size_handed_over_is_kept_if_it_can_be(least, most, limit, seed):
    def hand_over(size):
        if size < least:
            raise InfeasibleError(SIZE, size, least)
        return size + (seed * size) % 101 * most // 100

    trial = Trial([1], hand_over=hand_over)
    found, met = trial.search(max_size=limit)
    assert met == (found.output_bytes <= limit)
    assert met or hand_over(least) > limit or found.output_bytes == min(point["bytes"] for point in found.points)
    assert len(trial.runs) <= 3 + limit.bit_length()
    if hand_over(least) <= limit:
        assert met


def test_a_size_that_cannot_be_kept_leaves_the_smallest_file():
    def hand_over(size):
        if size < 3000:
            raise InfeasibleError(SIZE, size, 3000)
        return size + 8

    trial = Trial([1] * 9, hand_over=hand_over)
    found, met = trial.search(max_size=2000)
    assert (found.output_bytes, met) == (3008, False)
    assert [settings[SIZE] for settings in trial.runs] == [2000, 3000]


def test_what_the_user_has_set_stays():
    for given_settings in ({KEY: 2}, {SIZE: 700}):
        trial = Trial([900, 800, 700, 600], hand_over=lambda size: size)
        assert trial.search(given_settings, max_size=650)[1] is False
        assert trial.runs == [given_settings]


# ---------------------------------------------------------------- values that cannot be kept


class Bounded(Trial):
    """A recipe that some values ask too much of, beyond one in between two places."""

    def __init__(self, *args, last):
        super().__init__(*args)
        self.last = last

    def run(self, settings, path):
        self.runs.append(settings)
        if settings[KEY] > self.last:
            raise InfeasibleError(KEY, settings[KEY], self.last)
        size = self.sizes[math.floor(settings[KEY])] - 10 * (settings[KEY] % 1)
        return report(path, round(size), self.drops[math.floor(settings[KEY])])


def test_values_beyond_what_can_be_kept_stand_for_the_last_that_can():
    trial = Bounded([900, 800, 700, 600, 500, 400, 300], [0, 1, 2, 3, 4, 5, 6], last=3.5)
    found, met = trial.search(max_size=650)
    assert (found.output_bytes, found.points[-1]["value"], met) == (600, 3, True)
    found, met = trial.search(max_drop=9)
    assert (found.output_bytes, found.points[-1]["value"], met) == (595, 3.5, True)
    found, met = trial.search(max_size=590)
    assert (found.output_bytes, met) == (595, False)
    values = [point["value"] for point in found.points]
    assert len(values) == len(set(values))


def test_another_setting_that_cannot_be_kept_is_the_users_to_change():
    trial = Bounded([900, 800], last=0.5)
    trial.recipe.dial = Dial("quantize.size", [1, 2])
    with pytest.raises(InfeasibleError, match=r"quantize\.bits = 7: 0\.5 is the least that can be kept"):
        trial.search({KEY: 7}, max_size=100)


# ---------------------------------------------------------------- curves, and recipes without a dial


def test_a_recipe_without_a_dial_runs_once():
    for budget, met in ((900, True), (899, False)):
        trial = Trial([900])
        trial.run = lambda settings, path: report(path, 900)
        trial.recipe.dial = None
        found, kept = trial.search(max_size=budget)
        assert (found.output_bytes, kept) == (900, met)
        assert [(point["setting"], point["value"]) for point in found.points] == [("", None)]


def test_both_budgets_and_a_curve_use_what_was_run():
    sizes, drops = [900, 800, 700, 600], [0.0, 1.0, 2.0, 3.0]
    for limits in ({"max_size": 750}, {"max_drop": 2.5}):
        trial = Trial(sizes, drops)
        with tempfile.TemporaryDirectory() as folder:
            budget = Budget(**limits, curve=Path(folder) / "c.json")
            found = search(budget, trial.recipe, {}, trial.run, Path(folder) / "x.dcz", False)
            assert {path.name for path in Path(folder).iterdir()} == {"x.dcz", "c.json", "c.svg"}
        assert found.output_bytes == 700
        assert [point["bytes"] for point in found.points] == sizes
        assert len(trial.runs) == len(sizes)


def test_the_drop_that_counts_is_that_on_the_validation_set():
    trial = Trial([900, 800, 700])
    plain = trial.run

    def run(settings, path):
        done = plain(settings, path)
        done.metric["validation"] = {"before": 80.0, "after": 80.0 - settings[KEY], "drop": float(settings[KEY])}
        return done

    trial.run = run
    found, met = trial.search(max_drop=1.5)
    assert (found.output_bytes, met) == (800, True)
    assert found.points[-1]["validation"]["drop"] in (1.0, 2.0)


@pytest.mark.parametrize("bits", [6, {"fc*": 4, "*": 6}])
def test_a_curve_leaves_the_recipes_own_file_and_has_its_point(tmp_path, bits):
    trial = Trial([900, 800, 700])
    trial.recipe = Recipe("x", Recipe.load("uniform", {KEY: bits}).steps, Dial(KEY, [8, 4, 2]))
    trial.run = lambda settings, path: report(
        path, {8: 900, 4: 700, 2: 600}.get(str(settings[KEY]).isdigit() and settings[KEY], 800)
    )
    found = search(Budget(curve=tmp_path / "c.json"), trial.recipe, {}, trial.run, tmp_path / "x.dcz", False)
    assert found.output_bytes == 800
    assert [(point["value"], point["bytes"]) for point in found.points] == [(8, 900), (bits, 800), (4, 700), (2, 600)]
