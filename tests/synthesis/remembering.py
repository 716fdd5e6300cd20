"""A small classifier of images whose batch norms remember some."""

from __future__ import annotations

from typing import Any

import torch
from steps.nets import network
from torch import Tensor, nn

from deepcomp.network import Network


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def images(count: int = 64, height: int = 10, width: int = 9) -> Tensor:
    """Smooth images, as far from noise as photographs are."""
    coarse = torch.randn(count, 3, 3, 3)
    return 0.5 * nn.functional.interpolate(coarse, (height, width), mode="bilinear") + 0.3


def remembering(module: nn.Module, x: Tensor) -> Network:
    """A network whose batch norms have seen `x`, and nothing else."""
    net = network(module, x[:2])

    def remember(norm: Any, inputs: tuple[Tensor]) -> None:
        rows = inputs[0].transpose(0, 1).flatten(1)
        norm.running_mean.copy_(rows.mean(1))
        norm.running_var.copy_(rows.var(1))

    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(remember) for norm in norms]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return net
