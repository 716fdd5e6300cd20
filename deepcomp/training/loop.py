"""The training loop: epochs over the training items, judged on held-out ones, continued after an interruption."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from deepcomp.errors import InputError, UsageError, blaming
from deepcomp.model.data import Data, Inputs, MapStyle, batches, example_inputs
from deepcomp.model.evaluate import call, evaluate, evaluating
from deepcomp.network import Network
from deepcomp.training.augment import augmentation
from deepcomp.training.dropout import adjusted_dropout
from deepcomp.training.losses import Loss, distillation_loss, loss_function
from deepcomp.training.plan import Plan
from deepcomp.training.rate import EVERY, Rate
from deepcomp.training.trainee import Trainee

__all__ = ["split", "train", "validate"]

_JUDGED = 64  # held-out items a batch


def train(net: Network, plan: Plan, what: str = "finetune", layers: str = "*", skip: str = "") -> dict[str, Any]:
    """Train a network: centroids, scales and survivors of weights that have a form, and all other parameters.

    Every epoch draws from a random generator seeded by (seed, run, epoch) alone, so a run that is
    continued from a checkpoint ends where it would have ended without the interruption.

    Parameters
    ----------
    net : Network
        With a module and data; its forms, tensors and module are those of the chosen epoch afterwards.
    plan : Plan
    what : str
        A name for progress and errors.
    layers, skip : str
        Patterns of the tensors that train.

    Returns
    -------
    dict
        `epochs`, `chosen` (1 is the first epoch; 0 where none was, or none better than the start), and lists with an
        entry an epoch: `loss` (mean over the training items) and `validation` (the metric, or the loss where
        there is none).

    Raises
    ------
    UsageError
        No data, no module, nothing to train.
    InputError
        The loss is not finite, or data and network do not fit.
    """
    if net.data is None:
        raise UsageError(f"{what}: needs data to train on (--data)")
    run = _Run(net, plan, what, layers, skip)
    example = example_inputs(net.data)
    with (
        torch.enable_grad(),
        _threads(plan.threads),
        adjusted_dropout(run.trainee.module, run.trainee.densities(), plan.dropout, example),
    ):
        run.go()
    run.trainee.settle(net)
    return {"epochs": plan.epochs, "chosen": run.chosen, "loss": run.losses, "validation": run.scores}


def split(data: Data, held: int) -> tuple[MapStyle, MapStyle]:
    """Items to train on and items to judge by: the set's own, or the last `held` ones, a tenth at most."""
    if data.validation is not None:
        return data.train, data.validation
    count = len(data.train)
    first = count - min(held, count // 10)
    if first == count:
        return data.train, data.train
    return Subset(data.train, range(first)), Subset(data.train, range(first, count))  # type: ignore[arg-type]


def validate(module: nn.Module, data: Data, items: MapStyle, loss: Loss | None) -> tuple[float, float]:
    """The metric on some items, or the loss where there is none; and the same so that more is better."""
    if data.metric is not None:
        score = evaluate(module, Data(data.train, items, data.metric))
        return score.value, score.value if score.higher_is_better else -score.value
    assert loss is not None

    def of_batch(inputs: Inputs, targets: Tensor) -> Tensor:
        outputs = call(module, inputs)
        return loss(outputs, _on(outputs.device, targets))

    mean = _mean(module, items, of_batch)
    return mean, -mean


def _mean(module: nn.Module, items: MapStyle, loss: Callable[[Inputs, Tensor], Tensor]) -> float:
    """A loss of inputs and targets over some items, the module in eval mode."""
    total = 0.0
    with evaluating(module):
        for place, (inputs, targets) in enumerate(batches(items, _JUDGED)):
            total += float(loss(inputs, targets)) * min(_JUDGED, len(items) - _JUDGED * place)
    return total / len(items)


class _Run:
    """One training run: what it needs, and what it has reached."""

    def __init__(self, net: Network, plan: Plan, what: str, layers: str, skip: str) -> None:
        assert net.data is not None
        self.net, self.plan, self.what, self.data = net, plan, what, net.data
        self.number = net.runs = net.runs + 1
        self.where = layers, skip
        self.trainee = _moved(Trainee(net, layers, skip, plan.rounding, plan.scales > 0), plan.device)
        if not self.trainee.trained():
            raise UsageError(f"{what}: no parameter to train among layers {layers!r}")
        if plan.distill and net.teacher is None:
            raise UsageError(f"{what}: distill = {plan.distill} needs the uncompressed network as a teacher")
        with blaming(f"{type(net.teacher).__name__} cannot be copied"):
            self.teacher = copy.deepcopy(net.teacher).to(plan.device).eval() if plan.distill and net.teacher else None
        self.items, self.held = split(self.data, plan.validation)
        self.loss = loss_function(plan.loss, self.data) if plan.distill < 1 else None
        self.distillation = distillation_loss(plan.loss, self.data, plan.temperature)
        self.augment = augmentation(plan.augment)
        parts = self.trainee.grids("price") if plan.price else []
        self.rate = Rate(parts, _picture(self.data), plan.context) if parts else None
        # A batch of one item has no spread to normalise by: the item that is left over, another each time, then rests
        over = len(self.items) % plan.batch == 1 < plan.batch < len(self.items) and self.trainee.normalises()
        self.used = len(self.items) - over
        self.steps = math.ceil(self.used / plan.batch)
        self.optimiser = _optimiser(plan, self.trainee)
        self.slot = net.checkpoints.slot(self._identity()) if net.checkpoints is not None else None
        self.epoch, self.chosen, self.best = 0, 0, -math.inf
        self.losses: list[float] = []
        self.scores: list[float] = []
        self.state = self._copy()

    def go(self) -> None:
        """All epochs that are left; the trainee ends in the state of the chosen one."""
        self._resume()
        if self.plan.choose == "best" and self.epoch == 0 < self.plan.epochs:
            self.best = self._validate()[1]
        while self.epoch < self.plan.epochs:
            self._train_epoch()
            self._judge()
            self._save(finished=self.epoch == self.plan.epochs)
        self.trainee.load_state_dict(self.state)

    def _train_epoch(self) -> None:
        order = self._seed()
        self.trainee.train()
        if self.plan.epochs - self.epoch <= self.plan.frozen * self.plan.epochs + 1e-9:  # shares round
            self.trainee.freeze()
        total, seen = 0.0, 0
        for step, (inputs, targets) in enumerate(batches(self.items, self.plan.batch, order)):
            done = self.epoch * self.steps + step
            if self.rate is not None and step % EVERY == 0:  # of each epoch: one that is resumed begins with it
                self.rate.look()
            for group in self.optimiser.param_groups:
                group["lr"] = group["share"] * self._learning_rate(done)
            loss = self._step_loss(self.augment(inputs), targets)
            self.optimiser.zero_grad()
            (loss + self._penalty(done)).backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            size = min(self.plan.batch, self.used - seen)
            total, seen = total + loss.item() * size, seen + size
            if self.net.progress and step % 10 == 0:
                shown = f", {self.scores[-1]:.2f} held out" if self.scores else ""
                self.net.progress(f"{self.what}: loss {total / seen:.4f}{shown}", done, self.plan.epochs * self.steps)
        self.epoch += 1
        self.losses.append(total / seen)
        if not math.isfinite(self.losses[-1]):
            raise InputError(
                f"{self.what}: the loss is {self.losses[-1]} in epoch {self.epoch}, a finite one expected; "
                f"a rate below {self.plan.rate} may help"
            )

    def _step_loss(self, inputs: Any, targets: Tensor) -> Tensor:
        outputs = call(self.trainee, inputs)
        wanted, share = outputs.new_zeros(()), self.plan.distill
        if share < 1:
            assert self.loss is not None
            wanted = (1 - share) * self.loss(outputs, _on(outputs.device, targets))
        if self.teacher is not None:
            with torch.no_grad():
                taught = call(self.teacher, inputs)
            wanted = wanted + share * self.distillation(outputs, taught)
        return wanted

    def _penalty(self, step: int) -> Tensor | float:
        """What weights off their grids cost by now, and the bits of those on them."""
        plan, done = self.plan, self._done(step)
        off = plan.penalty * done * self.trainee.penalty(plan.shape) if plan.penalty else 0.0
        if self.rate is None:
            return off
        return off + plan.price * _risen(done, plan.ramp) * self.rate()

    def _validate(self) -> tuple[float, float]:
        """See `validate`; by distillation where it is all there is."""
        if self.data.metric is not None or self.loss is not None:
            return validate(self.trainee, self.data, self.held, self.loss)
        mean = _mean(self.trainee, self.held, self._step_loss)
        return mean, -mean

    def _judge(self) -> None:
        """Measure the epoch on the held-out items, and keep its state if it is the one to choose."""
        shown, better = self._validate()
        self.scores.append(shown)
        if self.plan.choose == "last" or better >= self.best:
            self.best, self.chosen, self.state = better, self.epoch, self._copy()

    def _done(self, step: int) -> float:
        """The share of the training before a step."""
        return step / (self.steps * self.plan.epochs)

    def _learning_rate(self, step: int) -> float:
        done = self._done(step)
        falls = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.plan.rate * _risen(done, self.plan.warmup) * falls[self.plan.schedule]

    def _seed(self) -> Tensor:
        """Seed everything random of this epoch; returns the order of the items."""
        digest = hashlib.sha256(f"{self.net.seed} {self.number} {self.epoch}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.randperm(len(self.items))[: self.used]

    def _copy(self) -> dict[str, Any]:
        return {name: value.detach().clone() for name, value in self.trainee.state_dict().items()}

    # --- what is kept on disk -------------------------------------------------------------------

    def _identity(self) -> str:
        """Says which run this is: everything its result depends on but the contents of data that was given."""
        digest = hashlib.sha256(self.trainee.kinds().encode())
        if self.net.captured is not None:
            digest.update(self.net.captured.graph.to_bytes())
        for name, value in self.trainee.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        items = f"{len(self.items)} {len(self.held)} {self.net.origin}"
        return f"{self.plan} {self.where} {self.net.seed} {self.number} {items} {digest.hexdigest()}"

    def _save(self, finished: bool) -> None:
        if self.slot is None:
            return
        facts = {"epoch": self.epoch, "chosen": self.chosen, "best": self.best, "finished": finished}
        reached = {"losses": self.losses, "scores": self.scores, "state": self.state}
        going = {} if finished else {"now": self._copy(), "optimiser": self.optimiser.state_dict()}
        self.slot.save({**facts, **reached, **going}, finished)

    def _resume(self) -> None:
        found = self.slot.load() if self.slot is not None else None
        if found is None:
            return
        assert self.slot is not None
        try:
            self.epoch, self.chosen, self.best = found["epoch"], found["chosen"], found["best"]
            self.losses, self.scores, self.state = found["losses"], found["scores"], found["state"]
            if not found["finished"]:
                self.trainee.load_state_dict(found["now"])
                self.optimiser.load_state_dict(found["optimiser"])
        except (KeyError, RuntimeError, ValueError):
            raise self.slot.damaged() from None


def _moved(trainee: Trainee, device: str) -> Trainee:
    try:
        return trainee.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UsageError(f"device = {device!r}: {' '.join(str(error).split())}") from None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _risen(done: float, ramp: float) -> float:
    """How far something has risen that rises linearly in a share of the training, 0 to 1."""
    return min(done / ramp, 1.0) if ramp else 1.0


def _picture(data: Data) -> tuple[int, ...]:
    """Channels, height and width of the inputs; () where these are no pictures."""
    inputs = example_inputs(data)
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) and inputs.ndim == 4 else ()


def _on(device: torch.device, targets: Any) -> Any:
    return targets.to(device) if isinstance(targets, Tensor) else targets


def _optimiser(plan: Plan, trainee: Trainee) -> torch.optim.Optimizer:
    """The optimiser, and for each group of parameters its `share` of the learning rate."""
    ranges = set(trainee.ranges())
    others = [parameter for parameter in trainee.trained() if parameter not in ranges]
    groups: list[dict[str, Any]] = [{"params": others, "share": 1.0}]
    groups += [{"params": list(trainee.ranges()), "share": plan.scales, "weight_decay": 0.0}] if ranges else []
    if plan.optimiser == "sgd":
        nesterov = plan.momentum > 0
        return torch.optim.SGD(groups, plan.rate, plan.momentum, weight_decay=plan.decay, nesterov=nesterov)
    kind = torch.optim.Adam if plan.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, plan.rate, weight_decay=plan.decay)
