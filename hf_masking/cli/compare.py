"""`hf-masking compare`: masks side by side, each evaluated, fine-tuned and evaluated again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..comparison.folder import ComparisonFolder
from ..comparison.report import Report, progress
from ..comparison.run import Listener, Request
from ..comparison.run import compare as compare_masks
from ..comparison.small_model import SMALL
from ..comparison.trial_settings import TrialSettings
from ..comparison.trials import Trial
from ..interrupts import Interrupted
from ..pictures import warn_of_no_pictures
from .console import load_data, say_written
from .masking import check_specs
from .options import DataOptions, MaskOptions, at_least
from .terminal import Progression, clear_line, console, errors, resuming_command

progression = Progression()
MASKS = ("causal", "window:64", "window:64|sinks:4", "block_local:64,1", "strided:16|window:16", "dilated:32,4")


def compare(
    masks: MaskOptions,
    data: DataOptions,
    settings: TrialSettings,
    model: str | None,
    output: Path,
    seeds: int,
    longest: int,
    resume: bool,
) -> None:
    check_specs(masks)
    settings.training().check()
    at_least(1, seeds=seeds, train_tokens=settings.train_tokens, eval_tokens=settings.eval_tokens)
    at_least(0, longest=longest)
    folder = ComparisonFolder(output)
    folder.check_place(resume)
    warn_of_no_pictures()
    train, held_out = load_data(data).split(0.1)
    request = Request(
        model=model,
        masks=list(dict.fromkeys(masks.mask or MASKS)),
        source=data.data,
        train=train,
        held_out=held_out,
        settings=settings,
        layers=masks.layers(),
        replace_model_window=masks.replace_model_window,
        seeds=seeds,
        longest=longest,
    )
    with _resumable(folder, request):
        result = compare_masks(request, folder, resume=resume, listener=_listener(folder))
    if any(mask.error for mask in result.results):
        raise typer.Exit(1)


@contextmanager
def _resumable(folder: ComparisonFolder, request: Request) -> Iterator[None]:
    """Tell the user of an interrupted comparison how much of it is kept, and how to resume it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = sum(folder.find(*pair) is not None for pair in request.pairs)
        where = f"kept in {folder.path}; {resuming_command()}" if kept else "finished, and nothing is kept"
        raise Interrupted.like(stop, f"{kept} of {len(request.pairs)} trials are {where}") from None


def _on_small_model(record: dict[str, Any]) -> None:
    if "loss" in record and record["step"] % 20 == 0:
        steps = SMALL.settings.steps
        progression.show(f"training the small model, once: step {record['step']} of {steps}, loss {record['loss']:.2f}")


def _on_training(mask: str, record: dict[str, Any]) -> None:
    if "loss" in record and record["step"] % 10 == 0:
        progression.show(f"  {mask}: step {record['step']}, loss {record['loss']:.3f}")


def _on_kept(kept: int, total: int) -> None:
    errors.print(f"{kept} of {total} trials are there already")


def _on_trial(trial: Trial, number: int, total: int) -> None:
    clear_line()
    errors.print(progress(trial, number, total), soft_wrap=True)


def _listener(folder: ComparisonFolder) -> Listener:
    def on_report(report: Report) -> None:
        for grid in (report.quality(), report.details()):
            console.print(grid.table())
        for line in report.failures():
            console.print(line, soft_wrap=True)
        for path in report.write(folder.path):
            say_written(path)

    return Listener(_on_small_model, _on_training, _on_kept, _on_trial, on_report)
