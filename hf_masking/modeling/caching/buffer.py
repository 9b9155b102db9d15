"""Tensors with one column per cached token, appended in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class ColumnBuffer:
    """Storage of the retained columns: tensors ``[B, H, columns, D]`` by name, with room for more columns.

    columns: the retained columns, in ascending order.
    seen: number of columns that there have been.
    """

    def __init__(self) -> None:
        self.columns = torch.arange(0)
        self.seen = 0
        self._tensors: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """Return the retained columns of a tensor; None if nothing of this name was appended."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor[:, :, : len(self.columns)]

    def append(self, states: Mapping[str, Tensor], live: Callable[[], Tensor | None]) -> None:
        """Append new columns ``[B, H, n, D]``, in place where there is room.

        Parameters:
            live: called where columns are moved to make room; returns the indices of those to retain, None for all.
        """
        kept, first = len(self.columns), next(iter(states.values()))
        new = first.shape[2]
        self.columns = self.columns.to(first.device)
        for name, state in states.items():
            self._tensors.setdefault(name, state[:, :, :0])
        if torch.is_grad_enabled():
            # Written in place, earlier steps could not be differentiated.
            kept = self._make_room(live(), 0)
            for name, state in states.items():
                self._tensors[name] = torch.cat([self._tensors[name][:, :, :kept], state], dim=2)
        else:
            if self._is_closed() or any(kept + new > self._tensors[name].shape[2] for name in states):
                kept = self._make_room(live(), new)
            for name, state in states.items():
                self._tensors[name][:, :, kept : kept + new] = state
        self.columns = torch.cat([self.columns, torch.arange(self.seen, self.seen + new, device=first.device)])
        self.seen += new

    def truncate(self, seen: int) -> None:
        """Take back all columns from ``seen`` on."""
        self.columns, self.seen = self.columns[: int((self.columns < seen).sum())], seen

    def select(self, rows: Tensor) -> None:
        """Take rows of the batch."""
        self._tensors = {name: tensor[rows.to(tensor.device)] for name, tensor in self._tensors.items()}

    def to(self, device: torch.device | str) -> None:
        """Move the tensors to a device, without waiting for it."""
        self._tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors.items()}

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return next(iter(self._tensors.values())).device

    @property
    def rows(self) -> int:
        """The number of rows of the batch."""
        return len(next(iter(self._tensors.values())))

    @property
    def held_bytes(self) -> int:
        """The bytes that the tensors take, with their room for more."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors.values())

    @property
    def column_bytes(self) -> int:
        """The bytes that one column takes, in all rows."""
        return sum(tensor[:, :, :1].numel() * tensor.element_size() for tensor in self._tensors.values())

    def _make_room(self, live: Tensor | None, new: int) -> int:
        """Drop columns, and move the others to where ``new`` columns fit after them; return how many are left.

        The spare room is a share of what is retained, so that a column is moved a bounded number of times for each
        new one.
        """
        kept = len(self.columns) if live is None else len(live)
        spare = kept // 4 if live is None else max(1, kept // 128)
        for name, states in self._tensors.items():
            moved = states.new_empty(*states.shape[:2], kept + new + spare, states.shape[3])
            moved[:, :, :kept] = states[:, :, :kept] if live is None else states.index_select(2, live)
            self._tensors[name] = moved
        if live is not None:
            self.columns = self.columns[live]
        return kept

    def _is_closed(self) -> bool:
        """Return whether the tensors were made in inference mode, and may not be written to outside it."""
        return not torch.is_inference_mode_enabled() and any(tensor.is_inference() for tensor in self._tensors.values())
