"""The command line: `hf-masking COMMAND`. A user's mistake is one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from .bench import bench
from .check import check
from .compare import compare
from .console import errors, quiet
from .eval import evaluate
from .finetune import finetune
from .generate import generate
from .options import expand
from .show import show

app = typer.Typer(
    name="hf-masking",
    help="Sparse attention masks for Hugging Face decoders: look at them, evaluate, fine-tune, compare, measure.",
    no_args_is_help=True,
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

for name, function in COMMANDS.items():
    # Typer joins the lines of a paragraph; a paragraph for each example keeps them apart.
    epilog = "Examples:\n\n" + "\n\n".join(f"  {example}" for example in EXAMPLES[name])
    app.command(name, epilog=epilog)(expand(function))


def run() -> None:
    """The entry point."""
    quiet()
    try:
        app()
    except (ValueError, OSError) as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    run()
