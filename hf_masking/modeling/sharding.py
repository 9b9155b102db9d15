"""`Sharding`: which shard of a sequence this process holds, and the exchange of keys for one layer."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass

from torch import Tensor
from torch.distributed import ProcessGroup

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
@functools.lru_cache(maxsize=32)
def _held(mask: MaskExpression, documents: Documents, sharding: Sharding) -> tuple[Transfers, Documents]:
    needed = needed_columns(mask, documents, sharding.shards)
    transfers = Transfers.of_rank(needed, sharding.shards, sharding.rank)
    return transfers, transfers.held_documents(documents)
