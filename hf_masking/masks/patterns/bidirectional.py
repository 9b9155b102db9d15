"""The base of masks that are bidirectional inside marked spans."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..intervals import Intervals
from ..marks import Bounds, unknown
from ..pattern import Pattern
from ..tile import Tile, classify


@dataclass(frozen=True)
class Bidirectional(Pattern):
    """The pairs whose query and key are in the same span. Each row of a batch may have its own spans (`Mask.bind`)."""

    @property
    def bounds(self) -> Bounds | None:
        """The spans, in order: first position and the one after the last; None if only the batch knows them."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.name} if self.bounds is None else ())

    def intervals(self, q: Tensor) -> list[Intervals]:
        starts, stops = self._edges(q)
        span = _span_of(q, starts, stops)
        # Rows outside of the spans are empty intervals, at a position that exists.
        first, stop = (torch.where(span >= 0, _look_up(edges, span), q) for edges in (starts, stops))
        return [Intervals(first, stop)]

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        if q.ndim == 0:
            return self._allows_pair(q, k)
        edges = self._edges(q)
        span = _span_of(q, *edges)
        return (span >= 0) & (span == _span_of(k, *edges))

    def _allows_pair(self, q: Tensor, k: Tensor) -> Tensor:
        """Return whether a single query may attend to a key, without tensors of edges.

        FlexAttention's compiler, which traces `allows` for one pair, cannot read such tensors.
        """
        allowed = torch.zeros_like(q < k)
        for start, stop in self._bounds():
            allowed = allowed | ((q >= start) & (q < stop) & (k >= start) & (k < stop))
        return allowed

    def tiles(self, q_lo: Tensor, q_hi: Tensor, k_lo: Tensor, k_hi: Tensor) -> Tensor:
        starts, stops = self._edges(q_lo)
        if not len(starts):
            shape = torch.broadcast_shapes(q_lo.shape, k_lo.shape)
            return torch.full(shape, Tile.NONE, dtype=torch.int8, device=q_lo.device)
        # A range meets the spans from the first one that ends after its start.
        first_q, first_k = (torch.searchsorted(stops, low.contiguous(), right=True) for low in (q_lo, k_lo))
        last_q, last_k = (torch.searchsorted(starts, high.contiguous()) - 1 for high in (q_hi, k_hi))
        first, last = torch.maximum(first_q, first_k), torch.minimum(last_q, last_k)
        none = (first > last) | (q_lo >= q_hi) | (k_lo >= k_hi)
        one = first.clamp(max=len(starts) - 1)
        inside = (starts[one] <= torch.minimum(q_lo, k_lo)) & (stops[one] >= torch.maximum(q_hi, k_hi))
        return classify(none, inside)

    def last_reader(self, k: Tensor) -> Tensor:
        starts, stops = self._edges(k)
        span = _span_of(k, starts, stops)
        return torch.where(span >= 0, _look_up(stops, span) - 1, -1)

    @property
    def lookahead(self) -> int:
        starts, stops = self._edges(torch.empty(0, device="cpu"))
        return max((stops - starts - 1).tolist(), default=0)

    def _bounds(self) -> Bounds:
        """Return the spans that are not empty; raise a ValueError if only the batch knows them."""
        if self.bounds is None:
            raise unknown(self.name)
        return tuple(span for span in self.bounds if span[0] < span[1])

    def _edges(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the starts and stops of the spans."""
        edges = torch.tensor(self._bounds(), dtype=torch.long, device=like.device)
        starts, stops = edges.reshape(-1, 2).unbind(-1)
        return starts.contiguous(), stops.contiguous()


def _span_of(x: Tensor, starts: Tensor, stops: Tensor) -> Tensor:
    """Return the index of the span that each position is in, -1 for none."""
    span = torch.searchsorted(starts, x.contiguous().view(-1), right=True).view(x.shape) - 1
    return torch.where((span >= 0) & (x < _look_up(stops, span)), span, -1)


def _look_up(edges: Tensor, span: Tensor) -> Tensor:
    """Return ``edges[span]``, with 0 where there is no span."""
    padded = torch.cat([edges, edges.new_zeros(1)])
    return padded.index_select(0, (span % (len(edges) + 1)).view(-1)).view(span.shape)
