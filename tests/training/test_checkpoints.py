"""An interrupted run goes on where it stopped and ends in the same file."""

import hashlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import deepcomp
from deepcomp.errors import InputError
from deepcomp.model import zoo
from deepcomp.training import Checkpoints, checkpoints, loop

SETTINGS = {"prune.rounds": 2, "prune.retrain.epochs": 2, "finetune.epochs": 3}


@pytest.fixture
def at_every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)


def compress(out, **more):
    torch.manual_seed(0)
    return deepcomp.compress(
        zoo.build("digits-cnn"), out, recipe="deep-compression", data="digits", settings=SETTINGS, **more
    )


class Stop(Exception):
    pass


def stop_after(count):
    """A progress callback that fails at the given call."""
    calls = iter(range(count))

    def progress(*_):
        if next(calls, None) is None:
            raise Stop

    return progress


@pytest.mark.parametrize("count", [1, 8, 13, 19, 27])
def test_interrupted_and_resumed_is_the_same_file(tmp_path, at_every_epoch, count):
    whole, cut = tmp_path / "whole.dcz", tmp_path / "cut.dcz"
    compress(whole)
    with pytest.raises(Stop):
        compress(cut, progress=stop_after(count))
    assert not cut.exists()
    compress(cut, resume=True)
    assert cut.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.dcz", "whole.dcz"]


def test_finished_runs_are_not_trained_again(tmp_path, at_every_epoch, monkeypatch):
    with pytest.raises(Stop):
        compress(tmp_path / "x.dcz", progress=stop_after(19))  # in the fourth training run
    trained = []
    epoch = loop._Run._train_epoch
    monkeypatch.setattr(loop._Run, "_train_epoch", lambda run: (trained.append(run.number), epoch(run))[1])
    compress(tmp_path / "x.dcz", resume=True)
    assert set(trained) == {4}


def test_an_interrupted_run_is_not_lost_without_being_asked_for_nor_what_is_not_ours(tmp_path, at_every_epoch):
    folder = tmp_path / "x.dcz.resume"
    with pytest.raises(Stop):
        compress(tmp_path / "x.dcz", progress=stop_after(10))
    kept = sorted(folder.iterdir())
    (folder / "mine.pt").write_bytes(b"of the user")
    with pytest.raises(InputError, match="--resume goes on"):
        compress(tmp_path / "x.dcz")
    assert all(path.exists() for path in kept)
    compress(tmp_path / "x.dcz", force=True)
    assert [path.name for path in folder.iterdir()] == ["mine.pt"]


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    slot = Checkpoints(tmp_path, resume=True).slot("x")
    assert slot.load() is None
    slot.save({"a": torch.ones(2)}, finished=True)
    assert torch.equal(slot.load()["a"], torch.ones(2))
    slot.path.write_bytes(slot.path.read_bytes()[:-30])
    with pytest.raises(InputError, match="not a checkpoint"):
        slot.load()


def test_a_checkpoint_of_something_else_is_one_line(tmp_path, at_every_epoch):
    with pytest.raises(Stop):
        compress(tmp_path / "x.dcz", progress=stop_after(10))
    for path in (tmp_path / "x.dcz.resume").iterdir():
        torch.save({"state": {}}, path)
    with pytest.raises(InputError, match="not a checkpoint"):
        compress(tmp_path / "x.dcz", resume=True)


def test_other_settings_do_not_find_the_checkpoint(tmp_path):
    kept = Checkpoints(tmp_path, resume=True)
    assert kept.slot("a").path != kept.slot("b").path
    assert kept.slot("a").path == Checkpoints(tmp_path, resume=True).slot("a").path


def test_killed_and_resumed_is_the_same_file(tmp_path):
    """A process killed at some moment of its training."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, torch, deepcomp
        from deepcomp.model import zoo
        from deepcomp.training import checkpoints
        checkpoints.EVERY = 0.0
        torch.manual_seed(0)
        deepcomp.compress(zoo.build("digits-cnn"), sys.argv[1], recipe="deep-compression", data="digits",
                          settings={SETTINGS!r}, resume=len(sys.argv) > 2)
        """)
    )
    whole, cut = tmp_path / "whole.dcz", tmp_path / "cut.dcz"
    subprocess.run([sys.executable, script, whole], check=True)
    process = subprocess.Popen([sys.executable, script, cut])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cut.dcz.resume/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not cut.exists()
    subprocess.run([sys.executable, script, cut, "resume"], check=True)
    assert hashlib.sha256(cut.read_bytes()).digest() == hashlib.sha256(whole.read_bytes()).digest()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_trains_nothing_leaves_the_checkpoints_of_another(tmp_path, at_every_epoch, resume):
    whole, cut = tmp_path / "whole.dcz", tmp_path / "cut.dcz"
    compress(whole)
    with pytest.raises(Stop):
        compress(cut, progress=stop_after(19))
    kept = sorted((tmp_path / "cut.dcz.resume").iterdir())
    assert kept
    deepcomp.compress(zoo.build("digits-cnn"), cut, recipe="uniform", data="digits", resume=resume)
    assert sorted((tmp_path / "cut.dcz.resume").iterdir()) == kept
    compress(cut, resume=True, force=True)
    assert cut.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "cut.dcz.resume").exists()
