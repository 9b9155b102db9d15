"""Pack a text into contexts, and choose those of each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # the label of tokens that are not scored, as everywhere in PyTorch


@dataclass(frozen=True)
class Contexts:
    """A text as inputs and labels ``[n, context]``; every token but the first is a label once."""

    inputs: Tensor
    labels: Tensor

    @classmethod
    def pack(cls, token_ids: Tensor, context: int) -> Contexts:
        """Pack a text; the last context is padded, and the padding is neither attended to nor scored."""
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
        """Return the indices of a step: the next ones in an order that is drawn anew for every pass over the text."""
        n, orders = len(self.inputs), {}
        chosen = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch, within = divmod(place, n)
            if epoch not in orders:
                # Adding seed and epoch would give neighbouring seeds the same orders.
                generator = torch.Generator().manual_seed((seed << 20) + epoch)
                orders[epoch] = torch.randperm(n, generator=generator).tolist()
            chosen.append(orders[epoch][within])
        return chosen

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the arguments of a forward, and ``labels``; with an attention mask only if there is padding."""
        inputs, labels = self.inputs[indices], self.labels[indices]
        batch = {"input_ids": inputs, "labels": labels}
        if bool((labels == IGNORED).any()):
            batch["attention_mask"] = (labels != IGNORED).long()
        return batch

    def scored(self) -> int:
        """Return the number of labels that are scored."""
        return int((self.labels != IGNORED).sum())


class Source(Protocol):
    """A source of contexts: the same in every process, each of which takes its share."""

    def ready(self) -> None:
        """Read what the next step needs; raise a ValueError for a wrong text."""

    def of_step(self, step: int) -> Contexts:
        """Return the contexts of a step."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Contexts in an order that is drawn anew for every pass over the text.

    The contexts of a step are a pure function of (seed, step): nothing has to be saved to resume, and the number of
    processes does not matter.
    """

    contexts: Contexts
    batch_size: int
    seed: int

    def ready(self) -> None:
        """Do nothing: the text is in memory."""

    def of_step(self, step: int) -> Contexts:
        chosen = self.contexts.indices(step, self.batch_size, self.seed)
        return Contexts(self.contexts.inputs[chosen], self.contexts.labels[chosen])
