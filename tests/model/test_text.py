from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.errors import InputError
from deepcomp.model.datasets import load_data
from deepcomp.model.text import END, UNKNOWN, encode, vocabulary, windows, words
from deepcomp.model.zoo.language import LENGTH, VOCABULARY

TEXTS = st.lists(st.sampled_from(["a", "b", "c", "dd", UNKNOWN, END]), max_size=40)


def test_every_line_ends_with_a_word_of_its_own():
    assert words(" a b \n\n = c =\n") == ["a", "b", END, END, "=", "c", "=", END]
    assert words("") == []


@given(TEXTS, st.integers(1, 5))
def test_a_vocabulary_numbers_frequent_words_by_count_then_name(found, least):
    known, counts = vocabulary(found, least), Counter(found)
    assert set(known) == {word for word in found if counts[word] >= least} | {UNKNOWN, END}
    assert list(known.values()) == list(range(len(known)))
    pairs = [(-counts[word], word) for word in known]
    assert pairs == sorted(pairs)


@given(TEXTS, TEXTS)
def test_words_outside_the_vocabulary_are_unknown(train, found):
    known = vocabulary(train, 1)
    names = list(known)
    assert [names[i] for i in encode(found, known)] == [word if word in known else UNKNOWN for word in found]


@given(st.integers(0, 50), st.integers(1, 9))
def test_windows_tile_the_text_and_targets_are_one_word_ahead(count, length):
    text = torch.arange(count)
    inputs, targets = windows(text, length)
    assert inputs.shape == targets.shape
    assert inputs.flatten().equal(text[: inputs.numel()])
    assert targets.equal(inputs + 1)
    assert count - 1 - length < inputs.numel() <= max(count - 1, 0)


# wikitext2


def test_wikitext2_has_the_published_number_of_words(data_dir):
    if not (data_dir / "wikitext2-valid.txt").is_file():
        pytest.skip(f"no WikiText-2 in {data_dir}")
    data = load_data("wikitext2", data_dir)
    assert (len(data.train), len(data.test)) == ((217_646 - 1) // LENGTH, (245_569 - 1) // LENGTH)
    assert data.metric == "perplexity"
    for inputs, targets in (data.train[:], data.test[:]):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.min() >= 0
        assert targets.max() < VOCABULARY
        assert targets[:, :-1].equal(inputs[:, 1:])


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPCOMP_DATA", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("there", [(), ("valid",)])
def test_a_missing_text_is_one_line_naming_all_three_places(places, there):
    for part in there:
        (places / f"wikitext2-{part}.txt").write_text("a\n")
    with pytest.raises(InputError) as caught:
        load_data("wikitext2", places)
    message = str(caught.value)
    missing = "wikitext2-test.txt" if there else "wikitext2-valid.txt"
    assert message == (
        f"wikitext2: no {missing} in --data-dir ({places}), $DEEPCOMP_DATA ({places / 'variable'}) "
        f"or the cache ({places / 'cache' / 'deepcomp'})"
    )


def test_another_text_is_named_with_its_vocabulary(places):
    for part in ("valid", "test"):
        (places / f"wikitext2-{part}.txt").write_text("one one one two\n")
    with pytest.raises(InputError, match=r"wikitext2-valid\.txt: 3 words .*, 6928 expected"):
        load_data("wikitext2", places)


def test_bytes_that_are_no_text_are_named(places):
    for part in ("valid", "test"):
        (places / f"wikitext2-{part}.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"wikitext2-valid\.txt: no readable UTF-8 text"):
        load_data("wikitext2", places)
