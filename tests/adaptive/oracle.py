"""Brute force: weights pair by pair from the definitions, choices block by block, attention as the dense formula."""

import math

import torch

from hf_masking.adaptive import LayerShape
from hf_masking.masks import Difference, Intersection, Union

SHAPE = LayerShape(hidden_size=12, query_heads=4, key_heads=2, head_size=3)


def weight(mask, i, j, leaf_weight):
    """The weight of a pair by the definition: union is the maximum, intersection the product.

    leaf_weight: called with an adaptive mask, i and j.
    """
    if isinstance(mask, Union):
        return max(weight(member, i, j, leaf_weight) for member in mask.members)
    if isinstance(mask, Intersection):
        return math.prod(weight(member, i, j, leaf_weight) for member in mask.members)
    if isinstance(mask, Difference):
        return weight(mask.left, i, j, leaf_weight) * (1 - weight(mask.right, i, j, leaf_weight))
    if mask.is_adaptive:
        return leaf_weight(mask, i, j) if j <= i else 0.0
    return float(mask.allows(torch.tensor(i), torch.tensor(j)))


def span_weight(mask, z, i, j):
    return min(1.0, max(0.0, 1 + (z - (i - j)) / mask.ramp))


def relevance_weight(mask, query, key, i, j, hard):
    f = 1 / (1 + math.exp(-sum(a * b for a, b in zip(query[i], key[j], strict=True))))
    return 0.0 if hard and f < mask.threshold and i != j else f


def chosen_blocks(mask, queries, keys, i):
    """The blocks that position i chooses; queries: lists of the heads that choose together, [g][n][D]."""
    complete = i // mask.block
    scores = []
    for block in range(complete):
        mine = keys[block * mask.block : (block + 1) * mask.block]
        sizes = range(len(keys[0]))
        if mask.score == "mean":
            mean = [sum(key[c] for key in mine) / len(mine) for c in sizes]
            score = sum(query[i][c] * mean[c] for query in queries for c in sizes)
        else:
            most, least = ([of(key[c] for key in mine) for c in sizes] for of in (max, min))
            score = sum(max(query[i][c] * most[c], query[i][c] * least[c]) for query in queries for c in sizes)
        scores.append((score, block))
    return {block for _, block in sorted(scores, reverse=True)[: mask.k]} | {complete}


def attention(query, key, value, weights):
    """softmax(scores + log weights), dense, in float64; a query without a key gives 0. weights: [B, Hq, N, N]."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    exponentials = (query @ key.mT / query.shape[-1] ** 0.5).exp() * weights
    total = exponentials.sum(-1, keepdim=True)
    return exponentials @ value / torch.where(total > 0, total, 1.0)
