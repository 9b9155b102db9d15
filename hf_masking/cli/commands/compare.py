"""`hf-masking compare`: masks side by side, each evaluated, fine-tuned and evaluated again in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...comparison.trial_settings import TrialSettings
from ..options import DataOptions, MaskOptions


def compare(
    masks: MaskOptions,
    data: DataOptions,
    settings: TrialSettings,
    model: Annotated[
        str | None, typer.Argument(help="a hub id or a folder; without one a small model is trained once and kept")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="folder for the report: JSON, Markdown and pictures, and the trials it is made of")
    ] = Path("hf-masking-compare"),
    seeds: Annotated[int, typer.Option(help="how many seeds each mask is tried under, with the same batches")] = 1,
    longest: Annotated[
        int, typer.Option(help="look up to that many tokens from where on a mask pays; 0 for not at all")
    ] = 4096,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the comparison in --output; masks and seeds may be added")
    ] = False,
) -> None:
    """Perplexity before and after a short fine-tuning, speed and memory of each mask, in one report."""
    from ..compare import compare as run

    run(masks, data, settings, model, output, seeds, longest, resume)
