"""AlexNet and VGG-16 in the shapes of Caffe's models, which Han et al. 2016 compress; no weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VGG16", "AlexNet"]


class AlexNet(nn.Module):
    """Caffe's AlexNet (Krizhevsky et al. 2012), convolutions 2, 4 and 5 in two groups: 60,965,224 parameters."""

    image = (3, 227, 227)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, 4)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 1000) of images (N, 3, 227, 227)."""
        x = F.max_pool2d(F.local_response_norm(F.relu(self.conv1(x)), 5), 3, 2)
        x = F.max_pool2d(F.local_response_norm(F.relu(self.conv2(x)), 5), 3, 2)
        x = F.relu(self.conv4(F.relu(self.conv3(x))))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2)
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))
        return self.fc8(x)


class VGG16(nn.Module):
    """VGG-16 (Simonyan and Zisserman 2015, configuration D): 138,357,544 parameters."""

    image = (3, 224, 224)

    def __init__(self) -> None:
        super().__init__()
        channels, self.stages = 3, []
        for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
            names = [f"conv{stage}_{number}" for number in range(1, depth + 1)]
            for name in names:
                self.add_module(name, nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.stages.append(names)
        self.fc6 = nn.Linear(512 * 7 * 7, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 1000) of images (N, 3, 224, 224)."""
        for names in self.stages:
            for name in names:
                x = F.relu(self.get_submodule(name)(x))
            x = F.max_pool2d(x, 2)
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))
        return self.fc8(x)
