"""Name the probes."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from ...errors import FieldError
from .copying import Copy
from .item import Task
from .passkey import Passkey
from .recall import Recall
from .vocabulary import ordinary_tokens

_TASKS: dict[str, Callable[[PreTrainedTokenizerBase], Task]] = {
    "recall": lambda tokenizer: Recall(ordinary_tokens(tokenizer)),
    "copy": lambda tokenizer: Copy(ordinary_tokens(tokenizer)),
    "passkey": Passkey,
}


def probe_task(name: str, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Return the task of a probe, in the vocabulary of a tokenizer, for `probe`.

    Parameters:
        name: ``recall`` (which value was bound to this key?), ``copy`` (what follows in a repeated segment?) or
            ``passkey`` (which number was hidden in the text?).

    Raises:
        ValueError: an unknown name, or a tokenizer that cannot write the questions.
    """
    check_probe(name)
    return _TASKS[name](tokenizer)


def check_probe(name: str) -> None:
    """Raise a ValueError for the name of no probe."""
    if name not in _TASKS:
        raise FieldError("probe", f"must be one of {', '.join(_TASKS)}, got {name!r}")
