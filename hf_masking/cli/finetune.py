"""`hf-masking finetune MODEL`: fine-tune under a mask. `scripts/finetune.py` is the same, for `accelerate launch`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from accelerate import PartialState

from ..evaluation import encode, load_text
from ..modeling import layer_masks, patch_model
from ..training import TrainingSettings, on_cpu
from ..training import finetune as train
from .console import errors, load_model, load_tokenizer, progress_bar
from .options import CARRIED, DataOptions, MaskOptions


@dataclasses.dataclass(frozen=True)
class HeldOutOptions:
    """What is evaluated on."""

    eval_data: str | None = dataclasses.field(
        default=None, metadata={"help": "a text to evaluate on; by default the last tenth of --data"}
    )
    eval_tokens: int = dataclasses.field(default=16_384, metadata={"help": "evaluate on that many tokens of it"})


def finetune(
    model: Annotated[str, typer.Argument(help="a hub id or a folder")],
    output: Annotated[Path, typer.Option(help="folder for the log, the checkpoints and the best model")],
    masks: MaskOptions,
    data: DataOptions,
    held_out: HeldOutOptions,
    settings: TrainingSettings,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --output")] = False,
) -> None:
    """Fine-tune a model under a mask to predict the next token; resumes to the same losses after a kill."""
    if len(masks.mask) > 1:
        raise ValueError(f"a fine-tuning has one --mask, got {len(masks.mask)}; join masks with '|' or '&'")
    layers = masks.layers()
    processes = PartialState(cpu=on_cpu())
    settings.check(processes.num_processes)
    text = data.load()
    train_text, eval_text = text.split(0.1) if held_out.eval_data is None else (text, load_text(held_out.eval_data))
    tokenizer, loaded = load_tokenizer(model), load_model(model)
    # Without --mask a checkpoint keeps the one that it carries, with what that has learned.
    mask = masks.mask[0] if masks.mask else CARRIED if layer_masks(loaded) else "causal"
    patch_model(loaded, None if mask == CARRIED else mask, layers=layers)
    description = {
        "model": model,
        "mask": mask,
        "layers": {str(layer): spec for layer, spec in layers.items()},
        "train_sha256": train_text.sha256,
        "eval_sha256": eval_text.sha256,
        "eval_tokens": held_out.eval_tokens,
    }
    with progress_bar(f"fine-tuning under {mask}", settings.steps, visible=processes.is_main_process) as bar:
        result = train(
            loaded,
            encode(train_text, tokenizer)[0],
            encode(eval_text, tokenizer, held_out.eval_tokens)[0],
            settings,
            output=output,
            resume=resume,
            tokenizer=tokenizer,
            description=description,
            on_record=lambda record: bar.update(bar.task_ids[0], completed=record["step"]),
        )
    if processes.is_main_process:
        step, best = result.best
        errors.print(
            f"processes: {processes.num_processes}; final loss {result.losses[-1]:.4f}; best perplexity {best:.3f} "
            f"after step {step}, saved in {output / 'best'}: load it with hf_masking.from_pretrained",
            highlight=False,
            soft_wrap=True,
        )
