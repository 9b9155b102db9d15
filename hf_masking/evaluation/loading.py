"""Load models and tokenizers by name; every failure is one sentence that says what to type."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling import base_model_of, load, read_checkpoint, vocabulary_of
from ..modeling.pretrained import Checkpoint
from .text import tokenize

_LONGEST_REASON = 250  # characters


def silence_libraries() -> None:
    """Turn off the progress bars and the advice of Transformers and accelerate."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_model(name: str, *, device: str | None = None, **options: Any) -> PreTrainedModel:
    """Load a causal language model from a folder or the hub, with the mask that its checkpoint carries, if any.

    Parameters:
        device: move it there; None leaves it on the CPU.
        options: passed to `from_pretrained`.
    """
    model = _load(functools.partial(load, **options), name, "model")
    return model if device is None else model.to(device)


def read_config(name: str, **where: Any) -> Checkpoint:
    """Read what a checkpoint says of itself, without its weights."""
    return _load(functools.partial(read_checkpoint, **where), name, "config")


def best_device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(name: str, **where: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, or that of an adapter's base model.

    Parameters:
        where: passed to `from_pretrained`: revision, trust_remote_code.
    """
    if (Path(name) / "config.json").is_file():
        # The tokenizer's class is looked up in the config.
        _load(functools.partial(AutoConfig.from_pretrained, **where), name, "model")
    return _load(functools.partial(_tokenizer, **where), name, "tokenizer")


def refuse_adapter(name: str) -> None:
    """Raise a ValueError for an adapter: only whole models are trained."""
    if base_model_of(name) is not None:
        raise ValueError(
            f"{name} is an adapter, and whole models are trained here; merge it: hf_masking.from_pretrained({name!r})"
            ".merge_and_unload().save_pretrained(FOLDER)"
        )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError for a tokenizer of another model: some of its tokens have no embedding."""
    # Added tokens do not count: Gemma 3's tokenizer has one for images, which its text models lack.
    if tokenizer.vocab_size > vocabulary_of(model):
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, and the model has embeddings for "
            f"{vocabulary_of(model):,}; use the model's own tokenizer"
        )


def bos_of(tokenizer: PreTrainedTokenizerBase, wanted: bool | None) -> int | None:
    """Return the BOS token to put before every window, or None; by default do as the tokenizer does."""
    if wanted is None:
        begins = tokenize(tokenizer, "a")["input_ids"][:1]
        wanted = tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id]
    if wanted and tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no BOS token; leave --bos out")
    return tokenizer.bos_token_id if wanted else None


def _tokenizer(name: str, **where: Any) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, **where)
    except Exception:
        # An adapter may have been saved without a tokenizer.
        if (found := base_model_of(name, **where)) is None:
            raise
    base, where = found
    return AutoTokenizer.from_pretrained(base, **where)


def _load(read: Callable[[str], Any], name: str, what: str) -> Any:
    try:
        return read(name)
    except Exception as error:  # a damaged checkpoint raises whatever its format's library raises
        reason = _reason(error)
        where = "a folder here, but:" if Path(name).is_dir() else "neither a folder here nor reachable on the hub:"
        raise ValueError(
            f"no {what} can be loaded from {name!r} ({where} {reason}); give a folder that save_pretrained wrote, "
            "or a hub id"
        ) from None


def _reason(error: Exception) -> str:
    """Return a library's message on one line, without its advice to Python users."""
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    if "trust_remote_code" in str(error):
        return "it brings code of its own; read that, then allow it with --trust-remote-code"
    words = " ".join(str(error).split())
    if not words or not isinstance(error, (ValueError, OSError)):
        words = f"{type(error).__name__}: {words or 'no reason given'}"
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]}..."
