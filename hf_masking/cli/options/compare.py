"""Declare the options of `hf-masking compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...comparison.trial_settings import TrialSettings
from ...options import argument, option
from .groups import DataOptions, MaskOptions, SourceOptions

MASKS = (
    "causal",
    "window:256",
    "window:256|sinks:4",
    "block_local:256,1",
    "strided:64|window:64",
    "block_local:128|summary:128,8",
)


@dataclass(frozen=True)
class ComparedMaskOptions(MaskOptions):
    """Select the masks; all are compared with the first one."""

    mask: list[str] = option([], "a mask, e.g. 'window:256|sinks:4'; repeatable; by default six common ones")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare masks in one report: perplexity before and after a short fine-tuning, speed and memory."""

    examples: ClassVar = (
        "hf-masking compare",
        "hf-masking compare gpt2 --mask causal --mask 'window:64|sinks:4' --data book.txt --context 1024 --seeds 3",
    )

    model: str | None = argument(None, "a hub id or a folder; by default a small model, trained once and kept")
    source: SourceOptions
    device: str | None = option(None, "cpu, cuda or cuda:1; by default a GPU if there is one")
    masks: ComparedMaskOptions
    data: DataOptions
    settings: TrialSettings
    output: Path = option(
        Path("hf-masking-compare"), "folder for the report (JSON, Markdown, pictures) and the finished trials"
    )
    json: bool = option(
        False, "print the report as JSON on standard output, and the tables on standard error", "--json"
    )
    seeds: int = option(1, "number of seeds for each mask, with the same batches")
    longest: int = option(4096, "look for break-even lengths up to this many tokens; 0 to skip it")
    resume: bool = option(False, "continue the comparison in --output; masks and seeds may be added", "--resume")
