"""The command: results on stdout, messages on stderr, exit codes, one line for what is wrong."""

import json
import signal
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deepcomp import cli
from deepcomp.model import zoo


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the command in an empty folder; gives its output, insists on its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*args, code=0):
        found = cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert found == code, captured.err
        assert "Traceback" not in captured.err
        return captured

    return call


@pytest.fixture
def weights(tmp_path, randn):
    state = {"fc.weight": randn(60, 80), "fc.bias": randn(60), "n": torch.tensor(3)}
    save_file(state, tmp_path / "in.safetensors", {"format": "pt"})
    return state


def test_compress_inspect_verify_decompress(run, weights, tmp_path):
    done = json.loads(run("compress", "in.safetensors", "-o", "x.dcz", "--json").out)
    assert done["output_bytes"] == (tmp_path / "x.dcz").stat().st_size
    assert done["recipe"] == "lossless"
    assert done["steps"] == []
    found = json.loads(run("inspect", "x.dcz", "--json").out)
    assert found["tensors"] == done["tensors"]
    assert "fc.weight" in run("inspect", "x.dcz").out
    assert "every checksum right" in run("verify", "x.dcz").out
    assert run("verify", "x.dcz", "--against", "in.safetensors").out.count("identical") == 3
    run("decompress", "x.dcz", "-o", "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    with safe_open(tmp_path / "back.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert "exists already" in run("decompress", "x.dcz", "-o", "back.safetensors", code=1).err
    run("decompress", "x.dcz", "-o", "back.safetensors", "--force")


def test_settings_are_toml_values_or_plain_words(run, weights):
    args = ("compress", "in.safetensors", "-o", "x.dcz", "--recipe", "uniform", "--json", "--force")
    done = json.loads(run(*args, "--set", "quantize.bits=4", "--set", "quantize.range=mse").out)
    assert {row["name"]: row["form"] for row in done["tensors"]}["fc.weight"] == "grid4"
    assert done["steps"][0]["do"] == "quantize"


def test_a_recipe_of_ones_own(run, weights, tmp_path):
    (tmp_path / "mine.toml").write_text('[[step]]\ndo = "prune"\ndensity = 0.1\n')
    done = json.loads(run("compress", "in.safetensors", "-o", "x.dcz", "--recipe", "mine.toml", "--json").out)
    assert done["recipe"] == "mine"
    assert {row["name"]: row["density"] for row in done["tensors"]}["fc.weight"] == pytest.approx(0.1, abs=1e-3)


def test_compress_and_evaluate_a_named_model_on_data(run, tmp_path):
    save_file(zoo.build("digits-cnn").state_dict(), tmp_path / "w.safetensors")
    done = run(
        "compress",
        "w.safetensors",
        "-o",
        "x.dcz",
        "--model",
        "digits-cnn",
        "--recipe",
        "uniform",
        "--data",
        "digits",
        "--json",
    )
    metric = json.loads(done.out)["metric"]
    before = json.loads(run("evaluate", "w.safetensors", "--model", "digits-cnn", "--data", "digits", "--json").out)
    after = json.loads(run("evaluate", "x.dcz", "--data", "digits", "--json").out)
    assert (before["value"], after["value"]) == (metric["before"], metric["after"])
    assert "--model" in run("evaluate", "w.safetensors", "--data", "digits", code=2).err


def test_a_model_and_data_of_ones_own(run, tmp_path, monkeypatch):
    (tmp_path / "mine_net.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn
        from deepcomp import Data

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 5), nn.Embedding(9, 5)
            def forward(self, x, word):
                return self.a(x) + self.b(word)

        def net():
            torch.manual_seed(0)
            return Two()

        def data():
            items = [({"x": torch.randn(6), "word": torch.tensor(i % 9)}, torch.tensor(i % 5)) for i in range(20)]
            return Data(train=items, test=items, metric="accuracy")
        """)
    )
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    torch.save(importlib.import_module("mine_net").net().state_dict(), tmp_path / "w.pt")
    done = run("compress", "w.pt", "-o", "x.dcz", "--model", "mine_net:net", "--data", "mine_net:data", "--json")
    assert json.loads(done.out)["metric"]["name"] == "accuracy"
    inputs = ("--input", "x=1x6", "--input", "word=1:int64")
    assert not run("compress", "w.pt", "-o", "y.dcz", "--model", "mine_net:net", *inputs).err
    assert "runs without source code" in run("inspect", "y.dcz").out


def test_a_network_that_does_not_run_on_the_data_is_said_in_one_line(run, tmp_path):
    save_file(zoo.build("lenet-5").state_dict(), tmp_path / "w.safetensors")
    found = run("evaluate", "w.safetensors", "--model", "lenet-5", "--data", "digits", code=1)
    assert "LeNet5 does not run on this data" in found.err
    assert found.err.count("\n") == 1


def test_budgets_and_their_exit_codes(run, weights, tmp_path):
    args = ("compress", "in.safetensors", "--recipe", "uniform")
    assert "tried quantize.bits" in run(*args, "-o", "x.dcz", "--max-size", "3kB").out
    assert (tmp_path / "x.dcz").stat().st_size <= 3000
    missed = run(*args, "-o", "y.dcz", "--max-size", "100B", "--json", code=3)
    assert "budget not met" in missed.err
    assert json.loads(missed.out)["points"]
    assert (tmp_path / "y.dcz").exists()
    assert "data" in run(*args, "-o", "z.dcz", "--max-drop", "1", code=2).err
    run(*args, "-o", "z.dcz", "--pareto", "curve.json")
    assert len(json.loads((tmp_path / "curve.json").read_text())["points"]) == 7
    lossless = run("compress", "in.safetensors", "-o", "w.dcz", "--max-size", "1MB", "--pareto", "once.json").out
    assert "tried the recipe as it is: " in lossless
    assert len(json.loads((tmp_path / "once.json").read_text())["points"]) == 1


def test_a_damaged_file_fails_verification_and_reading(run, weights, tmp_path):
    run("compress", "in.safetensors", "-o", "x.dcz")
    raw = bytearray((tmp_path / "x.dcz").read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "x.dcz").write_bytes(raw)
    assert "checksum" in run("verify", "x.dcz", code=3).err
    run("decompress", "x.dcz", "-o", "back.safetensors", code=1)
    assert not (tmp_path / "back.safetensors").exists()


def test_html_escapes_hostile_names(run, tmp_path):
    save_file({"<script>alert(1)</script>": torch.zeros(3), "ok": torch.ones(3, 3)}, tmp_path / "in.safetensors")
    run("compress", "in.safetensors", "-o", "x.dcz")
    run("inspect", "x.dcz", "--html", "x.html")
    page = (tmp_path / "x.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 3


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "required"),
        (("compress", "in.safetensors"), 2, "-o"),
        (("nope",), 2, "nope"),
        (("compress", "none.safetensors", "-o", "x.dcz"), 1, "none.safetensors: no such file"),
        (("compress", "in.txt", "-o", "x.dcz"), 1, "in.txt"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--recipe", "nope"), 2, "nope"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--set", "bits"), 2, "STEP.KEY=VALUE"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--max-size", "3 apples"), 2, "3 apples"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "3x"), 2, "3x"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "2x2:int99"), 2, "int99"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "a=2", "--input", "2"), 2, "names or none"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "a=2", "--input", "a=3"), 2, "'a' comes twice"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "=2"), 2, "NAME=1x64:int64 expected"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "100000x100000x1000000"), 2, "elements"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "1x20:qint8"), 2, "1x20:qint8"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--input", "1x20:complex64"), 2, "1x20:complex64"),
        (
            ("compress", "in.safetensors", "-o", "x.dcz", "--input", "1x20"),
            2,
            "an example input is given, but no network",
        ),
        (("compress", "in.safetensors", "-o", "x.dcz", "--seed", str(10**23)), 2, "seed = 1000"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--seed", "-1"), 2, "seed = -1"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--seed", "10**23"), 2, "--seed"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--max-drop", "nan", "--data", "digits"), 2, "max_drop = nan"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--max-drop", "-1", "--data", "digits"), 2, "max_drop = -1"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--max-size", "-3"), 2, "size '-3': a byte or more"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--pareto", "x.dcz"), 2, "another name expected"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--pareto", "in.safetensors"), 2, "another name expected"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--pareto", "in.txt"), 1, "in.txt: exists already"),
        (("compress", "in.safetensors", "-o", "in.safetensors", "--force"), 2, "another name expected"),
        (("decompress", "in.safetensors", "-o", "in.safetensors", "--force"), 2, "another name expected"),
        (("inspect", "in.safetensors", "--html", "in.safetensors", "--force"), 2, "another name expected"),
        (("inspect", "in.safetensors", "--html", "in.txt"), 1, "in.txt: exists already"),
        (("inspect", "in.safetensors", "--max-bytes", "foo"), 2, "size 'foo': a number with kB"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--model", "resnet999"), 2, "resnet999"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--model", "lenet-5"), 1, "do not fit lenet-5"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--data", "nope"), 2, "nope"),
        (("compress", "in.safetensors", "-o", "x.dcz", "--jobs", "0"), 2, "jobs"),
        (("compress", "in.safetensors", "-o", "none/x.dcz"), 1, "none"),
        (("compress", "in.safetensors", "-o", "."), 1, "folder"),
        (("inspect", "in.safetensors"), 1, "not a .dcz file"),
        (("verify", "none.dcz"), 1, "none.dcz"),
        (("verify", "in.safetensors"), 3, "not a .dcz file"),
        (("evaluate", "none.dcz", "--data", "digits"), 1, "none.dcz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_said_in_one_line(run, weights, tmp_path, args, code, words):
    (tmp_path / "in.txt").write_text("hello")
    found = run(*args, code=code)
    lines = [line for line in found.err.splitlines() if line.strip() and not line.startswith(("usage:", " "))]
    assert len(lines) == 1
    assert words in found.err
    assert not found.out
    assert {path.name for path in tmp_path.iterdir()} == {"in.safetensors", "in.txt"}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("compress", "none.safetensors", "-o", "x.dcz"), 1),
        (("compress", "in.safetensors", "-o", "x.dcz", "--recipe", "nope"), 2),
        (("verify", "in.safetensors"), 3),
        (("compress", "in.safetensors", "-o", "x.dcz", "--recipe", "uniform", "--max-size", "100B"), 3),
    ],
)
def test_debug_shows_the_traceback_and_changes_no_exit_code(args, code, run, weights, capsys):
    plain = run(*args, code=code).err.splitlines()[-1]
    assert cli.main([*args, "--debug", *(["--force"] if code == 3 and "compress" in args else [])]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == plain


def test_a_pickle_is_never_executed(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"w": Bomb()}, tmp_path / "evil.pt")
    assert "evil.pt" in run("compress", "evil.pt", "-o", "x.dcz", code=1).err
    assert not (tmp_path / "executed").exists()


def test_shards_outside_their_folder_are_refused(run, weights, tmp_path):
    (tmp_path / "shards").mkdir()
    index = {"weight_map": {"fc.weight": "../in.safetensors"}}
    (tmp_path / "shards" / "m.safetensors.index.json").write_text(json.dumps(index))
    assert "'../in.safetensors'" in run("compress", "shards", "-o", "x.dcz", code=1).err


@pytest.mark.parametrize(("stop", "word"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated")])
@pytest.mark.parametrize(
    ("where", "written"), [("serializer.pack", False), ("pipeline.inspect", True)], ids=["writing", "measuring"]
)
@pytest.mark.parametrize("force", [False, True])
def test_a_stop_leaves_the_old_file_or_the_new_one_and_says_which(stop, word, where, written, force, tmp_path):
    save_file({f"w{i}": torch.randn(20, 20) for i in range(5)}, tmp_path / "in.safetensors")
    if force:
        (tmp_path / "x.dcz").write_bytes(b"old")
    code = f"""
        import os, signal, sys
        from deepcomp import cli, {where.split(".")[0]} as module
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
        def stop(*_, **__):
            os.kill(os.getpid(), signal.{stop})
        module.{where.split(".")[1]} = stop
        sys.exit(cli.main(["compress", "in.safetensors", "-o", "x.dcz", *{["--force"] * force}]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    told = "x.dcz was written, but not measured" if written else "x.dcz was not written"
    assert done.stderr == f"deepcomp: {word}; {told}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in.safetensors"} | ({"x.dcz"} if written or force else set())
    assert not force or ((tmp_path / "x.dcz").read_bytes() == b"old") != written


def test_the_command_can_be_called_from_any_thread_and_leaves_the_process_as_it_was(run, weights):
    before = (signal.getsignal(signal.SIGTERM), list(warnings.filters))
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(cli.main(["compress", "in.safetensors", "-o", "x.dcz"]))
    )  # fmt: skip
    thread.start()
    thread.join()
    run("compress", "in.safetensors", "-o", "y.dcz")
    assert codes == [0]
    assert before == (signal.getsignal(signal.SIGTERM), list(warnings.filters))


def test_a_page_is_replaced_with_force_alone(run, weights, tmp_path):
    run("compress", "in.safetensors", "-o", "x.dcz")
    run("inspect", "x.dcz", "--html", "x.html")
    assert "exists already" in run("inspect", "x.dcz", "--html", "x.html", code=1).err
    run("inspect", "x.dcz", "--html", "x.html", "--force")
    good = (tmp_path / "x.dcz").read_bytes()
    assert "another name" in run("inspect", "x.dcz", "--html", "x.dcz", "--force", code=2).err
    assert (tmp_path / "x.dcz").read_bytes() == good


def strict(text):
    return json.loads(text, parse_constant=pytest.fail)


def test_json_has_no_numbers_that_json_does_not_have(run, tmp_path, monkeypatch):
    (tmp_path / "endless_metric.py").write_text(
        textwrap.dedent("""
        import torch
        from deepcomp import Data
        from deepcomp.model.datasets import load_data

        def endless(outputs, targets):
            return float("inf")
        endless.higher_is_better = True

        def data():
            digits = load_data("digits")
            return Data(digits.train, digits.test, endless)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    save_file(zoo.build("digits-cnn").state_dict(), tmp_path / "w.safetensors")
    args = ("w.safetensors", "--model", "digits-cnn", "--data", "endless_metric:data", "--json")
    assert strict(run("evaluate", *args).out)["value"] is None
    done = strict(run("compress", *args, "-o", "x.dcz", "--recipe", "uniform", "--pareto", "c.json").out)
    assert done["metric"] == {"name": "endless", "before": None, "after": None, "drop": None}
    assert strict((tmp_path / "c.json").read_text())["points"][0]["quality"] is None


def test_a_file_with_operations_needs_no_model(run, tmp_path):
    save_file(zoo.build("digits-cnn").state_dict(), tmp_path / "w.safetensors")
    run("compress", "w.safetensors", "-o", "x.dcz", "--model", "digits-cnn")
    for args in (("compress", "x.dcz", "-o", "y.dcz"), ("evaluate", "x.dcz", "--data", "digits")):
        assert "x.dcz: brings its own operations" in run(*args, "--model", "lenet-5", code=2).err
        run(*args)
    assert "brings its own operations" in run("compress", "x.dcz", "-o", "z.dcz", "--input", "1x1x8x8", code=2).err


def test_evaluate_tells_the_bytes_of_all_shards(run, tmp_path):
    state = zoo.build("digits-cnn").state_dict()
    (tmp_path / "shards").mkdir()
    save_file(state, tmp_path / "shards" / "m.safetensors")
    index = {"weight_map": dict.fromkeys(state, "m.safetensors")}
    (tmp_path / "shards" / "m.safetensors.index.json").write_text(json.dumps(index))
    found = json.loads(run("evaluate", "shards", "--model", "digits-cnn", "--data", "digits", "--json").out)
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "shards").iterdir())


def test_the_limit_on_dense_bytes_may_be_raised_wherever_a_file_is_read(run, tmp_path, monkeypatch):
    save_file({"w": torch.zeros(500, 500)}, tmp_path / "in.safetensors")
    run("compress", "in.safetensors", "-o", "x.dcz")
    monkeypatch.setattr("deepcomp.loader.MAX_BYTES", 1000)
    monkeypatch.setattr("deepcomp.loader.MAX_RATIO", 1)
    assert "max_bytes" in run("verify", "x.dcz", code=3).err
    for args in (
        ("compress", "x.dcz", "-o", "y.dcz"),
        ("decompress", "x.dcz", "-o", "y.safetensors"),
        ("inspect", "x.dcz"),
        ("verify", "x.dcz", "--against", "x.dcz"),
    ):
        assert "max_bytes" in run(*args, code=1).err
        run(*args, "--max-bytes", "16MB")


@pytest.fixture
def diagnosed(tmp_path):
    """What to call `diagnose` with, and a recipe that breaks the network."""
    save_file(zoo.build("digits-cnn").state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "mine.toml").write_text(
        '[[step]]\ndo = "quantize"\nbits = 2\nper = "tensor"\n'
        '[[step]]\ndo = "quantize-activations"\nbits = 4\nsamples = 64\n'
    )
    return ("diagnose", "w.safetensors", "--model", "digits-cnn", "--data", "digits", "--items", "60")


def test_diagnose_tells_what_hurts_and_what_to_try(run, diagnosed, tmp_path):
    args = (*diagnosed, "--recipe", "mine.toml")
    shown = run(*args, "--html", "x.html").out
    for words in (
        "recipe mine",
        "on 60 items",
        "in floating point",
        "weight fc1.weight",
        "activation x",
        "what to try",
    ):
        assert words in shown
    assert "fc1.weight" in (tmp_path / "x.html").read_text()
    found = strict(run(*args, "--json", "--set", "quantize.bits=3").out)
    assert {row["name"]: row["bits"] for row in found["sweep"]}["fc1.weight"] == 3
    assert found["parts"]["fp32"]["snr"] is None
    run("compress", "w.safetensors", "-o", "x.dcz", *args[2:6], "--recipe", "mine.toml")
    told = run("diagnose", "x.dcz", "--data", "digits", "--items", "60")
    assert "as it is" in told.out
    assert "warning: x.dcz: looked at as it is" in told.err
    assert "is quantised already" in run("diagnose", "x.dcz", "--data", "digits", "--recipe", "ptq", code=2).err


def test_a_page_of_a_diagnosis_is_replaced_with_force_alone(run, diagnosed, tmp_path):
    args = (*diagnosed, "--recipe", "mine.toml", "--html", "x.html")
    (tmp_path / "x.html").write_text("precious")
    assert "exists already" in run(*args, code=1).err
    assert (tmp_path / "x.html").read_text() == "precious"
    run(*args, "--force")
    assert "precious" not in (tmp_path / "x.html").read_text()
    weights = (tmp_path / "w.safetensors").read_bytes()
    assert "another name" in run(*args[:-1], "w.safetensors", "--force", code=2).err
    assert (tmp_path / "w.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("w.safetensors", "--data", "digits"), 2, "--model"),
        (("w.safetensors", "--model", "digits-cnn"), 2, "--data"),
        (("w.safetensors", "--model", "digits-cnn", "--data", "nope"), 2, "nope"),
        (("w.safetensors", "--model", "digits-cnn", "--data", "digits", "--recipe", "nope"), 2, "nope"),
        (("w.safetensors", "--model", "digits-cnn", "--data", "digits", "--set", "nope.bits=2"), 2, "nope.bits"),
        (("w.safetensors", "--model", "digits-cnn", "--data", "digits", "--set", "nope"), 2, "STEP.KEY=VALUE"),
        (("w.safetensors", "--model", "digits-cnn", "--data", "digits", "--items", "0"), 2, "items = 0"),
        (("w.safetensors", "--model", "lenet-5", "--data", "digits"), 1, "do not fit lenet-5"),
        (("none.safetensors", "--model", "digits-cnn", "--data", "digits"), 1, "none.safetensors"),
        (("none.dcz", "--data", "digits"), 1, "none.dcz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_diagnosed_is_said_in_one_line(run, diagnosed, tmp_path, args, code, words):
    found = run("diagnose", *args, "--html", "x.html", code=code)
    lines = [line for line in found.err.splitlines() if line.strip() and not line.startswith(("usage:", " "))]
    assert len(lines) == 1
    assert words in found.err
    assert not found.out
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "mine.toml"}


@pytest.mark.parametrize("where", ["diagnosis.flow.advise", "container.writer.move"])
def test_a_stop_leaves_no_page(where, diagnosed, tmp_path):
    module, _, name = where.rpartition(".")
    code = f"""
        import os, signal, sys
        from deepcomp import cli
        import deepcomp.{module} as module
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def stop(*_, **__):
            os.kill(os.getpid(), signal.SIGINT)
        module.{name} = stop
        sys.exit(cli.main([*{diagnosed!r}, "--recipe", "mine.toml", "--html", "x.html"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "deepcomp: interrupted\n")
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "mine.toml"}


def test_demo_shows_accuracy_ratio_and_where_each_byte_goes(run, tmp_path):
    shown = run("demo", "-o", "out").out
    for word in ("lossless", "uniform", "deep-compression", "accuracy", "x smaller", "frame"):
        assert word in shown
    assert len(list((tmp_path / "out").glob("*.dcz"))) == 3
