"""How the commands load models, tokenizers and texts, and what they write beside their tables."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import Text, load_text
from ..files import check_file, written_aside
from ..modeling import base_model_of, load, vocabulary_of
from ..streams import is_stdout, is_stream
from .options import DataOptions
from .terminal import errors

_LONGEST_REASON = 250  # characters


def quiet() -> None:
    """The libraries' own bars and advice would run into ours."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def load_model(name: str, *, place: bool = True, **options: Any) -> PreTrainedModel:
    """A causal language model from a folder or the hub, under the mask that it carries, if it does.

    Parameters:
        place: put it on the GPU, if there is one; else it stays where it was read.
        options: handed to `from_pretrained`.
    """
    model = _load(functools.partial(load, **options), name, "model")
    return model.to("cuda") if place and torch.cuda.is_available() else model


def refuse_adapter(name: str) -> None:
    """Raise a ValueError for an adapter, where whole models are trained."""
    if base_model_of(name) is not None:
        raise ValueError(
            f"{name} is an adapter, and whole models are trained here; merge it: hf_masking.from_pretrained({name!r})"
            ".merge_and_unload().save_pretrained(FOLDER)"
        )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return _load(_tokenizer, name, "tokenizer")


def _tokenizer(name: str) -> Any:
    """That of an adapter which was saved without one is its base model's."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception:
        if (base := base_model_of(name)) is None:
            raise
    return AutoTokenizer.from_pretrained(base)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError for a tokenizer that cannot be the model's own: it has tokens without an embedding."""
    # Without those that were added: Gemma 3's has one for images, which its text models lack.
    if tokenizer.vocab_size > vocabulary_of(model):
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, and the model has embeddings for "
            f"{vocabulary_of(model):,}; use the model's own tokenizer"
        )


def load_data(data: DataOptions) -> Text:
    return load_text(data.data, split=data.split, column=data.column)


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
    """What a library says, on one line and without its advice to users of Python."""
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _LONGEST_REASON else f"{words[:_LONGEST_REASON]}..."


def check_picture(path: Path) -> None:
    """Raise a ValueError if no PNG can be written there."""
    if is_stdout(path):
        raise ValueError(f"--png {path}: a picture goes into a file; name it, such as mask.png")
    if path.suffix not in ("", ".png") and not is_stream(path):
        raise ValueError(f"--png writes a PNG, got {path}; name it {path.with_suffix('.png')}")
    check_file(path)
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--png needs matplotlib; pip install 'hf-masking[plot]'")


def check_report(path: Path) -> None:
    """Raises a ValueError for a JSON file beside which its Markdown and its picture cannot be written."""
    if path.suffix in (".md", ".png"):
        raise ValueError(f"{path}: --output names the JSON file; .md and .png are written beside it")
    check_file(path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, indent=2) + "\n")
    say_written(path)


def say_written(path: Path) -> None:
    if not is_stream(path):
        errors.print(f"wrote {path}", soft_wrap=True)


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def bos_of(tokenizer: PreTrainedTokenizerBase, wanted: bool | None) -> int | None:
    """The BOS to put before every window: as wanted, or by default if the tokenizer itself begins texts with one."""
    if wanted is None:
        wanted = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if wanted and tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no BOS token; leave --bos out")
    return tokenizer.bos_token_id if wanted else None
