"""Run `hf-masking compare`: masks side by side, each evaluated, fine-tuned and evaluated again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..comparison.folder import ComparisonFolder
from ..comparison.report import Report, progress
from ..comparison.run import Listener, Request, compare
from ..comparison.trials import Trial
from ..evaluation.loading import best_device
from ..evaluation.probes import check_probe
from ..files import write_json
from ..interrupts import Interrupted
from ..pictures import warn_of_no_pictures
from .console import load_data, say_written
from .loading import check_device
from .masking import check_specs
from .options.compare import MASKS, CompareOptions
from .terminal import Progression, clear_line, console, errors, print_table, resuming_command
from .values import at_least

progression = Progression()


def run(options: CompareOptions) -> None:
    """Compare masks, print the tables and write the report."""
    masks, settings, folder = options.masks, options.settings, ComparisonFolder(options.output)
    check_specs(masks)
    check_device(options.device)
    settings.training().check()
    if settings.probe is not None:
        check_probe(settings.probe)
    at_least(1, seeds=options.seeds, train_tokens=settings.train_tokens, eval_tokens=settings.eval_tokens)
    at_least(0, longest=options.longest)
    folder.check_place(options.resume)
    warn_of_no_pictures()
    train, held_out = load_data(options.data).split(0.1)
    request = Request(
        model=options.model,
        masks=list(dict.fromkeys(masks.mask or MASKS)),
        source=options.data.data,
        train=train,
        held_out=held_out,
        settings=settings,
        layers=masks.layers(),
        replace_model_window=masks.replace_model_window,
        backend=masks.backend,
        where=options.source.where(),
        device=options.device or best_device(),
        seeds=options.seeds,
        longest=options.longest,
    )
    with _resumable(folder, request):
        result = compare(request, folder, resume=options.resume, listener=_listener(folder, options.json))
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
        at = "stage {stage} of {stages}, step {step} of {steps}, loss {loss:.2f}".format_map(record)
        progression.show(f"training the small model, once: {at}")


def _on_training(mask: str, record: dict[str, Any]) -> None:
    if "loss" in record and record["step"] % 10 == 0:
        progression.show(f"  {mask}: step {record['step']}, loss {record['loss']:.3f}")


def _on_kept(kept: int, total: int) -> None:
    errors.print(f"{kept} of {total} trials are there already")


def _on_trial(trial: Trial, number: int, total: int) -> None:
    clear_line()
    errors.print(progress(trial, number, total), soft_wrap=True)


def _listener(folder: ComparisonFolder, as_json: bool) -> Listener:
    def on_report(report: Report) -> None:
        tables = errors if as_json else console
        for grid in report.grids:
            print_table(tables, grid)
        for line in report.notes():
            tables.print(line, soft_wrap=True)
        if as_json:
            write_json(Path("-"), report.document())
        for path in report.write(folder.path):
            say_written(path)

    return Listener(_on_small_model, _on_training, _on_kept, _on_trial, on_report)
