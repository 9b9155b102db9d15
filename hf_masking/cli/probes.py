"""Run `hf-masking eval MODEL --probe NAME`: right answers by distance under one or several masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import probe_task
from ..evaluation.loading import bos_of, check_vocabulary, load_tokenizer
from ..evaluation.probes import Questions, answer, check_probe, check_readable
from ..evaluation.timing import clear_frames
from ..files import check_file, write_json
from ..machine import describe_machine
from ..modeling import label_of
from ..tables import Grid
from .console import say_written
from .failures import reason_of
from .loading import check_loading, load_placed
from .masking import check_specs, under_masks, what_runs
from .options.eval import EvalOptions
from .terminal import counting_up, print_failures, print_table, tables_beside
from .values import refuse_without_effect

Row = dict[str, Any]


def run_probes(options: EvalOptions) -> None:
    """Ask a model the questions of each probe under each mask, and print the shares of right answers side by side."""
    windows, probes, output = options.windows, options.probes, options.output.path
    if output is not None:
        check_file(output)
    _refuse_text(options)
    check_specs(options.masks)
    check_loading(options.loading)
    for name in probes.probe:
        check_probe(name)
    tokenizer = load_tokenizer(options.model, **options.loading.where())
    bos = bos_of(tokenizer, windows.bos)
    asked = _questions(tokenizer, options, bos)
    loaded = load_placed(options.model, options.loading)
    check_vocabulary(loaded, tokenizer)
    for questions in asked.values():
        check_readable(loaded, questions)
    rows = _answered(under_masks(loaded, options.masks, "the accuracy of a probe"), asked, windows.batch_size)
    for name in asked:
        _print(name, [row for row in rows if row["probe"] == name], windows.context, tables_beside(output))
    if output is not None:
        settings = {"context": windows.context, **dataclasses.asdict(probes), "bos": bos is not None}
        write_json(output, {"model": options.model, **settings, "machine": describe_machine(), "rows": rows})
        say_written(output)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _questions(tokenizer: PreTrainedTokenizerBase, options: EvalOptions, bos: int | None) -> dict[str, Questions]:
    """Return the questions of each probe."""
    return {
        name: Questions(
            probe_task(name, tokenizer),
            options.windows.context,
            questions=options.probes.questions,
            seed=options.probes.seed,
            bos_token_id=bos,
        )
        for name in options.probes.probe
    }


def _refuse_text(options: EvalOptions) -> None:
    """Raise a ValueError for options of the text that a probe does not read."""
    for group, names in ((options.data, ("data", "split", "column")), (options.windows, ("stride", "max_tokens"))):
        for name in names:
            refuse_without_effect(group, name, "says which text is read, and --probe reads none; leave it out")


def _answered(models: Sequence[PreTrainedModel], asked: Mapping[str, Questions], batch_size: int) -> list[Row]:
    """Return a row for each probe and mask; raise the exception of the first one if all fail."""
    total = len(models) * sum(map(len, asked.values()))
    rows, failed = [], []
    with counting_up(f"{len(models)} masks", total, "questions answered") as on_progress:
        for name, questions in asked.items():
            for model in models:
                row: Row = {"probe": name, **what_runs(model), "runs": label_of(model)}
                try:
                    row |= _figures(model, questions, batch_size, on_progress)
                except Exception as error:  # whatever it is, the row reports it, and the others go on
                    clear_frames(error)
                    failed.append(error)
                    row["error"] = reason_of(error)
                rows.append(row)
    if len(failed) == len(rows):
        raise failed[0]
    return rows


def _figures(model: PreTrainedModel, questions: Questions, batch_size: int, on_progress: Callable[[int], None]) -> Row:
    return dataclasses.asdict(answer(model, questions, batch_size=batch_size, on_progress=on_progress))


def _print(name: str, rows: Sequence[Row], context: int, console: Console) -> None:
    done = [row for row in rows if "error" not in row]
    if done:
        title = f"{name}: % of right answers ± standard error, by tokens back to the answer; chance"
        print_table(console, _grid(done), f"{title} {done[0]['chance']:.1%}, context {context}")
    print_failures(console, rows)


def _grid(rows: Sequence[Row]) -> Grid:
    distances = [f"{there['distance']:,}" for there in rows[0]["by_distance"]]
    cells = []
    for row in rows:
        shares = [_cell(figures) for figures in (row, *row["by_distance"])]
        cells.append([row["runs"], shares[0], f"{row['control']:.0%}", *shares[1:]])
    return Grid(("mask", "all", "answers\nshuffled", *distances), cells)


def _cell(figures: Row) -> str:
    return f"{100 * figures['accuracy']:.0f} ± {100 * figures['standard_error']:.0f}"
