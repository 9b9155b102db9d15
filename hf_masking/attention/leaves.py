"""The weightings of a mask as the kernels see them: features in, log weights and their gradients out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..adaptive import Weighting


class LeafFeatures(NamedTuple):
    """The features of a leaf, or their gradients: of queries ``[B, H, N, r]`` and of keys ``[B, G, M, s]``.

    key: None for a leaf without features of keys.
    """

    query: Tensor
    key: Tensor | None


@dataclass(frozen=True)
class Leaf:
    """A weighting of a mask.

    hard: as in `Features`; constant: all queries have the same features.
    """

    weighting: Weighting
    hard: bool
    constant: bool


@dataclass
class DocumentLeaf:
    """A leaf with its features in one document, for some query heads: ``[H, N, r]`` and ``[G, M, s]``.

    gradients: where the gradients of the features are summed up; None in the forward pass.
    """

    leaf: Leaf
    features: LeafFeatures
    gradients: LeafFeatures | None = None

    def log_weight(self, query: Tensor, key: Tensor | None, distance: Tensor) -> Tensor:
        """Return the log weights of a tile, see `Weighting.log_weight`."""
        return self.leaf.weighting.log_weight(query, key, distance, self.leaf.hard)

    def tile_gradients(self, query: Tensor, key: Tensor | None, distance: Tensor, dS: Tensor) -> LeafFeatures:
        """Return the gradients of a tile's features from those of its scores, in any shape of as many numbers.

        The weights of the tile are computed once more, and differentiated by autograd.
        """
        with torch.enable_grad():
            query = query.detach().requires_grad_()
            key = None if key is None else key.detach().requires_grad_()
            weight = self.log_weight(query, key, distance)
            inputs = [query] if key is None else [query, key]
            gradients = torch.autograd.grad(weight, inputs, dS.view(weight.shape))
        return LeafFeatures(gradients[0], None if key is None else gradients[1])
