"""Tiles: whether a mask allows nothing, something or everything in a rectangle of (query block x key block)."""

import enum

import torch
from torch import Tensor


class Tile(enum.IntEnum):
    """A value of three-valued (Kleene) logic: by NONE < SOME < ALL, union is a maximum and intersection a minimum."""

    NONE = 0
    SOME = 1
    ALL = 2


def classify(none: Tensor, all_: Tensor) -> Tensor:
    """Return tiles as int8 from two boolean tensors; an empty rectangle is both, and counts as NONE."""
    tiles = torch.where(all_, Tile.ALL, Tile.SOME)
    return torch.where(none, Tile.NONE, tiles).to(torch.int8)


def union(left: Tensor, right: Tensor) -> Tensor:
    return torch.maximum(left, right)


def intersection(left: Tensor, right: Tensor) -> Tensor:
    return torch.minimum(left, right)


def difference(left: Tensor, right: Tensor) -> Tensor:
    return torch.minimum(left, Tile.ALL - right)
