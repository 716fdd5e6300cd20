"""`deepcomp compress` with a budget: every recipe on ResNet-20 and both LeNets: `benchmarks/budgets.py [NETWORK …]`.

Each row is the command itself in a process of its own: its exit code (0, or 3 where the budget cannot be met), the
bytes of the file it left, what the network loses on the test set, and how often the recipe was run to find out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from runs import CHECKPOINTS
from timing import data_folder, finish, heading, machine, table

BUDGETS = (("--max-size", "100kB"), ("--max-drop", "0.5"))
RECIPES = ("lossless", "uniform", "deep-compression", "ptq", "ocs", "feedback", "adaquant-light", "adaquant")
NETWORKS = {
    "resnet20": ("resnet20-cifar10.safetensors", "cifar10"),
    "lenet-300-100": ("lenet-300-100.safetensors", "mnist"),
    "lenet-5": ("lenet-5.safetensors", "mnist"),
}
# Enough to see that the search works, not for the best file: two rounds of an epoch, on ResNet-20 no training at all.
EPOCHS = {"resnet20": 0, "lenet-300-100": 1, "lenet-5": 1}


def command(network: str, recipe: str, budget: tuple[str, str], out: Path) -> list[str]:
    """What is run: `deepcomp compress …`."""
    weights, data = NETWORKS[network]
    path = next(folder / weights for folder in (CHECKPOINTS, data_folder()) if (folder / weights).exists())
    epochs = EPOCHS[network]
    settings = {"prune.rounds": 1 + epochs, "prune.retrain.epochs": epochs, "finetune.epochs": epochs}
    brief = [f"--set={key}={value}" for key, value in settings.items()] if recipe == "deep-compression" else []
    given = ["compress", path, "-o", out, "--force", "--model", network, "--recipe", recipe, "--data", data]
    return [sys.executable, "-m", "deepcomp", *map(str, given), *budget, *brief, "--json"]


def row(network: str, recipe: str, budget: tuple[str, str], out: Path) -> list[str]:
    """One line of the table."""
    start = time.perf_counter()
    done = subprocess.run(command(network, recipe, budget, out), capture_output=True, text=True)
    took = time.perf_counter() - start
    said = (done.stderr.strip().splitlines() or [""])[-1]
    print(f"{network} {recipe} {' '.join(budget)}: exit {done.returncode}, {took:.0f} s: {said}", file=sys.stderr)
    if done.returncode not in (0, 3):
        return [recipe, str(done.returncode), said]
    report: dict[str, Any] = json.loads(done.stdout)
    runs, metric = len(report["points"]), report["metric"]
    verdict = "met" if done.returncode == 0 else said.partition("budget not met: ")[2].partition(";")[0]
    assert report["output_bytes"] == out.stat().st_size
    return [
        recipe,
        str(done.returncode),
        f"{report['output_bytes']:,}",
        f"{report['ratio']:.1f} ×",
        f"{metric['after']:.2f}",
        f"{0 - metric['drop']:+.2f}",
        str(runs),
        verdict,
    ]


def main() -> int:
    """Run the command with every recipe and budget."""
    parser = argparse.ArgumentParser(description="Budgets of every recipe.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="of " + ", ".join(NETWORKS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    options = parser.parse_args()
    if unknown := set(options.networks) - {*NETWORKS}:
        parser.error(f"{min(unknown)}: one of {', '.join(NETWORKS)} expected")
    machine()
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks or NETWORKS:
            for budget in BUDGETS:
                heading(f"{network}, {' '.join(budget)}")
                rows = [row(network, recipe, budget, Path(folder) / "out.dcz") for recipe in options.recipes]
                table(["recipe", "exit", "bytes", "ratio", "accuracy, %", "beside fp32", "runs", "budget"], rows)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
