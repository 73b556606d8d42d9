"""A character transformer: of each position in a window, scores of the next character from those up to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 144
LAYERS = 4
HEADS = 4


class Attention(nn.Module):
    """softmax(Q K' / sqrt(d)) V over the positions up to the own one, in HEADS parts of the width."""

    mask: Tensor

    def __init__(self, context: int) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.full((context, context), -math.inf).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, WIDTH) to the same. Plain products: they are counted and run alike in every dtype."""
        batch, length, _ = x.shape
        q, k, v = self.project(x).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + self.mask[:length, :length]
        mixed = torch.softmax(scores, -1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return out


class Block(nn.Module):
    """x + attention, then x + two linear layers, each behind a normalisation (pre-norm)."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(context)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        change: Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + change


class Transformer(nn.Module):
    """Embeddings of characters and positions, LAYERS blocks, normalisation, linear head; no dropout, no tied weights."""

    def __init__(self, context: int, characters: int) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, WIDTH), nn.Embedding(context, WIDTH)
        blocks = [Block(context) for _ in range(LAYERS)]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)
        self.apply(_start)
        for block in blocks:  # their sum starts as large as one of them
            for layer in (block.attention.out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) integers to (B, T, characters)."""
        x = self.characters(tokens) + self.positions.weight[: tokens.shape[1]]
        scores: Tensor = self.head(self.norm(self.blocks(x)))
        return scores


def _start(layer: nn.Module) -> None:
    """The usual start of transformers: normal weights of deviation 0.02, biases 0."""
    if isinstance(layer, nn.Linear | nn.Embedding):
        nn.init.normal_(layer.weight, std=0.02)
    if isinstance(layer, nn.Linear):
        nn.init.zeros_(layer.bias)


def transformer(sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """4 blocks of width 144 with 4 heads, about a million parameters; ``outputs`` is the number of characters."""
    if len(sample_shape) != 1:
        raise ValueError(f"model.name = 'transformer' needs windows of characters, shape (length,), got {sample_shape}")
    return Transformer(sample_shape[0], outputs)
