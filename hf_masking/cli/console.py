"""Load the text of a command, check where it writes, and say what was written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ..evaluation import Text, load_text
from ..evaluation.text import is_data_set
from ..files import check_file
from ..streams import is_stdout, is_stream
from .options.groups import DataOptions
from .terminal import errors
from .values import refuse_without_effect


def check_split(options: Any, name: str, source: str) -> None:
    """Raise a ValueError for a split of a text that has none: only data sets of the hub do."""
    if not is_data_set(source):
        refuse_without_effect(options, name, f"goes with a hub data set, and {source} is none; leave it out")


def load_data(data: DataOptions) -> Text:
    """Load the text that the options name."""
    check_split(data, "split", data.data)
    return load_text(data.data, split=data.split, column=data.column)


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
    """Raise a ValueError for a JSON file beside which its Markdown and its picture cannot be written."""
    if path.suffix in (".md", ".png"):
        raise ValueError(f"{path}: --output names the JSON file; .md and .png are written beside it")
    check_file(path)


def say_written(path: Path) -> None:
    """Print which file was written, unless it was a stream."""
    if not is_stream(path):
        errors.print(f"wrote {path}", soft_wrap=True)
