"""The commands as one Typer application."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import __version__
from ..interrupts import Interrupted, raised
from .commands.bench import bench
from .commands.check import check
from .commands.compare import compare
from .commands.eval import evaluate
from .commands.finetune import finetune
from .commands.generate import generate
from .commands.show import show
from .options import expand
from .terminal import console, logged_once, say_interrupted

app = typer.Typer(
    name="hf-masking",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

EXAMPLES = {
    "show": ["hf-masking show 'window:8|sinks:2' --length 24", "hf-masking show 'strided:8|window:8' --png mask.png"],
    "eval": [
        "hf-masking eval gpt2 --mask causal --mask 'window:256|sinks:4' --data book.txt",
        "hf-masking eval ./my-model --mask window:256 --layer 0=causal --context 1024 --stride 512",
    ],
    "check": [
        "hf-masking check gpt2 --mask 'window:256|sinks:4'",
        "hf-masking check ./my-model --mask 'window:64|sinks:4' --length 63 --length 320 --output check.json",
    ],
    "generate": [
        "hf-masking generate gpt2 --mask 'window:256|sinks:4' --prompt 'Once upon a time' --max-new-tokens 1000",
        "hf-masking generate ./my-model --prompt 'def main(' --temperature 0.8 --top-p 0.95",
    ],
    "finetune": [
        "hf-masking finetune gpt2 --mask 'window:256|sinks:4' --data book.txt --output runs/window",
        "accelerate launch scripts/finetune.py gpt2 --mask window:256 --data book.txt --output runs/window",
    ],
    "compare": [
        "hf-masking compare",
        "hf-masking compare gpt2 --mask causal --mask 'window:64|sinks:4' --data book.txt --context 1024 --seeds 3",
    ],
    "bench": [
        "hf-masking bench --mask window:128 --mask strided:32 --length 1024 --length 4096",
        "hf-masking bench --preset readme --output docs/bench.json",
    ],
}

COMMANDS: dict[str, Callable[..., None]] = {
    "show": show,
    "check": check,
    "eval": evaluate,
    "generate": generate,
    "finetune": finetune,
    "compare": compare,
    "bench": bench,
}


def call() -> int:
    """Run the command that the program's arguments name; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A model may write what the terminal's encoding has no sign for.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with logged_once():
        try:
            return int(app(args=sys.argv[1:] or ["--help"], prog_name="hf-masking", standalone_mode=False) or 0)
        except SystemExit as stop:
            if not isinstance(stop.__context__, BrokenPipeError):
                raise
            return 128 + 13  # Click and Rich leave with 1; shells expect this of a closed pipe


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and leave")
    ] = False,
) -> None:
    """Sparse attention masks for Hugging Face decoders: look at them, evaluate, fine-tune, compare, measure."""


def _quietly(function: Callable[..., None]) -> Callable[..., None]:
    """The command, without the libraries' own progress bars and advice, and without a traceback of Ctrl-C."""

    @functools.wraps(function)
    def command(*arguments: Any, **values: Any) -> None:
        try:
            with raised():
                # Here torch is imported, and not before: `--help` does without.
                from ..evaluation.loading import silence_libraries

                silence_libraries()
                function(*arguments, **values)
        except KeyboardInterrupt as stop:
            say_interrupted(str(stop))
            raise typer.Exit(stop.exit_code if isinstance(stop, Interrupted) else 130) from None

    return command


for name, function in COMMANDS.items():
    # Typer joins the lines of a paragraph; a paragraph for each example keeps them apart.
    epilog = "Examples:\n\n" + "\n\n".join(f"  {example}" for example in EXAMPLES[name])
    app.command(name, epilog=epilog)(expand(_quietly(function)))
