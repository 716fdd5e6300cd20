"""Train the networks of this folder: `python checkpoints/train.py NAME|all`.

On one thread, with a cosine learning rate, so that the same seed gives the same file on the same machine.
The last training items are held out to choose the epoch; the test set is read once, after that choice.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset
from tqdm import tqdm

import deepcomp
from deepcomp.model import zoo
from deepcomp.model.data import Data, batches
from deepcomp.model.datasets import load_data
from deepcomp.model.evaluate import Score, call, evaluate
from deepcomp.training.augment import augmentation
from deepcomp.training.losses import loss_function


@dataclass(frozen=True)
class Plan:
    """How one network is trained."""

    data: str
    held_out: int  # training items, the last ones, that choose the epoch
    epochs: int
    batch: int
    rate: float
    decay: float
    dropout: dict[str, float] = field(default_factory=dict)  # share of its inputs a layer loses while training
    augment: str = "none"
    optimiser: str = "sgd"  # or adamw
    decay_all: bool = True  # also biases, normalisation and depthwise weights
    clip: float = math.inf  # the most the norm of all gradients may be
    half: bool = False  # stored as a .dcz file of float16


PLANS = {
    "digits-cnn": Plan("digits", 137, 40, 32, 0.05, 5e-4, {"fc1": 0.2}),
    "lenet-300-100": Plan("mnist", 5_000, 40, 128, 0.1, 2e-4, {"fc1": 0.1, "fc2": 0.2}),
    "lenet-5": Plan("mnist", 5_000, 20, 64, 0.05, 5e-4, {"fc1": 0.3, "fc2": 0.3}),
    "mobilenet-cifar": Plan("cifar10", 5_000, 12, 64, 0.1, 5e-4, augment="flip-crop"),
    "lstm-wikitext2": Plan("wikitext2", 340, 16, 16, 2e-3, 0.2, optimiser="adamw", clip=0.25, half=True),
    "transformer-wikitext2": Plan(
        "wikitext2", 340, 8, 16, 1e-3, 0.2, optimiser="adamw", decay_all=False, clip=1.0, half=True
    ),
}


def add_dropout(model: nn.Module, shares: dict[str, float]) -> None:
    """Drop inputs of the named layers while training, without a layer of its own in the network."""

    def drop(share: float) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        return lambda layer, inputs: F.dropout(inputs[0], share, layer.training)

    for name, share in shares.items():
        model.get_submodule(name).register_forward_pre_hook(drop(share))


def optimiser_of(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """The plan's optimiser; without `decay_all`, only weights that mix several inputs decay."""
    spared = [p for p in model.parameters() if not plan.decay_all and (p.dim() < 2 or p.shape[1] == 1)]
    decayed = [p for p in model.parameters() if all(p is not other for other in spared)]
    groups = [{"params": decayed, "weight_decay": plan.decay}, {"params": spared, "weight_decay": 0.0}]
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=plan.rate)
    return torch.optim.SGD(groups, lr=plan.rate, momentum=0.9, nesterov=True)


def badness(score: Score) -> float:
    """Error in percent where more is better, else the metric itself."""
    return 100 - score.value if score.higher_is_better else score.value


def fit(model: nn.Module, name: str, plan: Plan, data: Data, epochs: int) -> tuple[int, float]:
    """Train a network, leave it in the state of the best epoch, and return that and its held-out badness."""
    items = TensorDataset(*next(batches(data.train, len(data.train))))  # decoded once
    kept = len(items) - plan.held_out
    validation = Data(items, Subset(items, range(kept, len(items))), data.metric)
    optimiser, augment, cost = optimiser_of(model, plan), augmentation(plan.augment), loss_function("auto", data)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * math.ceil(kept / plan.batch))
    best, chosen, state = math.inf, 0, model.state_dict()
    progress = tqdm(range(1, epochs + 1), desc=name, unit="epoch")
    for epoch in progress:
        model.train()
        for inputs, targets in batches(items, plan.batch, torch.randperm(kept)):
            loss = cost(call(model, augment(inputs)), targets)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
            optimiser.step()
            schedule.step()
        found = badness(evaluate(model, validation))
        if found <= best:  # of equals the last, trained at the lower rate
            best, chosen, state = found, epoch, copy.deepcopy(model.state_dict())
        progress.set_postfix_str(f"held out {found:.2f}")
    model.load_state_dict(state)
    return chosen, best


def train(name: str, plan: Plan, epochs: int, seed: int, data_dir: str | None, out: Path) -> None:
    """Train one network and write its file; what it reached is printed, and is metadata of a safetensors file."""
    torch.manual_seed(seed)
    data = load_data(plan.data, data_dir)
    model = zoo.build(name)
    add_dropout(model, plan.dropout)
    chosen, best = fit(model, name, plan, data, epochs)
    if plan.half:
        model.load_state_dict({key: value.half() for key, value in model.state_dict().items()})
    measure = "perplexity" if data.metric == "perplexity" else "error"
    facts = {
        "command": f"python checkpoints/train.py {name} --epochs {epochs} --seed {seed}",
        "epoch": chosen,
        f"validation_{measure}": round(best, 2),
        f"test_{measure}": round(badness(evaluate(model, data)), 2),
    }
    print(f"{write(name, model, plan.half, facts, out)}: {facts}")


def write(name: str, model: nn.Module, half: bool, facts: dict[str, str | float], out: Path) -> Path:
    """The file of a trained network, `out/name.safetensors` or, at half precision, `out/name.dcz`."""
    if half:
        path = out / f"{name}.dcz"
        recipe = Path(__file__).with_name("float16.toml")
        deepcomp.compress(model, path, recipe=recipe, example_inputs=zoo.example(name), force=True)
    else:
        path = out / f"{name}.safetensors"
        # One key, because the order of several in the file is not fixed.
        save_file(model.state_dict(), path, metadata={"training": json.dumps(facts)})
    return path


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description="Train the networks of this folder.")
    parser.add_argument("name", choices=[*PLANS, "all"])
    parser.add_argument("--data-dir", help="where data is looked for first")
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
