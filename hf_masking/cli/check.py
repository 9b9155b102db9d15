"""`hf-masking check MODEL`: does this model keep its mask, and does every mode of `generate`?"""

from __future__ import annotations

import dataclasses
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from ..evaluation import check_generation
from ..files import check_file
from ..masks import Mask
from ..modeling import CheckReport, check_model, layer_masks, patched
from .commands.check import CheckOptions
from .console import CARRIED, describe_machine, load_model, write_json
from .options import MaskOptions, OutputOption
from .terminal import errors, tables_beside


def check(model: str, masks: MaskOptions, options: CheckOptions, output: OutputOption) -> None:
    if options.new_tokens < 1:
        raise ValueError(f"--new-tokens must be at least 1, got {options.new_tokens}")
    if output.output is not None:
        check_file(output.output)
    layers = masks.layers()
    for spec in masks.mask:
        Mask.parse(spec)
    loaded = load_model(model)
    if not masks.mask and not layer_masks(loaded):
        raise ValueError("--mask is missing, and the model carries none; say one: --mask 'window:256|sinks:4'")
    reports = {}
    for spec in masks.mask or [CARRIED]:
        with patched(loaded, None if spec == CARRIED else spec, layers=layers, check=False):
            report = check_model(loaded)
            if report.passed and not _looks_ahead(loaded):
                report = CheckReport((*report.rows, *_generation(loaded, options).rows))
        reports[spec] = report
        tables_beside(output.output).print(_table(spec, report))
    if output.output is not None:
        rows = [{"mask": spec, **dataclasses.asdict(row)} for spec, report in reports.items() for row in report.rows]
        write_json(output.output, {"model": model, "machine": describe_machine(), "rows": rows})
    if not all(report.passed for report in reports.values()):
        raise typer.Exit(1)


def _looks_ahead(model: Any) -> bool:
    worst = max(layer_masks(model), key=lambda mask: mask.bind(()).lookahead)
    lookahead = worst.bind(()).lookahead
    if lookahead:
        errors.print(f"{worst} looks {lookahead} tokens ahead: generation is refused and not checked")
    return bool(lookahead)


def _generation(model: Any, options: CheckOptions) -> CheckReport:
    with errors.status("") as status:
        return check_generation(
            model,
            lengths=options.length or None,
            new_tokens=options.new_tokens,
            on_mode=lambda mode: status.update(f"generate: {mode}"),
        )


def _table(spec: str, report: CheckReport) -> Table:
    table = Table(title=f"{spec}: {'all rows pass' if report.passed else 'FAILED'}")
    table.add_column("check", overflow="fold")
    table.add_column("verdict")
    table.add_column("difference", justify="right")
    for row in report.rows:
        verdict = "not run" if row.detail.startswith("(not run") else "ok" if row.passed else "FAILED"
        name = f"{row.name} {row.detail}".strip()
        shown = Text(verdict, style="red" if verdict == "FAILED" else "")
        table.add_row(name, shown, "-" if verdict == "not run" else f"{row.difference:.1e}")
    return table
