"""`hf-masking finetune MODEL`: fine-tune under a mask. `scripts/finetune.py` is the same, for `accelerate launch`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import Text, encode, load_stream, load_text
from ..modeling import layer_masks, patch_model
from ..training import TokenStream, TrainingSettings, asked_for, on_cpu
from ..training import finetune as train
from ..training.process_group import clean_exit
from .commands.finetune import HeldOutOptions, StreamOptions, TrainingDataOptions, WritingOptions
from .console import CARRIED, load_data, load_model, load_tokenizer
from .options import DataOptions, MaskOptions
from .terminal import errors, progress_bar


@clean_exit()
def finetune(
    model: str,
    output: Path,
    masks: MaskOptions,
    data: TrainingDataOptions,
    streaming: StreamOptions,
    held_out: HeldOutOptions,
    writing: WritingOptions,
    settings: TrainingSettings,
    resume: bool,
) -> None:
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
        text = load_data(data)
        train, held = text.split(0.1) if held_out.eval_data is None else (text, _held_out(held_out, data.column))
        return encode(train, tokenizer)[0], held, {"train_sha256": train.sha256}
    if held_out.eval_data is None:
        raise ValueError("a stream has no last tenth to hold out; name a text to evaluate on with --eval-data")
    stream = load_stream(data.data, split=data.split, column=data.column)
    documents = functools.partial(stream.tokens, tokenizer)
    described = {"stream": data.data, "split": data.split, "column": data.column, **dataclasses.asdict(streaming)}
    return TokenStream(documents, streaming.shuffle_buffer), _held_out(held_out, data.column), described


def _held_out(options: HeldOutOptions, column: str) -> Text:
    assert options.eval_data is not None
    return load_text(options.eval_data, split=options.eval_split, column=column)
