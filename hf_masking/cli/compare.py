"""`hf-masking compare`: masks side by side, each evaluated, fine-tuned and evaluated again in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from transformers import AutoConfig, PreTrainedModel

from ..evaluation import Text, WindowedText, encode, in_own_process, refuse_lookahead
from ..evaluation.benchmark import Shape
from ..evaluation.break_even import break_even
from ..files import digest
from ..interrupts import Interrupted
from ..modeling import check_fits, label_of, shape_of, unpatch_model
from ..training import Contexts
from ..training.comparison import Experiment, Trial
from ..training.comparison import compare as compare_masks
from ..training.comparison_folder import ComparisonFolder
from ..training.small_model import SMALL, small_model, small_outline
from ..training.summary import summarize
from . import report, tables
from .commands.compare import CompareOptions
from .console import (
    bos_of,
    check_vocabulary,
    describe_machine,
    load_data,
    load_model,
    load_tokenizer,
    quiet,
    refuse_adapter,
    write_json,
)
from .masking import check_specs, put_into
from .options import DataOptions, MaskOptions, at_least
from .terminal import Progression, clear_line, console, errors, resuming_command

progression = Progression()
MASKS = ("causal", "window:64", "window:64|sinks:4", "block_local:64,1", "strided:16|window:16", "dilated:32,4")


def compare(
    masks: MaskOptions,
    data: DataOptions,
    options: CompareOptions,
    model: str | None,
    output: Path,
    seeds: int,
    longest: int,
    resume: bool,
) -> None:
    specs = list(dict.fromkeys(masks.mask or MASKS))
    check_specs(masks)
    options.settings().check()
    at_least(1, seeds=seeds, train_tokens=options.train_tokens, eval_tokens=options.eval_tokens)
    at_least(0, longest=longest)
    folder = ComparisonFolder(output)
    folder.check_place(resume)
    tables.warn_of_no_pictures()
    train, held_out = load_data(data).split(0.1)
    description = _description(model, data, train, held_out, masks, options)
    wanted = [(spec, seed) for seed in range(options.seed, options.seed + seeds) for spec in specs]
    # Loaded here as in every trial: what none of them could use is known before the first.
    loaded = small_outline() if model is None else _loaded(model)
    runs = _runs(loaded, specs, masks, check=model is not None)
    with folder.claimed(description, resume), _resumable(folder, wanted):
        path = model or str(in_own_process(_small_model, train, held_out))
        experiment = _experiment(path, loaded, train, held_out, options, masks)
        del loaded
        trials = _try(experiment, wanted, folder, description)
        if all(trial.error for trial in trials):
            raise ValueError(f"no mask could be measured; {trials[0].mask}: {trials[0].error}")
        pays = in_own_process(_break_even, path, specs, longest)
        title = f"{description['model']}, {data.data}, context {options.context}, {options.steps} steps"
        result = report.Report(title, options.context, summarize(specs, trials), pays, longest, runs)
        for grid in (result.quality(), result.details()):
            console.print(grid.table())
        for line in result.failures():
            console.print(line, soft_wrap=True)
        _write(folder.path, description, trials, result)
    if any(trial.error for trial in trials):
        raise typer.Exit(1)


def _description(
    model: str | None, data: DataOptions, train: Text, held_out: Text, masks: MaskOptions, options: CompareOptions
) -> dict[str, Any]:
    """What a comparison is; only the same one goes on in a folder."""
    return {
        "model": model or "small LLaMA-style model",
        "model_sha256": digest(Path(model)) if model and Path(model).is_dir() else None,
        "small_model": None if model else dataclasses.asdict(SMALL),
        "text": {"source": data.data, "train_sha256": train.sha256, "eval_sha256": held_out.sha256},
        "layers": {str(layer): spec for layer, spec in masks.layers().items()},
        "replace_model_window": masks.replace_model_window,
        "options": dataclasses.asdict(options),
    }


def _loaded(model: str) -> PreTrainedModel:
    refuse_adapter(model)
    return load_model(model, place=False, dtype=torch.float32)


def _runs(model: PreTrainedModel, specs: Sequence[str], masks: MaskOptions, *, check: bool) -> dict[str, str]:
    """What runs under each mask, as the report calls it; a ValueError for one that no trial could run."""
    runs = {}
    for spec in specs:
        put_into(model, spec, masks, check=check)
        refuse_lookahead(model, "its perplexity")
        runs[spec] = label_of(model)
        unpatch_model(model)
    return runs


def _small_model(train: Text, held_out: Text) -> Path:
    quiet()
    return small_model(train, held_out, _tell_small_model)


def _experiment(
    folder: str, model: PreTrainedModel, train: Text, held_out: Text, options: CompareOptions, masks: MaskOptions
) -> Experiment:
    """What all trials share; a ValueError for what every one of them would refuse."""
    tokenizer = load_tokenizer(folder)
    check_vocabulary(model, tokenizer)
    eval_ids, n_bytes = encode(held_out, tokenizer, options.eval_tokens)
    train_ids = encode(train, tokenizer, options.train_tokens)[0]
    for token_ids in (eval_ids, train_ids):
        check_fits(model, token_ids, options.context)
    bos = bos_of(tokenizer, None)
    WindowedText(eval_ids, options.context, options.stride, bos, batch_size=1)
    Contexts.pack(train_ids, options.context)
    return Experiment(
        model=folder,
        train_ids=train_ids.numpy(),
        eval_ids=eval_ids.numpy(),
        settings=options.settings(),
        stride=options.context if options.stride is None else options.stride,
        bos_token_id=bos,
        text_bytes=n_bytes,
        layers=masks.layers(),
        replace_model_window=masks.replace_model_window,
    )


def _try(
    experiment: Experiment, wanted: Sequence[tuple[str, int]], folder: ComparisonFolder, description: dict[str, Any]
) -> list[Trial]:
    """All trials, of which those that the folder holds are not made again."""
    held = {pair: trial for pair in wanted if (trial := folder.find(*pair)) is not None}
    if held:
        errors.print(f"{len(held)} of {len(wanted)} trials are there already")
    missing = [pair for pair in wanted if pair not in held]
    for number, trial in enumerate(compare_masks(experiment, missing, _tell), start=1):
        held[trial.mask, trial.seed] = trial
        if trial.error is None:
            # Not before there is something to keep: nothing is left behind by what fails at once.
            folder.describe(description)
            folder.keep(trial)
        clear_line()
        errors.print(report.progress(trial, number, len(missing)), soft_wrap=True)
    return [held[pair] for pair in wanted]


@contextmanager
def _resumable(folder: ComparisonFolder, wanted: Sequence[tuple[str, int]]) -> Iterator[None]:
    """Say of an interrupted comparison how much of it is kept, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = sum(folder.find(*pair) is not None for pair in wanted)
        where = f"kept in {folder.path}; {resuming_command()}" if kept else "finished, and nothing is kept"
        raise Interrupted.like(stop, f"{kept} of {len(wanted)} trials are {where}") from None


def _break_even(path: str, specs: Sequence[str], longest: int) -> dict[str, int | None]:
    shape = shape_of(AutoConfig.from_pretrained(path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = Shape(longest, shape.query_heads, shape.key_heads, shape.head_size, device=device)
    return break_even(specs, attention, longest)


def _tell_small_model(record: dict[str, Any]) -> None:
    if "loss" in record and record["step"] % 20 == 0:
        steps = SMALL.settings.steps
        progression.show(f"training the small model, once: step {record['step']} of {steps}, loss {record['loss']:.2f}")


def _tell(mask: str, record: dict[str, Any]) -> None:
    if "loss" in record and record["step"] % 10 == 0:
        progression.show(f"  {mask}: step {record['step']}, loss {record['loss']:.3f}")


def _write(folder: Path, description: dict[str, Any], trials: Sequence[Trial], result: report.Report) -> None:
    document = description | {
        "machine": describe_machine(),
        "seconds": sum(trial.seconds or 0 for trial in trials),  # of all of them, also where it went on
        "pays_from": result.pays_from,
        "runs": result.runs,
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    write_json(folder / "report.json", document)
    result.write(folder)
