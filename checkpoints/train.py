"""Train the networks of this folder: `python checkpoints/train.py digits-cnn|lenet-300-100|lenet-5|all`.

SGD with Nesterov momentum, weight decay, dropout and a cosine learning rate, on one thread, so that the
same seed gives the same file on the same machine. The last training items are held out to choose
the epoch; the test set is read once, after that choice.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from deepcomp.model import zoo
from deepcomp.model.data import Data, batches
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import call, evaluate


@dataclass(frozen=True)
class Plan:
    """How one network is trained."""

    data: str
    held_out: int  # training items, the last ones, that choose the epoch
    epochs: int
    batch: int
    rate: float
    decay: float
    dropout: dict[str, float]  # share of its inputs a layer loses while training


PLANS = {
    "digits-cnn": Plan("digits", 137, 40, 32, 0.05, 5e-4, {"fc1": 0.2}),
    "lenet-300-100": Plan("mnist", 5_000, 40, 128, 0.1, 2e-4, {"fc1": 0.1, "fc2": 0.2}),
    "lenet-5": Plan("mnist", 5_000, 20, 64, 0.05, 5e-4, {"fc1": 0.3, "fc2": 0.3}),
}


def add_dropout(model: nn.Module, shares: dict[str, float]) -> None:
    """Drop inputs of the named layers while training, without a layer of its own in the network."""

    def drop(share: float) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        return lambda layer, inputs: F.dropout(inputs[0], share, layer.training)

    for name, share in shares.items():
        model.get_submodule(name).register_forward_pre_hook(drop(share))


def train(name: str, plan: Plan, epochs: int, seed: int, data_dir: str | None, out: Path) -> None:
    """Train one network and write `out/name.safetensors`, with command and errors in its metadata."""
    torch.manual_seed(seed)
    data = load_data(plan.data, data_dir)
    total = len(data.train)
    kept = total - plan.held_out
    validation = Data(data.train, Subset(data.train, range(kept, total)), data.metric)
    model = zoo.build(name)
    add_dropout(model, plan.dropout)
    optimiser = torch.optim.SGD(model.parameters(), lr=plan.rate, momentum=0.9, nesterov=True, weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * math.ceil(kept / plan.batch))
    best, chosen, state = math.inf, 0, {}
    progress = tqdm(range(1, epochs + 1), desc=name, unit="epoch")
    for epoch in progress:
        model.train()
        for inputs, targets in batches(data.train, plan.batch, torch.randperm(kept)):
            loss = F.cross_entropy(call(model, inputs), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        error = 100 - evaluate(model, validation).value
        if error <= best:  # of equals the last, trained at the lower rate
            best, chosen, state = error, epoch, copy.deepcopy(model.state_dict())
        progress.set_postfix_str(f"validation error {error:.2f} %")

    model.load_state_dict(state)
    facts = {
        "command": f"python checkpoints/train.py {name} --epochs {epochs} --seed {seed}",
        "epoch": chosen,
        "validation_error": round(best, 2),
        "test_error": round(100 - evaluate(model, data).value, 2),
    }
    path = out / f"{name}.safetensors"
    # One key, because the order of several in the file is not fixed.
    save_file(state, path, metadata={"training": json.dumps(facts)})
    print(f"{path}: {facts}")


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description="Train the networks of this folder.")
    parser.add_argument("name", choices=[*PLANS, "all"])
    parser.add_argument("--data-dir", help="where mnist.npz is looked for first")
    parser.add_argument("--epochs", type=int, help="instead of the network's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the files made")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, plan in PLANS.items():
        if arguments.name in (name, "all"):
            epochs = arguments.epochs or plan.epochs
            train(name, plan, epochs, arguments.seed, arguments.data_dir, arguments.out)


if __name__ == "__main__":
    main()
