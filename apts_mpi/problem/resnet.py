"""A small residual network for images, normalised over groups of channels: its outputs depend on one sample alone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

STAGES = (16, 32, 64)  # channels; each stage but the first halves the sides
BLOCKS = 2  # per stage
GROUP = 8  # channels that are normalised together


class Block(nn.Module):
    """x + F(x), F = two times normalisation, ReLU, 3x3 convolution (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(inside // GROUP, inside), nn.GroupNorm(outside // GROUP, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False) if (inside, stride) != (outside, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        ready = functional.relu(self.norm1(x))
        change: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(ready))))
        return change + (x if self.short is None else self.short(ready))


def resnet(sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Convolution with stride 2, three stages of two blocks with 16, 32 and 64 channels, mean over the image, linear head.

    The first stride quarters the work. ValueError for samples that are not (channels, height, width).
    """
    if len(sample_shape) != 3:
        raise ValueError(f"model.name = 'resnet' needs samples of shape (channels, height, width), got {sample_shape}")
    layers: list[nn.Module] = [nn.Conv2d(sample_shape[0], STAGES[0], 3, 2, padding=1, bias=False)]
    inside = STAGES[0]
    for outside in STAGES:
        for index in range(BLOCKS):
            layers.append(Block(inside, outside, 2 if index == 0 and outside > inside else 1))
            inside = outside
    head = (nn.GroupNorm(inside // GROUP, inside), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, outputs))
    return nn.Sequential(*layers, *head)
