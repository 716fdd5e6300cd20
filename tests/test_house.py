"""The house: imports point down, and loading a file stays light."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import deepcomp

PACKAGE = Path(deepcomp.__file__).parent
# What each room may know of the others; below them all are errors, wire and jit.
GROUND = {"errors", "wire", "jit", "version"}
MAY_IMPORT = {
    "entropy": set(),
    "container": set(),
    "model": set(),
    "weights": {"entropy"},
    "runtime": {"model"},
    "entry": {"weights"},
    "network": {"weights", "model", "entry"},
    "training": {"weights", "model", "network", "container"},
    "steps": {"weights", "model", "network", "training", "report", "runtime"},
    "recipe": {"steps"},
    "serializer": {"entropy", "weights", "model", "container", "entry", "network"},
    "loader": {"entropy", "weights", "model", "container", "entry", "runtime"},
    "report": {"weights", "container", "entry", "loader"},
    "verification": {"entry", "loader", "runtime"},
}


def imports(path):
    """The modules of deepcomp a file imports when it is imported or run; not those for type checkers."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "deepcomp":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepcomp."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("deepcomp."))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room):
    files = sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    for file in files:
        found = set(imports(file)) - GROUND - {room}
        assert found <= MAY_IMPORT[room], f"{file.name} imports {found - MAY_IMPORT[room]}"


def test_steps_do_not_import_each_other():
    for file in (PACKAGE / "steps").glob("*.py"):
        names = {node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)}
        others = {name for name in names if (name or "").startswith("deepcomp.steps.")} - {"deepcomp.steps.step"}
        assert file.name == "__init__.py" or not others


def test_only_the_command_prints():
    for file in PACKAGE.rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
        prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert not prints or file.name == "cli.py", file


def test_nothing_is_executed_or_unpickled():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "compile", "pickle.load", "pickle.loads", "torch.export.load"), file
                if name == "torch.load":
                    assert "weights_only=True" in ast.unparse(node)


def test_loading_pulls_in_no_compression_side_library(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(8, 300), torch.nn.ReLU(), torch.nn.Linear(300, 4)).eval()
    path = tmp_path / "x.dcz"
    deepcomp.compress(net, path, recipe="deep-compression", example_inputs=torch.zeros(2, 8))
    code = f"""
        import sys, torch
        before = set(sys.modules)
        import deepcomp
        deepcomp.load({str(path)!r})(torch.zeros(3, 8)); deepcomp.load_state_dict({str(path)!r})
        with deepcomp.open({str(path)!r}) as f: f.get_tensor("0.weight")
        loaded = set(sys.modules) - before
        heavy = {{"sklearn", "scipy", "dahuffman", "tqdm", "numba", "matplotlib", "pickletools", "sympy"}}
        assert not heavy & {{name.partition(".")[0] for name in loaded}}, heavy & loaded
        steps = [name for name in loaded if name.startswith(("deepcomp.steps", "deepcomp.pipeline", "torch.export"))]
        assert not steps, steps
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]
