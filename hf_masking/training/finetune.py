"""Fine-tuning under a mask: the next token, AdamW, one cosine. The loop is accelerate's, on any number of processes."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from ..evaluation import Perplexity, perplexity, refuse_lookahead
from ..modeling import is_learned, mask_penalties
from .data import IGNORED, Contexts
from .lora import merged, with_adapters
from .run_folder import RunFolder
from .settings import TrainingSettings

Record = dict[str, Any]
Evaluate = Callable[[PreTrainedModel, Tensor], Perplexity]


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning ended with: the loss of each step, perplexity by step, and tokens a second (median step)."""

    losses: tuple[float, ...]
    evaluations: dict[int, float]
    tokens_per_second: float

    @property
    def best(self) -> tuple[int, float]:
        """(step, perplexity) of the best evaluation."""
        return min(self.evaluations.items(), key=lambda item: item[1])


def finetune(
    model: PreTrainedModel,
    train_ids: Tensor,
    eval_ids: Tensor,
    settings: TrainingSettings,
    *,
    output: Path | None = None,
    resume: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    description: Record | None = None,
    evaluate: Evaluate | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> FinetuneResult:
    """Trains a model, patched or not, to predict the next token of a text.

    Parameters:
        model: what is trained; with ``settings.lora`` adapters are put into it, and stay there.
        train_ids: ``[N]`` tokens to train on; packed into contexts, each token a label once a pass.
        eval_ids: ``[M]`` tokens whose perplexity is measured.
        output: folder for the log, the checkpoints and the best model; nothing is written without one.
        resume: go on from the newest checkpoint in ``output``, to the same losses as without the interruption.
        tokenizer: saved with the best model.
        description: what else makes this run itself (model, mask, text); a resumed run must have the same.
        evaluate: how the perplexity of ``eval_ids`` is measured; by default in contexts, one behind the other.
        on_record: called on the main process with every line of the log.

    Raises:
        ValueError: settings that cannot be run, a text shorter than a context, a mask with lookahead, a folder that
            holds another run, a loss that is no longer a number.
    """
    accelerator = Accelerator(cpu=on_cpu())
    settings.check(accelerator.num_processes)
    refuse_lookahead(model, "training on the next token")
    contexts = Contexts.pack(train_ids, settings.context)
    if len(eval_ids) <= settings.context:
        raise ValueError(
            f"the held-out text has {len(eval_ids)} tokens, and one context of {settings.context} needs "
            f"{settings.context + 1}; use a longer one (--eval-data, --eval-tokens) or a shorter context"
        )
    run = None if output is None else RunFolder(output)
    if run is not None:
        full = {**(description or {}), "settings": dataclasses.asdict(settings)}
        run.claim(full, resume)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            run.describe(full)
    evaluate = evaluate or functools.partial(perplexity, context=settings.context, batch_size=8)
    trainer = _Trainer(accelerator, model, contexts, eval_ids, settings, run, tokenizer, evaluate, on_record)
    return trainer.run_to_the_end()


def on_cpu() -> bool:
    """Whether there is nothing but the CPU; accelerate must be told, or its processes do not find each other."""
    return not torch.accelerator.is_available()


class _Trainer:
    """The state of a run: prepared model, optimizer and schedule, and the records so far."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        contexts: Contexts,
        eval_ids: Tensor,
        settings: TrainingSettings,
        run: RunFolder | None,
        tokenizer: PreTrainedTokenizerBase | None,
        measure: Evaluate,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        self.accelerator, self.contexts, self.eval_ids, self.settings = accelerator, contexts, eval_ids, settings
        self.run_folder, self.tokenizer, self.measure, self.on_record = run, tokenizer, measure, on_record
        self.records: list[Record] = []
        set_seed(settings.seed, device_specific=True)
        self.masks_learn = any(is_learned(name) for name, _ in model.named_parameters())
        if settings.gradient_checkpointing:
            _enable_checkpointing(model)
        trained = model if settings.lora is None else with_adapters(model, settings.lora, settings.lora_alpha)
        optimizer = torch.optim.AdamW(_groups(trained, settings), lr=settings.learning_rate, betas=(0.9, 0.95))
        self.schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, settings.steps)
        self.model, self.optimizer = accelerator.prepare(trained, optimizer)
        accelerator.register_for_checkpointing(self.schedule)

    def run_to_the_end(self) -> FinetuneResult:
        self.model.train()
        for step in range(self.resume(), self.settings.steps):
            self.record(self.train(step))
            done = step + 1
            last = done == self.settings.steps
            if last or done % self.settings.eval_every == 0:
                self.evaluate(done)
            if last or done % self.settings.checkpoint_every == 0:
                self.checkpoint(done)
        losses = [record for record in self.records if "loss" in record]
        return FinetuneResult(
            tuple(record["loss"] for record in losses),
            {record["step"]: record["perplexity"] for record in self.records if "perplexity" in record},
            # The first step pays for memory that later ones reuse.
            statistics.median(record["tokens_per_second"] for record in losses[1:] or losses),
        )

    def train(self, step: int) -> Record:
        """One optimizer step. Every token of the global batch weighs the same, wherever it is computed."""
        started = time.perf_counter()
        accelerator, settings = self.accelerator, self.settings
        indices = self.contexts.indices(step, settings.batch_size, settings.seed)
        tokens = self.contexts.scored(indices)
        mine = indices[accelerator.process_index :: accelerator.num_processes]
        loss, penalty = torch.zeros(2, device=accelerator.device)
        for part, is_last in _parts(mine, settings.micro_batch_size or len(mine)):
            # Gradients are averaged over the processes, so the sum over tokens is scaled up by their number.
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                part_loss, part_penalty = self.loss(self.contexts.batch(part))
                whole = part_loss + settings.mask_penalty * part_penalty
                accelerator.backward(whole * (accelerator.num_processes / tokens))
            loss += part_loss.detach()
            penalty += part_penalty.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), settings.max_gradient_norm)
        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        mean = float(accelerator.reduce(loss, "sum")) / tokens
        if not math.isfinite(mean):
            raise ValueError(f"the loss became {mean} at step {step + 1}; lower the learning rate or train in float32")
        seconds = time.perf_counter() - started
        record = {
            "step": step + 1,
            "loss": mean,
            "learning_rate": learning_rate,
            "gradient_norm": float(norm),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
        }
        if self.masks_learn:
            record["mask_penalty"] = float(accelerator.reduce(penalty, "sum")) / tokens
        return record

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The summed loss of the labels that count, in nats, and as often the penalty of masks that learn."""
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        with self.precision(), mask_penalties() as penalties:
            logits = self.model(**batch, use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        penalty = torch.stack(penalties).mean() if penalties else loss.new_zeros(())
        return loss, penalty * (labels != IGNORED).sum()

    def precision(self) -> AbstractContextManager[None]:
        """bfloat16 needs no scaling of the loss, so autocast is all; accelerate's own switch is once a process."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def evaluate(self, steps: int) -> None:
        """On the main process, for one number that does not depend on how many there are."""
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            with self.precision():
                result = self.measure(model, self.eval_ids)
            best = min((record["perplexity"] for record in self.records if "perplexity" in record), default=math.inf)
            self.record({"step": steps, "perplexity": result.perplexity, "eval_tokens": result.tokens})
            if self.run_folder is not None and result.perplexity <= best:
                self.run_folder.save_best(self.save_model)
        self.accelerator.wait_for_everyone()

    def save_model(self, folder: Path) -> None:
        merged(self.accelerator.unwrap_model(self.model)).save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def checkpoint(self, steps: int) -> None:
        if self.run_folder is None:
            return
        self.accelerator.save_state(str(self.run_folder.partial_checkpoint(steps)))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run_folder.finish_checkpoint(steps, self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """The first step to do: 0, or where the newest checkpoint left off."""
        if self.run_folder is None:
            return 0
        steps = self.run_folder.latest_steps()
        if steps:
            self.accelerator.load_state(str(self.run_folder.checkpoint(steps)))
        if self.accelerator.is_main_process:
            self.run_folder.rewind_log(steps)
        self.accelerator.wait_for_everyone()
        self.records = self.run_folder.records()
        return steps

    def record(self, record: Record) -> None:
        self.records.append(record)
        if self.accelerator.is_main_process:
            if self.run_folder is not None:
                self.run_folder.log(record)
            if self.on_record is not None:
                self.on_record(record)


def _parts(indices: list[int], size: int) -> Iterator[tuple[list[int], bool]]:
    for first in range(0, len(indices), size):
        yield indices[first : first + size], first + size >= len(indices)


def _groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not, nor what masks learn, at a learning rate of its own."""
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": settings.weight_decay},
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": 0.0, "lr": settings.mask_learning_rate},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = 2 if is_learned(name) else int(parameter.ndim < 2)
            groups[kind]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _enable_checkpointing(model: PreTrainedModel) -> None:
    # Transformers 5.17 knows only the second name, and 5.23 warns of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
