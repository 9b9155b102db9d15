"""Fine-tune a model under a mask on the next token: AdamW, one cosine, any number of processes by accelerate."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import refuse_lookahead
from ..interrupts import noted
from ..modeling import check_fits, check_shards
from .data import Contexts, Shuffled, Source
from .engine import by_main, start
from .journal import Journal, Record, checked_trackers
from .run_folder import ModelWriter, RunFolder, writing
from .settings import TrainingSettings
from .stream import Streamed, TokenStream
from .trainer import Evaluate, FinetuneResult, Recording, Trainer

logger = logging.getLogger(__name__)


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
    """Train a model, patched or not, to predict the next token of a text.

    Parameters:
        model: the model to train; with ``settings.lora`` adapters are put into it, and stay there.
        train_ids: ``[N]`` tokens to train on, or a stream; packed into contexts, each token a label once per pass.
        eval_ids: ``[M]`` tokens whose perplexity is measured.
        output: folder for the log, the checkpoints and the best model; nothing is written without one. With one,
            Ctrl-C and SIGTERM end the run after the current step, with a checkpoint.
        resume: continue from the newest checkpoint in ``output``, to the same losses as without the interruption. With
            more ``settings.steps`` than before, the run continues under the cosine of the new number of steps.
        tokenizer: saved with the best model.
        description: what identifies the run besides the settings (model, mask, text); a resumed run must have the same.
        evaluate: measures the perplexity of ``eval_ids``, in every process alike; by default in consecutive contexts.
        on_record: called in the main process with every record of the log.
        trackers: accelerate's trackers, such as "tensorboard" or "wandb"; they get every record of the log too.
        max_shard_size: the greatest size of a file of the best model, in bytes or as "2GB".

    Raises:
        ValueError: settings that cannot be run or contradict accelerate's, a text shorter than a context, a mask with
            lookahead, a folder that holds another run, a loss that is no longer a number.
        OSError: something could not be written.
        Interrupted: a signal ended the run; `resume` continues it to the same losses.
    """
    writer = ModelWriter(tokenizer, max_shard_size)
    accelerator = start(settings, log_with=checked_trackers(trackers), project_dir=output)
    refuse_lookahead(model, "training on the next token")
    if settings.sequence_parallel > 1:
        check_shards(model)
    source = _source(train_ids, settings)
    _check_texts(model, train_ids, eval_ids, settings.context)
    run = None if output is None else RunFolder(output)
    # How many processes share a context does not identify a run, as their number does not.
    identity = {name: value for name, value in dataclasses.asdict(settings).items() if name != "sequence_parallel"}
    full = {**(description or {}), "settings": identity}
    with ExitStack() as stack:
        signals = None
        if run is not None:
            by_main(accelerator, functools.partial(_begin, stack, run, full, resume))
            signals = stack.enter_context(noted(functools.partial(_say_stopping, accelerator)))
        journal = stack.enter_context(Journal(accelerator, run, on_record, full))
        recording = Recording(journal, writer, signals)
        return Trainer(accelerator, model, source, eval_ids, settings, evaluate, recording).run_to_the_end()


def _check_texts(model: PreTrainedModel, train_ids: Tensor | TokenStream, eval_ids: Tensor, context: int) -> None:
    check_fits(model, eval_ids, context)
    if isinstance(train_ids, Tensor):
        check_fits(model, train_ids, context)
    if len(eval_ids) <= context:
        raise ValueError(
            f"the held-out text has {len(eval_ids)} tokens, and one context of {context} needs {context + 1}; use a "
            "longer one (--eval-data, --eval-tokens) or a shorter context"
        )


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
