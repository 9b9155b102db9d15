"""The query's own block and some blocks before it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..progression import FOREVER
from .row_interval import RowInterval


@dataclass(frozen=True)
class BlockLocal(RowInterval):
    """The query's block and the ``lookback`` blocks before it, up to the query.

    ``0 <= i // b - j // b <= lookback`` and ``j <= i``. Roy et al. (https://arxiv.org/abs/2003.05997) and Rae &
    Razavi (https://arxiv.org/abs/2007.03356) use it as "local attention".

    Parameters:
        block_size: tokens in a block, at least 1.
        lookback: number of earlier blocks that a query sees whole, at least 0.

    ``block_local:2,1``::

        1 0 0 0 0 0
        1 1 0 0 0 0
        1 1 1 0 0 0
        1 1 1 1 0 0
        0 0 1 1 1 0
        0 0 1 1 1 1
    """

    block_size: int
    lookback: int = 0

    name: ClassVar[str] = "block_local"

    def __post_init__(self) -> None:
        self._require_int("block_size", 1)
        self._require_int("lookback", 0)

    def first_key(self, q: Tensor) -> Tensor:
        return (q.long() - q % self.block_size - self.lookback * self.block_size).clamp(min=0)

    def last_key(self, q: Tensor) -> Tensor:
        return q

    def first_reader(self, k: Tensor) -> Tensor:
        return k

    def last_reader(self, k: Tensor) -> Tensor:
        block = k.long() - k % self.block_size
        return (block + (self.lookback + 1) * self.block_size - 1).clamp(max=FOREVER)

    @property
    def lookahead(self) -> int:
        return 0
