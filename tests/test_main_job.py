"""The main job on real networks: compressed to one file, verified, and run from the file alone in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import deepcomp

LONG = [pytest.mark.slow, pytest.mark.timeout(1200)]  # CIFAR-10 is decoded from JPEG at each pass
CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
BRIEF = {"prune.rounds": 1, "prune.retrain.epochs": 1, "finetune.epochs": 1, "prune.density": 0.1}
UNTRAINED = {"prune.rounds": 1, "prune.retrain.epochs": 0, "finetune.epochs": 0, "prune.density": 0.5}
# network, data, recipe, settings, the least ratio and the largest drop in points
JOBS = [
    ("lenet-300-100", "mnist", "lossless", {}, 1.17, 0.0),
    ("lenet-300-100", "mnist", "uniform", {}, 4.5, 0.1),
    ("lenet-300-100", "mnist", "deep-compression", BRIEF, 33.0, 1.0),
    pytest.param("lenet-5", "mnist", "lossless", {}, 1.17, 0.0, marks=pytest.mark.slow),
    ("lenet-5", "mnist", "deep-compression", UNTRAINED, 9.0, 0.5),
    pytest.param("lenet-5", "mnist", "deep-compression", BRIEF, 33.0, 0.5, marks=LONG),
    pytest.param("resnet20", "cifar10", "lossless", {}, 1.17, 0.0, marks=LONG),
    pytest.param("resnet20", "cifar10", "uniform", {}, 4.0, 0.3, marks=LONG),
    pytest.param("resnet20", "cifar10", "deep-compression", UNTRAINED | {"prune.per": "layer"}, 8.5, 4.0, marks=LONG),
]


@pytest.mark.parametrize(("model", "data", "recipe", "settings", "ratio", "drop"), JOBS)
def test_compressed_verified_and_run_from_the_file_alone(
    model, data, recipe, settings, ratio, drop, data_dir, tmp_path
):
    weights = data_dir / "resnet20-cifar10.safetensors" if model == "resnet20" else CHECKPOINTS / f"{model}.safetensors"
    out = tmp_path / "x.dcz"
    report = deepcomp.compress(
        weights, out, recipe=recipe, model=model, data=data, data_dir=data_dir, settings=settings
    )
    assert not report.warnings
    assert report.ratio >= ratio
    assert report.metric["drop"] <= drop
    rows = deepcomp.verify(out, against=load_file(weights))["tensors"]
    assert recipe != "lossless" or all(row["identical"] for row in rows)
    command = [
        sys.executable,
        "-m",
        "deepcomp",
        "evaluate",
        str(out),
        "--data",
        data,
        "--data-dir",
        str(data_dir),
        "--json",
    ]
    fresh = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(fresh.stdout)["value"] == report.metric["after"]
