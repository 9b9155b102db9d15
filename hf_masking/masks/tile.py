"""What a mask says of a rectangle of (query block x key block): nothing, something or everything is allowed."""

import enum

import torch
from torch import Tensor


class Tile(enum.IntEnum):
    """Three-valued logic (Kleene's): the order NONE < SOME < ALL makes union a maximum and intersection a minimum."""

    NONE = 0
    SOME = 1
    ALL = 2


def classify(none: Tensor, all_: Tensor) -> Tensor:
    """Tiles as int8 from two boolean tensors; an empty rectangle is both, and counts as NONE."""
    tiles = torch.where(all_, Tile.ALL, Tile.SOME)
    return torch.where(none, Tile.NONE, tiles).to(torch.int8)


def union(left: Tensor, right: Tensor) -> Tensor:
    return torch.maximum(left, right)


def intersection(left: Tensor, right: Tensor) -> Tensor:
    return torch.minimum(left, right)


def difference(left: Tensor, right: Tensor) -> Tensor:
    return torch.minimum(left, Tile.ALL - right)
