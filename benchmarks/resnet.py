"""ResNet-20 and ResNet-50 in PyTorch, to time beside experiments/resnet.py.

    pip install -e '.[benchmark]'
    python -m benchmarks.resnet cifar10 [--rounds 20] [--batch 128] [--compiled]
    python -m benchmarks.resnet imagenet50 --batch 8

As in the paper: option A in the small network (the identity, subsampled, zeros for the new
channels at the end), option B in the large one, whose bottleneck has its stride in the first 1x1.
"""

import torch
from torch import nn
from torch.nn.functional import pad, relu

from benchmarks import step
from experiments.resnet import PRESETS, build


def convolution(channels: int, filters: int, kernel: int, strides: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels, filters, kernel, strides, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight)
    return layer


class Residual(nn.Module):
    """y = ReLU(x + F(x)), F convolutions of the given kernels, filters and strides."""

    def __init__(self, channels: int, layers: list[tuple[int, int, int]], project: bool):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.strides, inside = 1, channels
        for kernel, filters, strides in layers:
            self.convs.append(convolution(inside, filters, kernel, strides))
            self.norms.append(nn.BatchNorm2d(filters))
            self.strides, inside = self.strides * strides, filters
        self.new = inside - channels
        self.shortcut = None
        if project and (self.new or self.strides > 1):
            self.shortcut = nn.Sequential(
                convolution(channels, inside, 1, self.strides), nn.BatchNorm2d(inside)
            )

    def forward(self, x):
        y = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(relu(y) if index else y))
        if self.shortcut:
            x = self.shortcut(x)
        elif self.new:
            x = pad(x[:, :, :: self.strides, :: self.strides], (0, 0, 0, 0, 0, self.new))
        return relu(x + y)


class ResNet(nn.Module):
    def __init__(self, stem: list[nn.Module], blocks: list[Residual], width: int, classes: int):
        super().__init__()
        self.features = nn.Sequential(*stem, *blocks)
        self.classify = nn.Linear(width, classes)

    def forward(self, image):
        return self.classify(self.features(image).mean((2, 3)))


def small(depth: int = 20, channels: int = 3, classes: int = 10) -> ResNet:
    """Section 4.2: SmallResNet."""
    stem = [convolution(channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    blocks, width = [], 16
    for stage, filters in enumerate((16, 32, 64)):
        for index in range((depth - 2) // 6):
            strides = 2 if stage > 0 and index == 0 else 1
            layers = [(3, filters, strides), (3, filters, 1)]
            blocks.append(Residual(width, layers, project=False))
            width = filters
    return ResNet(stem, blocks, width, classes)


def large(stages: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> ResNet:
    """Table 1: 50 layers."""
    stem = [convolution(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, width = [], 64
    for stage, count in enumerate(stages):
        filters = 64 * 2**stage
        for index in range(count):
            strides = 2 if stage > 0 and index == 0 else 1
            layers = [(1, filters, strides), (3, filters, 1), (1, 4 * filters, 1)]
            blocks.append(Residual(width, layers, project=True))
            width = 4 * filters
    return ResNet(stem, blocks, width, classes)


TWINS = {"small": lambda: small(channels=1), "cifar10": small, "imagenet50": large}

if __name__ == "__main__":
    torch.manual_seed(0)
    step.main("resnet", build, PRESETS, TWINS)
