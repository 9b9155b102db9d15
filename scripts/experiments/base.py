"""The model that the experiments start from: LLaMA-style, 4 layers of 256, trained under full attention.

python scripts/experiments/base.py runs/base    # trains it, once (about half an hour on two cores), and copies it there
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from hf_masking.comparison.small_model import Recipe, small_model
from hf_masking.evaluation import STDLIB, Text, load_text
from hf_masking.training import TrainingSettings

BASE = Recipe(
    shape={
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "initializer_range": 0.05,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    settings=TrainingSettings(
        context=512,
        steps=1200,
        batch_size=8,
        learning_rate=3e-3,
        warmup_steps=60,
        eval_every=200,
        checkpoint_every=100,
    ),
    train_tokens=5_200_000,
    eval_tokens=32 * 512 + 1,
)


def texts() -> tuple[Text, Text]:
    """Return the text to train on, and the held-out text."""
    return load_text(STDLIB).split(0.1)


def base_model() -> Path:
    return small_model(*texts(), _tell, BASE)


def _tell(record: dict[str, Any]) -> None:
    if "perplexity" in record or record["step"] % 20 == 0:
        print({name: round(value, 4) for name, value in record.items()}, flush=True)


if __name__ == "__main__":
    shutil.copytree(base_model(), sys.argv[1], dirs_exist_ok=True)
