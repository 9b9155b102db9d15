"""Inputs for the tests of backends, and what watches over the memory that they take."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_masking.attention import masked_attention
from hf_masking.masks import HeadMasks, Mask

from ..masks.strategies import expressions

LONGEST = 100


@dataclass
class Problem:
    mask: Mask
    queries: int
    keys: int
    key_heads: int
    group: int
    documents: list[list[int]] | None
    dtype: torch.dtype
    softcap: float | None
    sinks: bool
    scale: float | None

    def inputs(self) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(self.queries * 101 + self.keys)
        heads = self.key_heads * self.group
        shapes = [(heads, self.queries, 5), (self.key_heads, self.keys, 5), (self.key_heads, self.keys, 3)]
        rows = 2 if self.documents else 1
        tensors = [torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
        if self.sinks:
            tensors.append(torch.randn(heads, generator=generator, dtype=torch.float64))
        return [tensor.to(self.dtype) for tensor in tensors]

    def outputs(self, inputs: list[torch.Tensor], backend: str) -> list[torch.Tensor]:
        """The output and the gradients of a fixed weighted sum of it."""
        inputs = [x.clone().requires_grad_() for x in inputs]
        documents = None if self.documents is None else torch.tensor(self.documents)
        output = masked_attention(
            *inputs[:3],
            self.mask,
            documents=documents,
            backend=backend,
            scale=self.scale,
            softcap=self.softcap,
            sink_logits=inputs[3] if self.sinks else None,
        )
        weight = torch.linspace(-1, 1, output.numel()).view(output.shape).to(self.dtype).to(output.dtype)
        (output * weight).sum().backward()
        return [output.detach(), *(x.grad for x in inputs)]


@st.composite
def problems(draw) -> Problem:
    keys = draw(st.integers(1, LONGEST))
    key_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (1, 6), (2, 3), (3, 2)]))
    counts = [count for count in (1, 2, 3) if key_heads * group % count == 0]
    masks = draw(st.lists(expressions, min_size=(count := draw(st.sampled_from(counts))), max_size=count))
    # Documents as lengths of runs, so that most have several tokens: -1 is padding, and an id may come back later.
    run = st.tuples(st.integers(-1, 2), st.integers(1, 40))
    row = st.lists(run, min_size=1, max_size=8).map(lambda runs: [i for i, n in runs for _ in range(n)])
    rows = draw(st.none() | st.tuples(row, row))
    return Problem(
        mask=masks[0] if count == 1 else HeadMasks(tuple(masks)),
        queries=draw(st.integers(1, keys)),
        keys=keys,
        key_heads=key_heads,
        group=group,
        documents=None if rows is None else [(r * keys)[:keys] for r in rows],
        dtype=draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])),
        softcap=draw(st.sampled_from([None, None, 2.0])),
        sinks=draw(st.booleans()),
        scale=draw(st.sampled_from([None, None, 0.7, 0.0, -0.7])),
    )


def long_inputs(length, dtype=torch.float64, heads=2, queries=None):
    generator = torch.Generator().manual_seed(length)
    lengths = (length if queries is None else queries, length, length)
    tensors = [torch.randn(1, heads, n, 8, generator=generator, dtype=dtype) for n in lengths]
    return [tensor.requires_grad_() for tensor in tensors]


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # Storage, since a view that repeats elements takes none.
        sizes = [x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def inputs(length=96, batch=2, heads=4, key_heads=2, size=16):
    generator = torch.Generator().manual_seed(0)
    counts = heads, key_heads, key_heads
    return [torch.randn(batch, count, length, size, generator=generator) for count in counts]
