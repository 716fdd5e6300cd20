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
# The rooms from the ground up, and what each may know of those below it. All may know the ground.
GROUND = ("version", "errors", "jit", "wire", "sizes", "quantizer")
MAY_IMPORT = {
    **{room: set() for room in (*GROUND, "recipes", "entropy", "container", "model", "allocation")},
    "weights": {"entropy"},
    "calibration": {"weights"},
    "runtime": {"weights", "model"},
    "entry": {"weights", "container"},
    "network": {"weights", "model", "entry", "runtime"},
    "loader": {"entropy", "weights", "model", "container", "entry", "runtime"},
    "report": {"weights", "container", "entry", "loader"},
    "training": {"weights", "model", "network", "runtime", "container"},
    "curvature": {"model", "network", "runtime"},
    "synthesis": {"model", "network"},
    "steps": {
        *("allocation", "calibration", "curvature", "entry", "model", "network", "report", "runtime", "training"),
        *("synthesis", "weights"),
    },
    "recipe": {"steps"},
    "serializer": {"entropy", "weights", "model", "container", "entry", "network"},
    "verification": {"loader", "model"},
    "opening": {"entry", "loader", "model", "network"},
    "budget": {"container", "recipe", "report"},
    "job": {"entry", "model", "network", "opening", "steps", "training"},
    "pipeline": {
        *("budget", "container", "job", "loader", "model", "network", "opening", "recipe", "report", "serializer"),
        "training",
    },
    "diagnosis": {
        *("calibration", "job", "loader", "model", "network", "opening", "recipe", "runtime", "steps", "weights"),
    },
    "demo": {"model", "pipeline", "verification"},
    "arguments": set(),
    "cli": {
        *("arguments", "container", "demo", "diagnosis", "loader", "model", "opening", "pipeline", "report"),
        "verification",
    },
    "__init__": {"loader"},
    "__main__": {"cli"},
}


def imports(tree):
    """The dotted names a program imports when it is imported or run; not those for type checkers."""
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def rooms(tree):
    """The rooms of the house among them."""
    return {name.split(".")[1] for name in imports(tree) if name.startswith("deepcomp.")}


def parsed(path):
    return ast.parse(path.read_text())


def test_every_room_is_listed_above_those_it_may_know():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there == set(MAY_IMPORT)
    listed = list(MAY_IMPORT)
    for room, known in MAY_IMPORT.items():
        assert known <= set(listed[: listed.index(room)]), room


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room):
    files = sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    for file in files:
        found = rooms(parsed(file)) - {*GROUND, room}
        assert found <= MAY_IMPORT[room], f"{file.name} imports {found - MAY_IMPORT[room]}"


@pytest.mark.parametrize(
    "line",
    [
        "from deepcomp import loader",
        "import deepcomp.loader",
        "import deepcomp.loader as l",
        "from deepcomp.loader import x",
    ],
)
def test_no_way_to_import_is_overlooked(line):
    assert rooms(ast.parse(f"def late():\n    {line}")) == {"loader"}
    assert rooms(ast.parse(f"if TYPE_CHECKING:\n    {line}")) == set()


def test_steps_do_not_import_each_other():
    for file in set((PACKAGE / "steps").glob("*.py")) - {PACKAGE / "steps" / "__init__.py"}:
        for name in imports(parsed(file)):
            parts = name.split(".")
            assert parts[:2] != ["deepcomp", "steps"] or parts[2:3] == ["step"], f"{file.name} imports {name}"


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
