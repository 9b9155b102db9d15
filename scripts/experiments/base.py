"""The model that the experiments start from: LLaMA-style, 4 layers, trained under full attention on Python source.

It reads 20 million tokens of the standard library and of the packages that constraints.txt pins, first in contexts of
512 tokens, then of 2,048 and of 8,192. Interrupted, it continues where it was.

python scripts/experiments/base.py runs/base    # trains it, once (about two hours on two cores), and copies it there
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_masking.comparison.small_model import Recipe, small_model
from hf_masking.evaluation import Text
from hf_masking.evaluation.text import library_files
from hf_masking.training import TrainingSettings

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
MOST = 8_000_000  # bytes of one package: Transformers alone would be a quarter of the text
_NOT_SOURCE = {"test", "tests", "testing", "_vendor"}


def _stage(context: int, steps: int, learning_rate: float, seed: int) -> TrainingSettings:
    """Return a stage of steps of 8,192 tokens."""
    return TrainingSettings(
        context=context,
        steps=steps,
        batch_size=8192 // context,
        learning_rate=learning_rate,
        warmup_steps=50,
        seed=seed,
        eval_every=max(50, steps // 8),
        checkpoint_every=50,
    )


BASE = Recipe(
    shape={
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "initializer_range": 0.05,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    stages=(_stage(512, 2080, 4e-3, 0), _stage(2048, 240, 1.5e-3, 1), _stage(8192, 128, 8e-4, 2)),
    train_tokens=20_500_000,
    eval_tokens=4 * 8192 + 1,
)


@functools.cache
def texts() -> tuple[Text, Text]:
    """Return the text to train on, and the held-out text: the last tenth of the files."""
    files = [path.read_text(encoding="utf-8", errors="replace") for path in (*library_files(), *_package_files())]
    # A fixed order that mixes the packages, whatever they are called.
    files.sort(key=lambda content: hashlib.sha256(content.encode()).digest())
    return Text("the standard library and the pinned packages", "\n".join(files)).split(0.1)


def _package_files() -> Iterator[Path]:
    pinned = [line.partition("==")[0] for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    for name in pinned:
        size = 0
        try:
            sources = [file for file in importlib.metadata.files(name) or () if file.suffix == ".py"]
        except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
            continue
        sources.sort(key=lambda file: hashlib.sha256(file.as_posix().encode()).digest())
        for file in sources:
            if _NOT_SOURCE & set(file.parts) or size > MOST:
                continue
            path = Path(str(file.locate()))
            size += path.stat().st_size
            yield path


def base_model() -> Path:
    return small_model(*texts(), _tell, BASE)


def _tell(record: dict[str, Any]) -> None:
    if "perplexity" in record or record["step"] % 20 == 0:
        print({name: round(value, 4) for name, value in record.items()}, flush=True)


if __name__ == "__main__":
    shutil.copytree(base_model(), sys.argv[1], dirs_exist_ok=True)
