"""The page of a diagnosis: whole by itself, every text escaped, every channel or a fair choice of them drawn."""

import math
import re
from html.parser import HTMLParser

import pytest

from deepcomp.diagnosis import Advice, Channels, Check, Diagnosis, Outcome, Single
from deepcomp.report import table
from deepcomp.report.boxes import MOST, plot, shown
from deepcomp.report.diagnosis import page

HOSTILE = '<script src="http://evil">\x1b[31m"\'&'


def channels(name, count=3, kind="weight", **more):
    low = [-1.0 - place for place in range(count)]
    boxes = [[part * end + 0.0 for end in low] for part in (1.0, 0.5, 0.0, -0.5, -1.0)]
    return Channels(kind, name, 8, *boxes, 2.0, **{"used": 5.0, **more})


def diagnosis(name="conv", **more):
    outcome = Outcome(80.0, 3.0, 12.5, 0.2)
    given = {
        "input": name,
        "recipe": name,
        "fp32": [Check("capture", 83.0, 0.0, 0.0), Check(name, 83.0, 0.0, 1e-7)],
        "parts": {"fp32": Outcome(83.0, 0.0, math.inf), "weights": outcome, "activations": None, "both": outcome},
        "sweep": [Single("weight", name, 8, outcome), Single("activation", "x", None, Outcome(83.5, -0.5, 40.0))],
        "channels": [channels(name), channels("x", 1, "activation", low=-0.5, high=9.0)],
        "advice": [Advice("few", f"more bits for {name}", [name])],
        "warnings": [f"{name} is odd"],
    }
    return Diagnosis(**{**BASE, **given, **more})


BASE = {
    "seed": 0, "items": 500, "metric": "accuracy", "higher_is_better": True, "tolerance": 0.5, "exact": 1e-4,
    "steps": [], "original": 83.0,
}  # fmt: skip


class Balance(HTMLParser):
    """Insists that every tag is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    parser = Balance()
    parser.feed(text)
    assert not parser.open
    return parser.seen


def test_the_page_is_whole_and_loads_nothing():
    text = page(diagnosis())
    seen = parsed(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in seen}
    assert not any(key in ("src", "xlink:href") or key.startswith("on") for _, attrs in seen for key in attrs)
    assert not re.search(r"https?:|url\(|@import", text)
    ids = [attrs["id"] for _, attrs in seen if "id" in attrs]
    links = [attrs["href"] for tag, attrs in seen if tag == "a"]
    assert {f"#{name}" for name in ids} == set(links)
    assert len(ids) == len(set(ids)) == 2
    for word in ("80.00", "3.00 lost", "12.5 dB", "more bits for conv", "prefers-color-scheme: dark", "not measured"):
        assert word in text


def test_hostile_names_are_escaped_everywhere():
    given = diagnosis(HOSTILE, metric=HOSTILE)
    text = page(given)
    seen = parsed(text)
    assert "script" not in {tag for tag, _ in seen}
    assert "<script" not in text
    assert "\x1b" not in table.diagnosis(given)


def test_a_loss_that_counts_is_marked():
    text = page(diagnosis())
    assert 'class="bad">3.00</td>' in text
    assert 'class="">-0.50</td>' in text


def test_every_channel_has_a_box_that_tells_its_numbers():
    drawn = plot(channels("w", 5))
    assert drawn.count("<title>") == 5
    assert "channel 4: -5 to 5, quartiles -2.5, 0, 2.5" in drawn
    parsed(drawn)


def test_of_many_channels_a_choice_from_the_widest_to_the_narrowest_is_drawn():
    many = channels("w", 1000)
    places = shown(many)
    assert len(places) == len(set(places)) == MOST
    assert (places[0], places[-1]) == (999, 0)
    assert places == sorted(places, reverse=True)
    assert f"{MOST} shown, by range" in page(diagnosis(channels=[many]))


@pytest.mark.parametrize(("low", "high", "broken"), [(None, None, 0), (-9.0, 9.0, 0), (-9.0, 1.0, 1), (-0.5, 0.5, 2)])
def test_ends_of_the_grid_are_drawn_where_numbers_lie_beyond(low, high, broken):
    assert plot(channels("w", low=low, high=high)).count('class="end"') == broken


def test_channels_of_nothing_are_drawn():
    drawn = plot(Channels("weight", "w", None, *[[0.0, 0.0]] * 5, 1.0, None))
    assert "nan" not in drawn
    assert drawn.count("<title>") == 2


def test_a_file_as_it_is_has_a_page_and_a_table():
    given = diagnosis(recipe=None, fp32=[], original=None)
    assert "In floating point" not in page(given)
    assert "in floating point" not in table.diagnosis(given)
    assert "as it is" in table.diagnosis(given)


def test_the_table_ends_with_what_to_try():
    lines = table.diagnosis(diagnosis()).splitlines()
    assert lines[-2:] == ["what to try", "  1. more bits for conv"]
    assert any(line.split() == ["weight", "conv", "8", "80.00", "3.00", "12.5", "2.0x", "5.0"] for line in lines)
    many = diagnosis(sweep=[Single("weight", f"w{n}", 8, Outcome(1, 1, n)) for n in range(70)])
    assert "  10 more, with less noise" in table.diagnosis(many)
