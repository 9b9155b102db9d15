"""Run `hf-masking check MODEL`: does a model keep its mask, in every mode of `generate` too?"""

from __future__ import annotations

import dataclasses
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel

from ..files import check_file, write_json
from ..machine import describe_machine
from ..modeling import CheckReport, check_generation, check_model, label_of
from .console import say_written
from .failures import reason_of
from .loading import check_loading, load_placed
from .masking import check_specs, chosen, copies, most_lookahead, put_into
from .options.check import CheckOptions
from .terminal import errors, tables_beside
from .values import at_least


def run(options: CheckOptions) -> None:
    """Check a model under each mask; exit with 1 if a row fails."""
    masks, output = options.masks, options.output.path
    at_least(1, new_tokens=options.new_tokens)
    at_least(2, length=min(options.length, default=2))
    if output is not None:
        check_file(output)
    check_specs(masks)
    check_loading(options.loading)
    loaded = load_placed(options.model, options.loading)
    # All masks are patched before the first is checked, so that an error in the last one shows at once.
    models = [put_into(copy, spec, masks, check=False) for copy, spec in copies(loaded, chosen(loaded, masks))]
    reports: dict[str, CheckReport] = {}
    failures: dict[str, Exception] = {}
    for patched in models:
        name = label_of(patched)
        try:
            reports[name] = _report(patched, options)
        except Exception as stopped:  # whatever it is, the other masks are checked
            failures[name] = stopped
        else:
            _print(tables_beside(output), name, reports[name])
    if not reports:
        raise next(iter(failures.values()))
    for name, error in failures.items():
        tables_beside(output).print(f"{name} failed: {reason_of(error)}", soft_wrap=True)
    if output is not None:
        rows = [{"mask": name, **dataclasses.asdict(row)} for name, report in reports.items() for row in report.rows]
        failed = {name: reason_of(error) for name, error in failures.items()}
        write_json(output, {"model": options.model, "machine": describe_machine(), "rows": rows, "failed": failed})
        say_written(output)
    if failures or not all(report.passed for report in reports.values()):
        raise typer.Exit(1)


def _report(model: PreTrainedModel, options: CheckOptions) -> CheckReport:
    report = check_model(model)
    if report.passed and not _looks_ahead(model):
        return CheckReport((*report.rows, *_generation(model, options).rows))
    return report


def _looks_ahead(model: PreTrainedModel) -> bool:
    worst, lookahead = most_lookahead(model)
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


def _print(where: Console, name: str, report: CheckReport) -> None:
    """Print one line per row, with its name last, so that nothing has to be wrapped."""
    where.print(f"{name}: {'all rows pass' if report.passed else 'FAILED'}", soft_wrap=True)
    where.print("\nverdict  difference  check")
    for row in report.rows:
        verdict = "not run" if row.detail.startswith("(not run") else "ok" if row.passed else "FAILED"
        difference = "-" if verdict == "not run" else f"{row.difference:.1e}"
        shown = Text(f"{verdict:<7}", style="red" if verdict == "FAILED" else "")
        where.print(shown + f"  {difference:>10}  {row.name} {row.detail}".rstrip(), soft_wrap=True)
    where.print()
