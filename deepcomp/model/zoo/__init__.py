"""Built-in networks by name, and networks of the user's own by `package.module:callable`.

No data and no trained weights live here: `build` returns a freshly initialised module whose
parameter names and shapes are those of the published checkpoints.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcomp.errors import UsageError, one_line
from deepcomp.model.zoo.images import CifarMobileNetV2, CifarResNet, DigitsCNN, LeNet5, LeNet300
from deepcomp.model.zoo.language import LENGTH, VOCABULARY, WordLSTM, WordTransformer

__all__ = ["NAMES", "build", "call_spec", "example", "find", "resolve"]


@dataclass(frozen=True)
class _Entry:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of one input, without the batch
    words: int = 0  # what integer inputs count to; 0: floats in [0, 1)


_MNIST, _CIFAR = (1, 28, 28), (3, 32, 32)
_ZOO = {
    "digits-cnn": _Entry(DigitsCNN, (1, 8, 8)),
    "lenet-300-100": _Entry(LeNet300, _MNIST),
    "lenet-5": _Entry(LeNet5, _MNIST),
    "resnet20": _Entry(lambda: CifarResNet(20), _CIFAR),
    "resnet32": _Entry(lambda: CifarResNet(32), _CIFAR),
    "resnet44": _Entry(lambda: CifarResNet(44), _CIFAR),
    "resnet56": _Entry(lambda: CifarResNet(56), _CIFAR),
    "resnet110": _Entry(lambda: CifarResNet(110), _CIFAR),
    "mobilenet-cifar": _Entry(CifarMobileNetV2, _CIFAR),
    "lstm-wikitext2": _Entry(WordLSTM, (LENGTH,), VOCABULARY),
    "transformer-wikitext2": _Entry(WordTransformer, (LENGTH,), VOCABULARY),
}
NAMES: tuple[str, ...] = tuple(_ZOO)


def _entry(name: str) -> _Entry:
    if name not in _ZOO:
        raise UsageError(
            f"unknown model {name!r}: expected one of {', '.join(NAMES)}, or package.module:callable for your own"
        )
    return _ZOO[name]


def build(name: str) -> nn.Module:
    """A built-in network in eval mode, initialised from torch's global random generator.

    Raises
    ------
    UsageError
        No such network; the message lists those there are.
    """
    return _entry(name).make().eval()


def example(name: str) -> tuple[Tensor, ...]:
    """Positional inputs of a built-in network: a batch of two, always the same.

    Images are float32 in [0, 1), words int64 below the size of the vocabulary.

    Raises
    ------
    UsageError
        No such network; the message lists those there are.
    """
    entry, generator = _entry(name), torch.Generator().manual_seed(0)
    if entry.words:
        return (torch.randint(entry.words, (2, *entry.shape), generator=generator),)
    return (torch.rand(2, *entry.shape, generator=generator),)


def find(spec: str) -> Callable[..., object]:
    """The callable named by `package.module:callable`.

    The current directory is searched too, as `python -m` would. The callable may be dotted
    (`module:Class.method`).

    Raises
    ------
    UsageError
        The module cannot be imported or lacks the callable.
    """
    module_name, _, attribute = spec.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"{spec!r} is not of the form package.module:callable")
    here = "" not in sys.path
    if here:
        sys.path.insert(0, "")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does while it is imported
        raise UsageError(f"{spec}: cannot import {module_name}: {one_line(error)}") from error
    finally:
        if here:
            sys.path.remove("")
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{spec}: {module_name} has no {attribute}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{spec}: {attribute} is a {type(found).__name__}, a callable was expected")
    return found


def call_spec(spec: str) -> object:
    """What the callable named by `package.module:callable` returns, called without arguments.

    Raises
    ------
    UsageError
        As `find`, or the call itself fails.
    """
    try:
        return find(spec)()
    except UsageError:
        raise
    except Exception as error:  # whatever the user's callable does
        raise UsageError(f"{spec}: calling {spec.partition(':')[2]}() failed: {one_line(error)}") from error


def resolve(spec: str) -> nn.Module:
    """The network a `--model` argument names, in eval mode.

    Parameters
    ----------
    spec : str
        A built-in name, or `package.module:callable` of something that returns an `nn.Module`.

    Raises
    ------
    UsageError
        One line naming the spec: an unknown name, a failing import, a missing callable, or a
        result that is no module.
    """
    if ":" not in spec:
        return build(spec)
    model = call_spec(spec)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{spec}: returned a {type(model).__name__}, a torch.nn.Module was expected")
    return model.eval()
