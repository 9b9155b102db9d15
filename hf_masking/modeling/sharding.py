"""`Sharding`: which shard of a sequence this process holds, and the exchange of keys for one layer."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import pad

from ..attention import exchange
from ..masks import MaskExpression
from ..plan import Documents
from ..plan.shards import Shards, Transfers, needed_columns

_numbered: list[Sharding] = []
_lock = threading.Lock()


@dataclass(frozen=True)
class Sharding:
    """The shards of the ranks of a process group, and the rank of this process in it."""

    group: ProcessGroup
    rank: int
    shards: Shards

    @property
    def columns(self) -> slice:
        """The columns of this process."""
        return self.shards.columns(self.rank)

    @property
    def total(self) -> int:
        """The number of columns of all ranks."""
        return self.shards.edges[-1]

    @property
    def number(self) -> int:
        """A number for it that stays the same while the process runs: a tensor can hold it."""
        with _lock:
            if self not in _numbered:
                _numbered.append(self)
            return _numbered.index(self)

    @staticmethod
    def numbered(number: int) -> Sharding:
        """Return the one with this number."""
        return _numbered[number]

    def exchange(
        self, mask: MaskExpression, documents: Documents, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Documents]:
        """Return the keys and values that this rank holds after the exchange, and the documents of its queries."""
        transfers, held = _held(mask, documents, self)
        return *exchange(key, value, transfers, self.group), held


# All layers of a forward that have the same mask share transfers and documents, and so their plans.
@functools.lru_cache(maxsize=16)
def _held(mask: MaskExpression, documents: Documents, sharding: Sharding) -> tuple[Transfers, Documents]:
    needed = needed_columns(mask, documents, sharding.shards).to(documents.key_ids.device)
    transfers = Transfers.of_rank(needed, sharding.shards, sharding.rank)
    return transfers, transfers.held_documents(documents)


def gather_columns(x: Tensor, sizes: Sequence[int], group: ProcessGroup) -> Tensor:
    """Return ``[B, N]`` from the shards of all ranks, whose numbers of columns are ``sizes``; without gradients."""
    shards = gather_alike(pad(x, (0, max(sizes) - x.shape[1])), group)
    return torch.cat([shard[:, :size] for shard, size in zip(shards, sizes, strict=True)], dim=1)


def gather_alike(x: Tensor, group: ProcessGroup) -> Tensor:
    """Return the tensors of all ranks ``[ranks, ...]``, which have one shape; without gradients."""
    everyone = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, x.contiguous(), group=group)
    return torch.stack(everyone)
