"""Train: the steps of a fine-tuning, its evaluations and its checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from ..evaluation import Perplexity, perplexity
from ..interrupts import Interrupted, Noted
from ..modeling import is_learned, mask_penalties
from .checkpoints import Checkpoints
from .data import IGNORED, Source
from .engine import by_main, gathered, number, part_of_step, precision, prepare, random_state
from .journal import Journal, Record, best_of
from .lora import merged, skeleton, with_adapters
from .mesh import Mesh
from .optimizer import optimizer_of
from .run_folder import ModelWriter
from .settings import TrainingSettings
from .stream import Streamed

logger = logging.getLogger(__name__)
Evaluate = Callable[[PreTrainedModel, Tensor], Perplexity]


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """The result of a fine-tuning: the loss of each step, perplexity by step, and tokens per second (median step).

    evaluations: the entry at 0 is the perplexity before training.
    """

    losses: tuple[float, ...]
    evaluations: dict[int, float]
    tokens_per_second: float

    @property
    def best(self) -> tuple[int, float]:
        """Return (step, perplexity) of the best evaluation after a step."""
        return best_of(self.evaluations)


@dataclasses.dataclass(frozen=True)
class Recording:
    """Where a run is recorded, and what may stop it.

    writer: saves the best model.
    signals: Ctrl-C and SIGTERM, noted until the step is done; None if the run has no folder.
    """

    journal: Journal
    writer: ModelWriter
    signals: Noted | None


class Trainer:
    """The state of a run: prepared model, optimizer and schedule."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        source: Source,
        eval_ids: Tensor,
        settings: TrainingSettings,
        measure: Evaluate | None,
        recording: Recording,
    ) -> None:
        self.mesh = Mesh.of(accelerator, settings.sequence_parallel)
        self.accelerator, self.source, self.eval_ids, self.settings = accelerator, source, eval_ids, settings
        self.measure = measure or functools.partial(
            perplexity, context=settings.context, batch_size=8, group=self.mesh.group
        )
        self.signals, self.writer = recording.signals, recording.writer
        self.journal, self.run_folder = recording.journal, recording.journal.run_folder
        self.checkpoints = None
        if self.run_folder is not None:
            self.checkpoints = Checkpoints(accelerator, self.run_folder.checkpoints, settings.keep_checkpoints)
        self.masks_learn = any(is_learned(name) for name, _ in model.named_parameters())
        if settings.gradient_checkpointing:
            _enable_checkpointing(model)
        # Adapters start alike in all processes, but dropout must differ.
        set_seed(settings.seed)
        trained = model if settings.lora is None else with_adapters(model, settings.lora, settings.lora_alpha)
        set_seed(settings.seed, device_specific=True)
        self.adapted = None if settings.lora is None else skeleton(trained)
        self.model, self.optimizer = prepare(accelerator, trained, optimizer_of(trained, settings))
        # The optimizer that `prepare` returned: DeepSpeed may have made another one.
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, settings.warmup_steps, settings.steps)
        accelerator.register_for_checkpointing(self.schedule)
        if isinstance(source, Streamed):
            accelerator.register_for_checkpointing(source)

    def run_to_the_end(self) -> FinetuneResult:
        """Do all steps that are left, and return the result of the whole run."""
        self.model.train()
        done = self.resume()
        self.source.ready()  # an error in the text is raised before anything is measured
        self.evaluate_if_due(done)  # before the first step, or where an interrupted run has not
        first, state = done, random_state(self.accelerator)
        while done < self.settings.steps:
            self.journal.add(self.train(done))
            done += 1
            if done == first + 1 and not torch.equal(state, random_state(self.accelerator)):
                self.tell_of_dropout()
            signal = self.signal()
            if not signal:
                self.evaluate_if_due(done)
            if self.checkpoints is not None and (signal or self.is_due(done, self.settings.checkpoint_every)):
                self.checkpoints.save(done)
            if signal:
                raise Interrupted(signal, f"stopped after step {done} of {self.settings.steps}, with a checkpoint")
        losses = self.journal.losses
        # Otherwise accelerate's autocast stays around `forward`.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return FinetuneResult(
            tuple(record["loss"] for record in losses),
            self.journal.evaluations,
            # The first step allocates memory that later ones reuse.
            statistics.median(record["tokens_per_second"] for record in losses[1:] or losses),
        )

    def tell_of_dropout(self) -> None:
        """Warn that random numbers of a step, such as those of dropout, were drawn in each process on its own."""
        if self.accelerator.is_main_process and self.accelerator.num_processes > 1:
            logger.warning(
                "dropout draws its random numbers in each process: the losses are those of %d processes, and differ "
                "a little with another number of them",
                self.accelerator.num_processes,
            )

    def is_due(self, done: int, every: int) -> bool:
        """Return whether something is done after this step: every so many steps, and after the last one."""
        return done % every == 0 or done == self.settings.steps

    def signal(self) -> int:
        """Return the signal that ends the run, the same in all processes; 0 if none has come."""
        if self.signals is None:
            return 0
        numbers = torch.tensor([self.signals.number], device=self.accelerator.device)
        return int(self.accelerator.gather(numbers).max())

    def train(self, step: int) -> Record:
        """Do one optimizer step. Every token of the global batch has the same weight, in whatever process it is."""
        started = time.perf_counter()
        accelerator, settings = self.accelerator, self.settings
        contexts = self.source.of_step(step)
        tokens = contexts.scored()
        mine = self.mesh.contexts(settings.batch_size)
        loss, penalty = torch.zeros(2, device=accelerator.device)
        for part, is_last in _parts(mine, settings.micro_batch_size or len(mine)):
            # Gradients are averaged over the processes, so the sum over tokens is scaled up by their number.
            with part_of_step(accelerator, self.model, is_last):
                part_loss, part_penalty = self.loss(contexts.batch(part))
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
            "gradient_norm": number(norm),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
        }
        if self.masks_learn:
            record["mask_penalty"] = float(accelerator.reduce(penalty, "sum")) / tokens
        return record

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed loss of the labels in nats, and the mask penalty times the number of labels."""
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        shard = self.mesh.shard({"shift_labels": batch.pop("labels"), **batch})
        labels = shard.pop("shift_labels")
        with precision(self.accelerator, self.settings), self.mesh.running(), mask_penalties() as penalties:
            logits = self.model(**shard, use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        penalty = torch.stack(penalties).mean() if penalties else loss.new_zeros(())
        return loss, penalty * (labels != IGNORED).sum()

    def evaluate_if_due(self, done: int) -> None:
        """Evaluate in every process: where the model is sharded, none can do it alone."""
        if not self.is_due(done, self.settings.eval_every) or done in self.journal.evaluations:
            return
        with precision(self.accelerator, self.settings):
            result = self.measure(self.accelerator.unwrap_model(self.model), self.eval_ids)
        # One number for all processes: a difference in the last digit could make only some of them save.
        value, loss = broadcast_object_list([result.perplexity, result.nats_per_token])
        if math.isnan(loss):
            raise ValueError(
                f"the held-out loss is nan after step {done}; lower the learning rate or train in float32"
                if done
                else "the held-out loss is nan before training; the model's weights are not finite, or too large"
            )
        if self.run_folder is not None and done and value <= best_of(self.journal.evaluations)[1]:
            # Saved before it is logged: a resumed run would not save what is in the log already.
            save = functools.partial(self.save_model, state=gathered(self.accelerator, self.model))
            by_main(self.accelerator, functools.partial(self.run_folder.save_best, save))
        self.journal.add({"step": done, "perplexity": value, "eval_tokens": result.tokens})

    def save_model(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Save the model with the weights ``state``, adapters merged."""
        if self.adapted is None:
            self.writer.write(folder, self.accelerator.unwrap_model(self.model), state_dict=state)
        else:
            self.writer.write(folder, merged(self.adapted, state))

    def resume(self) -> int:
        """Load the newest checkpoint; return the number of steps done, 0 without one."""
        steps = 0 if self.checkpoints is None else self.checkpoints.load()
        if steps:
            # With more steps than before, the learning rate follows the longer cosine from here on.
            self.schedule.last_epoch -= 1
            self.schedule.step()
        self.journal.rewind(steps)
        if self.run_folder is not None:
            self.run_folder.check_best(best_of(self.journal.evaluations)[0])
        return steps


def _parts(indices: list[int], size: int) -> Iterator[tuple[list[int], bool]]:
    """Cut indices into parts of at most ``size``; say of each whether it is the last."""
    for first in range(0, len(indices), size):
        yield indices[first : first + size], first + size >= len(indices)


def _enable_checkpointing(model: PreTrainedModel) -> None:
    # Transformers 5.17 has only the second name, and 5.23 warns of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
