"""-Laplace u = f in the unit cube with u = 0 on its border, for a network u whose derivatives are carried along exactly.

The network's output for a point x is -Laplace u(x), so that the loss ``mse`` against f(x) is the residual of the equation and no
derivative is taken by autograd but that of the loss. It therefore costs two passes less, and runs without gradients and in every dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Tanh(nn.Module):
    """Linear layers with tanh between them, for points of the unit cube; it starts with weights of Glorot and Bengio (2010)."""

    def __init__(self, dimensions: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        sizes = [dimensions, *widths, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dimensions) to (B, outputs)."""
        value = 2 * x - 1
        for layer in self.layers[:-1]:
            value = torch.tanh(layer(value))
        out: Tensor = self.layers[-1](value)
        return out

    def with_derivatives(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (B, outputs), gradient (B, dimensions, outputs) and Laplacian (B, outputs) at x (B, dimensions).

        Through a linear layer z = Wa + b all three go by W; through t = tanh z, with t' = 1 - t^2 and t'' = -2 t t',
        grad t = t' grad z and Laplace t = t' Laplace z + t'' |grad z|^2.
        """
        batch, dimensions = x.shape
        value = 2 * x - 1
        grad = 2 * torch.eye(dimensions, dtype=x.dtype, device=x.device).expand(batch, -1, -1)
        laplacian = torch.zeros_like(value)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            weight = layer.weight.T
            value, grad, laplacian = layer(value), grad @ weight, laplacian @ weight
            if index + 1 < len(self.layers):
                value = torch.tanh(value)
                slope = 1 - value.square()
                laplacian = slope * (laplacian - 2 * value * grad.square().sum(1))
                grad = slope.unsqueeze(1) * grad
        return value, grad, laplacian


class Poisson(nn.Module):
    """u(x) = b(x) v(x), v a ``Tanh`` and b = product of 4 x_k (1 - x_k): zero on the border whatever v is."""

    def __init__(self, dimensions: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.network = Tanh(dimensions, 1, widths)

    def solution(self, x: Tensor) -> Tensor:
        """u(x), shape (B,), for x (B, dimensions)."""
        out: Tensor = (4 * x * (1 - x)).prod(1) * self.network(x).squeeze(1)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """-Laplace u(x), shape (B,): -(b Laplace v + 2 grad b . grad v + v Laplace b)."""
        value, grad, laplacian = (part.squeeze(-1) for part in self.network.with_derivatives(x))
        factor, slope = 4 * x * (1 - x), 4 - 8 * x
        others = torch.stack([torch.cat([factor[:, :k], factor[:, k + 1 :]], 1).prod(1) for k in range(x.shape[1])], 1)
        b, grad_b, laplacian_b = factor.prod(1), slope * others, -8 * others.sum(1)
        return -(b * laplacian + 2 * (grad_b * grad).sum(1) + value * laplacian_b)


def tanh(sample_shape: tuple[int, ...], outputs: int, widths: Sequence[int]) -> nn.Module:
    """A smooth network for vectors: linear layers with tanh between them."""
    return nn.Sequential(nn.Flatten(), Tanh(math.prod(sample_shape), outputs, widths))


def poisson(sample_shape: tuple[int, ...], outputs: int, widths: Sequence[int]) -> nn.Module:
    """The network of Poisson's equation in as many dimensions as a sample has numbers; ValueError if f is not one number."""
    if len(sample_shape) != 1 or outputs != 1:
        raise ValueError(f"model.name = 'poisson' needs points, shape (dimensions,), and one number each, got {sample_shape} and {outputs}")
    return Poisson(sample_shape[0], widths)
