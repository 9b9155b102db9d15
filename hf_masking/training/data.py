"""A text packed into contexts, and which contexts each step trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the label of what is not scored, as everywhere in PyTorch


@dataclass(frozen=True)
class Contexts:
    """A text as ``[n, context]`` inputs and labels; every token but the first is a label once."""

    inputs: Tensor
    labels: Tensor

    @classmethod
    def pack(cls, token_ids: Tensor, context: int) -> Contexts:
        """The last context is filled up with padding that is neither seen nor scored."""
        n = len(token_ids) - 1
        if n < context:
            raise ValueError(
                f"the text to train on has {len(token_ids)} tokens, and one context of {context} needs {context + 1}; "
                "use a longer text or a shorter context"
            )
        missing = -n % context
        inputs = F.pad(token_ids[:-1], (0, missing), value=0).view(-1, context)
        labels = F.pad(token_ids[1:], (0, missing), value=IGNORED).view(-1, context)
        return cls(inputs, labels)

    def indices(self, step: int, batch_size: int, seed: int) -> list[int]:
        """The contexts of a step: the next ones in an order that is drawn anew for every pass over the text."""
        n, orders = len(self.inputs), {}
        chosen = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch, within = divmod(place, n)
            if epoch not in orders:
                # Neighbouring seeds must not share orders, so epoch and seed do not simply add up.
                generator = torch.Generator().manual_seed((seed << 20) + epoch)
                orders[epoch] = torch.randperm(n, generator=generator).tolist()
            chosen.append(orders[epoch][within])
        return chosen

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """The arguments of a forward, and ``labels``; an attention mask only where something is padding."""
        inputs, labels = self.inputs[indices], self.labels[indices]
        batch = {"input_ids": inputs, "labels": labels}
        if bool((labels == IGNORED).any()):
            batch["attention_mask"] = (labels != IGNORED).long()
        return batch

    def scored(self) -> int:
        """How many labels count."""
        return int((self.labels != IGNORED).sum())


class Source(Protocol):
    """Where the contexts of a step come from: the same in every process, each of which takes its share."""

    def ready(self) -> None: ...

    def of_step(self, step: int) -> Contexts: ...


@dataclass(frozen=True)
class Shuffled:
    """Contexts in an order that is drawn anew for every pass over the text.

    What a step trains on is a pure function of (seed, step), so nothing has to be saved to resume, and it does not
    depend on the number of processes.
    """

    contexts: Contexts
    batch_size: int
    seed: int

    def ready(self) -> None:
        """Nothing is left to be read."""

    def of_step(self, step: int) -> Contexts:
        chosen = self.contexts.indices(step, self.batch_size, self.seed)
        return Contexts(self.contexts.inputs[chosen], self.contexts.labels[chosen])
