"""Run `hf-masking finetune MODEL`: fine-tune under a mask, on any number of processes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import Text, encode, load_stream, load_text
from ..evaluation.loading import best_device, check_vocabulary, load_model, load_tokenizer, refuse_adapter
from ..files import digest
from ..interrupts import Interrupted
from ..modeling import label_of
from ..training import TokenStream, asked_for, on_cpu
from ..training import finetune as train
from ..training.process_group import clean_exit
from ..training.run_folder import RunFolder
from .console import check_split, load_data
from .masking import check_one_mask, check_specs, chosen, put_into, what_runs
from .options.finetune import FinetuneOptions, HeldOutOptions
from .terminal import Progression, errors, progress_bar, resuming_command, warn
from .values import at_least, at_most, refuse_without_effect

MOST_SHUFFLED = 2**20  # contexts; all of them are in memory before the first step


@clean_exit()
def run(options: FinetuneOptions) -> None:
    """Fine-tune a model, print the log, and say where the best model is."""
    model, output, masks, settings = options.model, options.output, options.masks, options.settings
    check_one_mask(masks, "finetune")
    check_specs(masks)
    at_least(1, eval_tokens=options.held_out.eval_tokens, shuffle_buffer=options.streaming.shuffle_buffer)
    at_most(MOST_SHUFFLED, shuffle_buffer=options.streaming.shuffle_buffer)
    processes = PartialState(cpu=on_cpu())
    settings.check(processes.num_processes)
    if processes.is_main_process:
        RunFolder(output).check_place(options.resume)
    if settings.warmup_steps >= settings.steps:
        warn(f"--steps {settings.steps} end before --warmup-steps {settings.warmup_steps} do; use fewer of these")
    refuse_adapter(model)
    tokenizer = load_tokenizer(model, **options.source.where())
    train_ids, eval_text, texts = _texts(options, tokenizer)
    eval_ids = encode(eval_text, tokenizer, options.held_out.eval_tokens)[0]
    loaded = _under_mask(options, tokenizer, check=processes.is_main_process)
    description = {
        "model": model,
        "revision": options.source.revision,
        # Only the main process claims the folder, and hashing weights takes time.
        "model_sha256": digest(Path(model)) if processes.is_main_process and Path(model).is_dir() else None,
        **what_runs(loaded),
        **texts,
        "eval_data": {"sha256": eval_text.sha256},
        "eval_tokens": options.held_out.eval_tokens,
    }
    task, visible = f"fine-tuning under {label_of(loaded)}", processes.is_main_process
    with _resumable(processes.num_processes), progress_bar(task, settings.steps, visible=visible) as bar:
        result = train(
            loaded,
            train_ids,
            eval_ids,
            settings,
            output=output,
            resume=options.resume,
            tokenizer=tokenizer,
            description=description,
            trackers=options.writing.tracker,
            max_shard_size=options.writing.max_shard_size,
            on_record=_teller(bar, task, settings.steps),
        )
    if processes.is_main_process:
        (step, best), before = result.best, result.evaluations.get(0, math.nan)
        errors.print(
            f"processes: {processes.num_processes}; final loss {result.losses[-1]:.4f}; perplexity before "
            f"{before:.3f}; best perplexity {best:.3f} after step {step}, saved in {output / 'best'}: "
            "load it with hf_masking.from_pretrained",
            soft_wrap=True,
        )


@contextmanager
def _resumable(processes: int) -> Iterator[None]:
    """Tell the user of an interrupted run how to resume it."""
    try:
        yield
    except Interrupted as stop:
        again = resuming_command() if processes == 1 else "launch it again with --resume"
        raise Interrupted.like(stop, f"{stop}; {again}") from None


def _teller(bar: Progress, task: str, steps: int) -> Callable[[dict[str, Any]], None]:
    """Return a callback that shows each record of the log."""
    progression = Progression()

    def tell(record: dict[str, Any]) -> None:
        step = record["step"]
        if "perplexity" in record:
            errors.print(f"after step {step} of {steps}: perplexity {record['perplexity']:.3f}")
            return
        bar.update(bar.task_ids[0], completed=step, description=f"{task}: loss {record['loss']:.3f}")
        if not errors.is_terminal:
            speed = f"{record['tokens_per_second']:,.0f} tokens/s"
            progression.show(f"step {step} of {steps}: loss {record['loss']:.3f}, {speed}")

    return tell


def _under_mask(options: FinetuneOptions, tokenizer: PreTrainedTokenizerBase, *, check: bool) -> PreTrainedModel:
    # A sharded model may not fit on one GPU. In bfloat16 AdamW's small steps would be rounded away.
    device = None if asked_for("FSDP") or asked_for("DEEPSPEED") else best_device()
    loaded = load_model(options.model, device=device, dtype=torch.float32, **options.source.where())
    check_vocabulary(loaded, tokenizer)
    (spec,) = chosen(loaded, options.masks, default="causal")
    # Checked by one process only: under FSDP the others may not have weights yet.
    return put_into(loaded, spec, options.masks, check=check)


def _texts(
    options: FinetuneOptions, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor | TokenStream, Text, dict[str, Any]]:
    """Return what is trained on, the text to evaluate on, and a description that a resumed run must share."""
    data, streaming, held_out = options.data, options.streaming, options.held_out
    if held_out.eval_data is None:
        refuse_without_effect(held_out, "eval_split", "goes with --eval-data; give both, or leave it out")
    else:
        check_split(held_out, "eval_split", held_out.eval_data)
    if not streaming.stream:
        refuse_without_effect(streaming, "shuffle_buffer", "goes with --stream; give both, or leave it out")
        text = load_data(data)
        train, held = text.split(0.1) if held_out.eval_data is None else (text, _held_out(held_out, data.column))
        return encode(train, tokenizer)[0], held, {"data": {"sha256": train.sha256}}
    if held_out.eval_data is None:
        raise ValueError("a stream has no last tenth to hold out; name a text to evaluate on with --eval-data")
    check_split(data, "split", data.data)
    stream = load_stream(data.data, split=data.split, column=data.column)
    documents = functools.partial(stream.tokens, tokenizer)
    described = {**dataclasses.asdict(data), **dataclasses.asdict(streaming)}
    return TokenStream(documents, streaming.shuffle_buffer), _held_out(held_out, data.column), described


def _held_out(options: HeldOutOptions, column: str) -> Text:
    assert options.eval_data is not None
    return load_text(options.eval_data, split=options.eval_split, column=column)
