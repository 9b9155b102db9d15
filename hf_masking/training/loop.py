"""Fine-tuning under a mask: the next token, AdamW, one cosine. The loop is accelerate's, on any number of processes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from ..evaluation import Perplexity, perplexity, refuse_lookahead
from ..interrupts import Interrupted, Noted, noted
from ..modeling import check_fits, is_learned, mask_penalties
from .checkpoints import Checkpoints
from .data import IGNORED, Contexts, Shuffled, Source
from .engine import by_main, gathered, number, part_of_step, precision, prepare, random_state, start
from .journal import Journal, Record, best_of, checked_trackers
from .lora import merged, skeleton, with_adapters
from .optimizer import optimizer_of
from .run_folder import ModelWriter, RunFolder, writing
from .settings import TrainingSettings
from .stream import Streamed, TokenStream

logger = logging.getLogger(__name__)
Evaluate = Callable[[PreTrainedModel, Tensor], Perplexity]


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning ended with: the loss of each step, perplexity by step, and tokens a second (median step).

    evaluations: at 0 is what the model came with.
    """

    losses: tuple[float, ...]
    evaluations: dict[int, float]
    tokens_per_second: float

    @property
    def best(self) -> tuple[int, float]:
        """(step, perplexity) of the best evaluation after a step."""
        return best_of(self.evaluations)


def finetune(
    model: PreTrainedModel,
    train_ids: Tensor | TokenStream,
    eval_ids: Tensor,
    settings: TrainingSettings,
    *,
    output: Path | None = None,
    resume: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    description: Record | None = None,
    evaluate: Evaluate | None = None,
    on_record: Callable[[Record], None] | None = None,
    trackers: Sequence[str | GeneralTracker] = (),
    max_shard_size: str | int | None = None,
) -> FinetuneResult:
    """Trains a model, patched or not, to predict the next token of a text.

    Parameters:
        model: what is trained; with ``settings.lora`` adapters are put into it, and stay there.
        train_ids: ``[N]`` tokens to train on, or a stream; packed into contexts, each token a label once a pass.
        eval_ids: ``[M]`` tokens whose perplexity is measured.
        output: folder for the log, the checkpoints and the best model; nothing is written without one. With one,
            Ctrl-C and SIGTERM end the run after the step that it is at, with a checkpoint.
        resume: go on from the newest checkpoint in ``output``, to the same losses as without the interruption.
        tokenizer: saved with the best model.
        description: what else makes this run itself (model, mask, text); a resumed run must have the same.
        evaluate: how the perplexity of ``eval_ids`` is measured, by every process alike; by default in contexts, one
            behind the other.
        on_record: called on the main process with every line of the log.
        trackers: accelerate's, such as "tensorboard" or "wandb", which are told every line of the log too.
        max_shard_size: the best model is saved in files of at most so many bytes, or "2GB".

    Raises:
        ValueError: settings that cannot be run or contradict accelerate's, a text shorter than a context, a mask with
            lookahead, a folder that holds another run, a loss that is no longer a number.
        OSError: something could not be written.
        Interrupted: a signal ended the run; `resume` continues it to the same losses.
    """
    writer = ModelWriter(tokenizer, max_shard_size)
    accelerator = start(settings, log_with=checked_trackers(trackers), project_dir=output)
    refuse_lookahead(model, "training on the next token")
    source = _source(train_ids, settings)
    check_fits(model, eval_ids, settings.context)
    if isinstance(train_ids, Tensor):
        check_fits(model, train_ids, settings.context)
    if len(eval_ids) <= settings.context:
        raise ValueError(
            f"the held-out text has {len(eval_ids)} tokens, and one context of {settings.context} needs "
            f"{settings.context + 1}; use a longer one (--eval-data, --eval-tokens) or a shorter context"
        )
    run = None if output is None else RunFolder(output)
    full = {**(description or {}), "settings": dataclasses.asdict(settings)}
    evaluate = evaluate or functools.partial(perplexity, context=settings.context, batch_size=8)
    with ExitStack() as stack:
        signals = None
        if run is not None:
            by_main(accelerator, functools.partial(_begin, stack, run, full, resume))
            signals = stack.enter_context(noted(functools.partial(_say_stopping, accelerator)))
        journal = stack.enter_context(Journal(accelerator, run, on_record, full))
        trainer = _Trainer(accelerator, model, source, eval_ids, settings, journal, writer, evaluate, signals)
        return trainer.run_to_the_end()


def _begin(stack: ExitStack, run: RunFolder, description: Record, resume: bool) -> None:
    stack.enter_context(run.claimed(description, resume))
    with writing(run.description_path):
        run.describe(description)


def _say_stopping(accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        logger.warning("stopping after this step, with a checkpoint; a second signal stops at once")


def _source(train_ids: Tensor | TokenStream, settings: TrainingSettings) -> Source:
    if isinstance(train_ids, TokenStream):
        return Streamed(train_ids, settings.context, settings.batch_size, settings.seed)
    return Shuffled(Contexts.pack(train_ids, settings.context), settings.batch_size, settings.seed)


class _Trainer:
    """The state of a run: prepared model, optimizer and schedule."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        source: Source,
        eval_ids: Tensor,
        settings: TrainingSettings,
        journal: Journal,
        writer: ModelWriter,
        measure: Evaluate,
        signals: Noted | None,
    ) -> None:
        self.accelerator, self.source, self.eval_ids, self.settings = accelerator, source, eval_ids, settings
        self.journal, self.run_folder, self.writer, self.measure = journal, journal.run_folder, writer, measure
        self.signals, self.checkpoints = signals, None
        if self.run_folder is not None:
            self.checkpoints = Checkpoints(accelerator, self.run_folder.checkpoints, settings.keep_checkpoints)
        self.masks_learn = any(is_learned(name) for name, _ in model.named_parameters())
        if settings.gradient_checkpointing:
            _enable_checkpointing(model)
        # The same adapters everywhere, but no two processes drop out the same.
        set_seed(settings.seed)
        trained = model if settings.lora is None else with_adapters(model, settings.lora, settings.lora_alpha)
        set_seed(settings.seed, device_specific=True)
        self.adapted = None if settings.lora is None else skeleton(trained)
        self.model, self.optimizer = prepare(accelerator, trained, optimizer_of(trained, settings))
        # Of what `prepare` returns: DeepSpeed may have made another optimizer.
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, settings.warmup_steps, settings.steps)
        accelerator.register_for_checkpointing(self.schedule)
        if isinstance(source, Streamed):
            accelerator.register_for_checkpointing(source)

    def run_to_the_end(self) -> FinetuneResult:
        self.model.train()
        done = self.resume()
        self.source.ready()  # what is wrong with the text is known before anything is measured
        self.evaluate_if_due(done)  # before the first step, or where a stopped run has not
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
        # accelerate's autocast stays around `forward` otherwise.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return FinetuneResult(
            tuple(record["loss"] for record in losses),
            self.journal.evaluations,
            # The first step pays for memory that later ones reuse.
            statistics.median(record["tokens_per_second"] for record in losses[1:] or losses),
        )

    def tell_of_dropout(self) -> None:
        """Whatever drew random numbers in a step did so in each process for itself."""
        if self.accelerator.is_main_process and self.accelerator.num_processes > 1:
            logger.warning(
                "dropout draws its random numbers in each process: the losses are those of %d processes, and differ "
                "a little with another number of them",
                self.accelerator.num_processes,
            )

    def is_due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.settings.steps

    def signal(self) -> int:
        """The signal that ends the run, the same in all processes; 0 if none has come."""
        if self.signals is None:
            return 0
        numbers = torch.tensor([self.signals.number], device=self.accelerator.device)
        return int(self.accelerator.gather(numbers).max())

    def train(self, step: int) -> Record:
        """One optimizer step. Every token of the global batch weighs the same, wherever it is computed."""
        started = time.perf_counter()
        accelerator, settings = self.accelerator, self.settings
        contexts = self.source.of_step(step)
        tokens = contexts.scored()
        mine = list(range(accelerator.process_index, settings.batch_size, accelerator.num_processes))
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
        """The summed loss of the labels that count, in nats, and as often the penalty of masks that learn."""
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        with precision(self.accelerator, self.settings), mask_penalties() as penalties:
            logits = self.model(**batch, use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        penalty = torch.stack(penalties).mean() if penalties else loss.new_zeros(())
        return loss, penalty * (labels != IGNORED).sum()

    def evaluate_if_due(self, done: int) -> None:
        """On every process alike: where each holds a piece of the model, none can do it alone."""
        if not self.is_due(done, self.settings.eval_every) or done in self.journal.evaluations:
            return
        with precision(self.accelerator, self.settings):
            result = self.measure(self.accelerator.unwrap_model(self.model), self.eval_ids)
        # One number for all, or a last digit could make some of them save and others not.
        value, loss = broadcast_object_list([result.perplexity, result.nats_per_token])
        if math.isnan(loss):
            raise ValueError(
                f"the held-out loss is nan after step {done}; lower the learning rate or train in float32"
                if done
                else "the held-out loss is nan before training; the model's weights are not finite, or too large"
            )
        if self.run_folder is not None and done and value <= best_of(self.journal.evaluations)[1]:
            # Before the log says so: what is logged and was not saved would never be saved.
            save = functools.partial(self.save_model, state=gathered(self.accelerator, self.model))
            by_main(self.accelerator, functools.partial(self.run_folder.save_best, save))
        self.journal.add({"step": done, "perplexity": value, "eval_tokens": result.tokens})

    def save_model(self, folder: Path, state: dict[str, Tensor]) -> None:
        if self.adapted is None:
            self.writer.write(folder, self.accelerator.unwrap_model(self.model), state_dict=state)
        else:
            self.writer.write(folder, merged(self.adapted, state))

    def resume(self) -> int:
        """The first step to do: 0, or where the newest checkpoint left off."""
        steps = 0 if self.checkpoints is None else self.checkpoints.load()
        self.journal.rewind(steps)
        if self.run_folder is not None:
            self.run_folder.check_best(best_of(self.journal.evaluations)[0])
        return steps


def _parts(indices: list[int], size: int) -> Iterator[tuple[list[int], bool]]:
    for first in range(0, len(indices), size):
        yield indices[first : first + size], first + size >= len(indices)


def _enable_checkpointing(model: PreTrainedModel) -> None:
    # Transformers 5.17 knows only the second name, and 5.23 warns of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
