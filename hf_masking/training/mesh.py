"""The processes of a run as a grid: some take different contexts, and some hold shards of the same ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import ProcessGroup

from ..modeling import sequence_parallel, shard_batch


@dataclass(frozen=True)
class Mesh:
    """Neighbouring processes hold the shards of the same contexts, since they exchange the most.

    place, places: which contexts this process takes, of how many.
    group: the processes that hold shards of the same contexts; None if each holds whole ones.

    Every process computes its own tokens' losses with all weights, and engines average gradients over all processes.
    So a token weighs the same whether the processes share out contexts or the tokens of one.
    """

    place: int
    places: int
    group: ProcessGroup | None = None

    @classmethod
    def of(cls, accelerator: Accelerator, ranks: int) -> Mesh:
        """Return the grid in which so many processes share a context; every process must call this."""
        index, count = accelerator.process_index, accelerator.num_processes
        if ranks == 1:
            return cls(index, count)
        # All processes make all groups, in one order.
        groups = [dist.new_group(list(range(first, first + ranks))) for first in range(0, count, ranks)]
        return cls(index // ranks, count // ranks, groups[index // ranks])

    def contexts(self, batch_size: int) -> list[int]:
        """Return the indices of this process's contexts in a batch."""
        return list(range(self.place, batch_size, self.places))

    def shard(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's part of a batch whose labels are those of the next tokens."""
        return batch if self.group is None else shard_batch(batch, self.group)

    def running(self) -> AbstractContextManager[None]:
        """Return the context in which forwards run."""
        return nullcontext() if self.group is None else sequence_parallel(self.group)
