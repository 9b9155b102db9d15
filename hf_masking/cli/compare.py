"""`hf-masking compare`: masks side by side, each evaluated, fine-tuned and evaluated again in a process of its own."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..evaluation import Text, encode, in_own_process
from ..masks import Mask
from ..training import TrainingSettings
from ..training.comparison import Experiment, Row
from ..training.comparison import compare as compare_masks
from ..training.small_model import SETTINGS as SMALL_MODEL_SETTINGS
from ..training.small_model import small_model
from . import report
from .console import check_report, console, describe_machine, errors, load_tokenizer, quiet, write_json
from .options import DataOptions, MaskOptions, bos_of

MASKS = ("causal", "window:64", "window:64|sinks:4", "block_local:64,1", "strided:16|window:16", "dilated:32,4")
TRAIN_TOKENS, EVAL_TOKENS = 700_000, 24_577


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """How each mask is tried. Short on purpose: a fine-tuning to see a trend, not to publish."""

    context: int = dataclasses.field(default=512, metadata={"help": "tokens in a context"})
    stride: int | None = dataclasses.field(
        default=None, metadata={"help": "tokens from an evaluation window to the next; by default the context"}
    )
    steps: int = dataclasses.field(default=30, metadata={"help": "optimizer steps of fine-tuning for each mask"})
    batch_size: int = dataclasses.field(default=4, metadata={"help": "contexts in an optimizer step"})
    learning_rate: float = dataclasses.field(default=3e-4, metadata={"help": "highest learning rate"})
    eval_tokens: int = dataclasses.field(default=EVAL_TOKENS, metadata={"help": "evaluate on that many tokens"})
    seed: int = dataclasses.field(default=0, metadata={"help": "order of the contexts, and dropout"})

    def settings(self) -> TrainingSettings:
        return TrainingSettings(
            context=self.context,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup_steps=min(10, self.steps // 4),
            seed=self.seed,
            eval_every=self.steps,
        )


def compare(
    masks: MaskOptions,
    data: DataOptions,
    options: CompareOptions,
    model: Annotated[
        str | None, typer.Argument(help="a hub id or a folder; without one a small model is trained once and kept")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="write the figures to this JSON file, and .md and .png beside it")
    ] = Path("hf-masking-compare.json"),
) -> None:
    """Perplexity before and after a short fine-tuning, tokens/s and peak memory of each mask, in one table."""
    specs = list(dict.fromkeys(masks.mask or MASKS))
    for spec in specs:
        Mask.parse(spec)
    settings, layers = options.settings(), masks.layers()
    settings.check()
    check_report(output)
    started = time.perf_counter()
    train, held_out = data.load().split(0.1)
    folder = model or str(in_own_process(_small_model, train, held_out))
    with tempfile.TemporaryDirectory() as scratch:
        experiment = _experiment(folder, train, held_out, options, layers, Path(scratch) / "tokens.pt")
        rows = _measure(experiment, specs)
    if all(row.error for row in rows):
        raise ValueError(f"no mask could be measured; {rows[0].mask}: {rows[0].error}")
    title = f"{model or 'small LLaMA-style model'}, {data.data}, context {options.context}, {options.steps} steps"
    console.print(report.table(rows, title))
    document = {
        "model": model or "small LLaMA-style model",
        "small_model_training": None if model else dataclasses.asdict(SMALL_MODEL_SETTINGS),
        "text": {"source": data.data, "train_sha256": train.sha256, "eval_sha256": held_out.sha256},
        "layers": {str(layer): spec for layer, spec in layers.items()},
        "options": dataclasses.asdict(options),
        "machine": describe_machine(),
        "seconds": time.perf_counter() - started,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    _write(output, document, rows, title)
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _small_model(train: Text, held_out: Text) -> Path:
    quiet()
    return small_model(train, held_out, _tell_small_model)


def _experiment(
    folder: str, train: Text, held_out: Text, options: CompareOptions, layers: dict[int, str], tokens: Path
) -> Experiment:
    tokenizer = load_tokenizer(folder)
    eval_ids, n_bytes = encode(held_out, tokenizer, options.eval_tokens)
    torch.save({"train": encode(train, tokenizer, TRAIN_TOKENS)[0], "eval": eval_ids}, tokens)
    return Experiment(
        model=folder,
        tokens=tokens,
        settings=options.settings(),
        stride=options.context if options.stride is None else options.stride,
        bos_token_id=bos_of(tokenizer, None),
        text_bytes=n_bytes,
        layers=layers,
    )


def _measure(experiment: Experiment, specs: Sequence[str]) -> list[Row]:
    rows = []
    for row in compare_masks(experiment, specs, _tell):
        rows.append(row)
        errors.print(report.progress(row, len(rows), len(specs)), markup=False, highlight=False, soft_wrap=True)
    return rows


def _tell_small_model(record: dict[str, Any]) -> None:
    if "loss" in record and record["step"] % 20 == 0:
        steps = SMALL_MODEL_SETTINGS.steps
        errors.print(
            f"training the small model, once: step {record['step']} of {steps}, loss {record['loss']:.2f}", end="\r"
        )


def _tell(mask: str, record: dict[str, Any]) -> None:
    if "loss" in record and record["step"] % 10 == 0:
        errors.print(f"  {mask}: step {record['step']}, loss {record['loss']:.3f}", markup=False, end="\r")


def _write(output: Path, document: dict[str, Any], rows: Sequence[Row], title: str) -> None:
    write_json(output, document)
    report.write_markdown(output.with_suffix(".md"), rows, title)
    report.write_picture(output.with_suffix(".png"), rows, title)
