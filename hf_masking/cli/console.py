"""What the commands print, and how they load a model."""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..files import check_file, written_aside
from ..modeling import load

console = Console()
errors = Console(stderr=True)


def quiet() -> None:
    """The libraries' own bars and advice would run into ours."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def progress_bar(description: str, total: int, *, visible: bool = True) -> Iterator[Progress]:
    """A bar on standard error, if that is a terminal, with one task."""
    # Not as markup: brackets belong to masks.
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    disable = not (visible and errors.is_terminal)
    with Progress(*columns, console=errors, transient=True, disable=disable) as progress:
        progress.add_task(description, total=total)
        yield progress


def load_model(name: str, *, place: bool = True, **options: Any) -> PreTrainedModel:
    """A causal language model from a folder or the hub, under the mask that it carries, if it does.

    Parameters:
        place: put it on the GPU, if there is one; else it stays where it was read.
        options: handed to `from_pretrained`.
    """
    model = _load(functools.partial(load, **options), name, "model")
    return model.to("cuda") if place and torch.cuda.is_available() else model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return _load(AutoTokenizer.from_pretrained, name, "tokenizer")


def _load(read: Callable[[str], Any], name: str, what: str) -> Any:
    try:
        return read(name)
    except Exception as error:  # a damaged checkpoint raises whatever its format's library raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "a folder here, but:" if Path(name).is_dir() else "neither a folder here nor reachable on the hub:"
        raise ValueError(
            f"no {what} can be loaded from {name!r} ({where} {reason}); give a folder that save_pretrained wrote, "
            "or a hub id"
        ) from None


def check_report(path: Path) -> None:
    """Raises a ValueError for a JSON file beside which its Markdown and its picture cannot be written."""
    if path.suffix in (".md", ".png"):
        raise ValueError(f"{path}: --output names the JSON file; .md and .png are written beside it")
    check_file(path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(data, indent=2) + "\n")
    errors.print(f"wrote {path}")


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
