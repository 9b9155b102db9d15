"""Connect the commands to one Typer application, without importing what they run."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from .. import __version__
from .command import command
from .options.bench import BenchOptions
from .options.check import CheckOptions
from .options.compare import CompareOptions
from .options.eval import EvalOptions
from .options.finetune import FinetuneOptions
from .options.generate import GenerateOptions
from .options.info import InfoOptions
from .options.masks import MasksOptions
from .options.show import ShowOptions
from .terminal import console, logged_once

# Each name is that of the module in this package that runs the command.
COMMANDS: dict[str, Any] = {
    "masks": MasksOptions,
    "show": ShowOptions,
    "info": InfoOptions,
    "check": CheckOptions,
    "eval": EvalOptions,
    "generate": GenerateOptions,
    "finetune": FinetuneOptions,
    "compare": CompareOptions,
    "bench": BenchOptions,
}

app = typer.Typer(
    name="hf-masking",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def call() -> int:
    """Run the command that the program's arguments name; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A model may generate characters that the terminal's encoding lacks.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with logged_once():
        try:
            return int(app(args=sys.argv[1:] or ["--help"], prog_name="hf-masking", standalone_mode=False) or 0)
        except SystemExit as stop:
            if not isinstance(stop.__context__, BrokenPipeError):
                raise
            return 128 + 13  # Click and Rich exit with 1; shells expect 128 + SIGPIPE for a closed pipe


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Sparse attention masks for Hugging Face decoders: show, check, evaluate, fine-tune, compare, benchmark."""


for name, options in COMMANDS.items():
    # Typer joins the lines of a paragraph, so each example is a paragraph.
    epilog = "Examples:\n\n" + "\n\n".join(f"  {example}" for example in options.examples)
    app.command(name, epilog=epilog)(command(f"{__package__}.{name}", options))
