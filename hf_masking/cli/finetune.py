"""`hf-masking finetune MODEL`: fine-tune under a mask. `scripts/finetune.py` is the same, for `accelerate launch`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import Text, encode, load_stream, load_text
from ..modeling import layer_masks, patch_model
from ..training import TokenStream, TrainingSettings, asked_for, on_cpu
from ..training import finetune as train
from .console import errors, load_model, load_tokenizer, progress_bar
from .options import CARRIED, DataOptions, MaskOptions


@dataclasses.dataclass(frozen=True)
class HeldOutOptions:
    """What is evaluated on."""

    eval_data: str | None = dataclasses.field(
        default=None, metadata={"help": "a text to evaluate on; by default the last tenth of --data"}
    )
    eval_split: str = dataclasses.field(
        default="validation", metadata={"help": "the split of --eval-data, if it is a hub data set"}
    )
    eval_tokens: int = dataclasses.field(default=16_384, metadata={"help": "evaluate on that many tokens of it"})

    def load(self, column: str) -> Text:
        assert self.eval_data is not None
        return load_text(self.eval_data, split=self.eval_split, column=column)


@dataclasses.dataclass(frozen=True)
class TrainingDataOptions(DataOptions):
    """Which text to train on."""

    split: str = dataclasses.field(default="train", metadata={"help": "the split of --data, if it is a hub data set"})


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """Whether the text is read while it is used."""

    stream: bool = dataclasses.field(
        default=False, metadata={"flags": ("--stream",), "help": "read --data while training; needs --eval-data"}
    )
    shuffle_buffer: int = dataclasses.field(
        default=256, metadata={"help": "with --stream: contexts among which the next one is drawn; 1 keeps the order"}
    )


@dataclasses.dataclass(frozen=True)
class WritingOptions:
    """What is written where, besides the run's own folder."""

    tracker: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "one of accelerate's trackers, e.g. tensorboard or wandb; repeatable"}
    )
    max_shard_size: str | None = dataclasses.field(
        default=None, metadata={"help": "save the best model in files of at most this size, e.g. 2GB"}
    )


def finetune(
    model: Annotated[str, typer.Argument(help="a hub id or a folder")],
    output: Annotated[Path, typer.Option(help="folder for the log, the checkpoints and the best model")],
    masks: MaskOptions,
    data: TrainingDataOptions,
    streaming: StreamOptions,
    held_out: HeldOutOptions,
    writing: WritingOptions,
    settings: TrainingSettings,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --output")] = False,
) -> None:
    """Fine-tune a model under a mask to predict the next token; resumes to the same losses after a kill."""
    if len(masks.mask) > 1:
        raise ValueError(f"a fine-tuning has one --mask, got {len(masks.mask)}; join masks with '|' or '&'")
    layers = masks.layers()
    processes = PartialState(cpu=on_cpu())
    settings.check(processes.num_processes)
    tokenizer = load_tokenizer(model)
    train_ids, eval_text, texts = _texts(data, streaming, held_out, tokenizer)
    loaded, mask = _under_mask(model, masks.mask, layers, check=processes.is_main_process)
    description = {
        "model": model,
        "mask": mask,
        "layers": {str(layer): spec for layer, spec in layers.items()},
        **texts,
        "eval_sha256": eval_text.sha256,
        "eval_tokens": held_out.eval_tokens,
    }
    with progress_bar(f"fine-tuning under {mask}", settings.steps, visible=processes.is_main_process) as bar:
        result = train(
            loaded,
            train_ids,
            encode(eval_text, tokenizer, held_out.eval_tokens)[0],
            settings,
            output=output,
            resume=resume,
            tokenizer=tokenizer,
            description=description,
            trackers=writing.tracker,
            max_shard_size=writing.max_shard_size,
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


def _under_mask(
    model: str, masks: Sequence[str], layers: dict[int, str], *, check: bool
) -> tuple[PreTrainedModel, str]:
    """The patched model, and what its mask is called."""
    # What lies in pieces is for what one GPU has no room for. In bfloat16 AdamW's small steps would be rounded away.
    in_pieces = asked_for("FSDP") or asked_for("DEEPSPEED")
    loaded = load_model(model, place=not in_pieces, dtype=torch.float32)
    # Without --mask a checkpoint keeps the one that it carries, with what that has learned.
    mask = masks[0] if masks else CARRIED if layer_masks(loaded) else "causal"
    # Once is enough, and under FSDP only the main process may have weights yet.
    patch_model(loaded, None if mask == CARRIED else mask, layers=layers, check=check)
    return loaded, mask


def _texts(
    data: DataOptions, streaming: StreamOptions, held_out: HeldOutOptions, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor | TokenStream, Text, dict[str, Any]]:
    """What is trained on, the text that is evaluated on, and what of the first a resumed run must have too."""
    if not streaming.stream:
        text = data.load()
        train, held = text.split(0.1) if held_out.eval_data is None else (text, held_out.load(data.column))
        return encode(train, tokenizer)[0], held, {"train_sha256": train.sha256}
    if held_out.eval_data is None:
        raise ValueError("a stream has no last tenth to hold out; name a text to evaluate on with --eval-data")
    stream = load_stream(data.data, split=data.split, column=data.column)
    documents = functools.partial(stream.tokens, tokenizer)
    described = {"stream": data.data, "split": data.split, "column": data.column, **dataclasses.asdict(streaming)}
    return TokenStream(documents, streaming.shuffle_buffer), held_out.load(data.column), described
