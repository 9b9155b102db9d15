"""Run a comparison: try every mask under every seed, keep the trials, write the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation import Task, Text, WindowedText, encode, in_own_process, probe_task, refuse_lookahead
from ..evaluation.benchmark import Shape
from ..evaluation.loading import (
    bos_of,
    check_vocabulary,
    load_model,
    load_tokenizer,
    refuse_adapter,
    silence_libraries,
)
from ..evaluation.probes import Questions, check_readable
from ..files import digest
from ..modeling import check_fits, label_of, patch_model, shape_of, unpatch_model
from ..training import Contexts
from .break_even import break_even
from .folder import ComparisonFolder
from .report import Report
from .small_model import SMALL, small_model, small_outline, small_tokenizer
from .speed import speeds
from .trial_settings import TrialSettings
from .trials import Experiment, Tell, Trial, try_masks

Pair = tuple[str, int]  # a mask and a seed


@dataclass(frozen=True)
class Request:
    """The model, the masks, the texts and the settings of a comparison.

    model: a hub id or a folder; None for a small model that is trained once and kept.
    source: the name of the text in the report.
    where: arguments of `from_pretrained`, such as the revision.
    longest: the break-even lengths are looked for up to this many tokens.
    """

    model: str | None
    masks: Sequence[str]
    source: str
    train: Text
    held_out: Text
    settings: TrialSettings
    layers: Mapping[int, str] = field(default_factory=dict)
    replace_model_window: bool = False
    backend: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    seeds: int = 1
    longest: int = 4096

    @property
    def pairs(self) -> list[Pair]:
        """Every mask under every seed."""
        first = self.settings.seed
        return [(mask, seed) for seed in range(first, first + self.seeds) for mask in self.masks]

    def description(self) -> dict[str, Any]:
        """Return what makes the comparison itself; masks and seeds may be added when it resumes."""
        return {
            "model": self.model or "small LLaMA-style model",
            "model_sha256": digest(Path(self.model)) if self.model and Path(self.model).is_dir() else None,
            "revision": self.where.get("revision"),
            "small_model": None if self.model else dataclasses.asdict(SMALL),
            "data": {
                "source": self.source,
                "train_sha256": self.train.sha256,
                "eval_sha256": self.held_out.sha256,
            },
            "layers": {str(layer): spec for layer, spec in self.layers.items()},
            "replace_model_window": self.replace_model_window,
            "backend": self.backend,
            "options": dataclasses.asdict(self.settings),
        }


@dataclass(frozen=True)
class Listener:
    """Callbacks that follow a comparison. The first two are called in other processes and must be picklable.

    on_small_model: called with each record of the small model's training.
    on_training: called with a mask and each record of its fine-tuning.
    on_kept: called with the number of trials that are there already, and of all.
    on_trial: called with a finished trial, its number and the number of trials to make.
    on_report: called at the end, while the folder is still locked.
    """

    on_small_model: Callable[[dict[str, Any]], None] | None = None
    on_training: Tell | None = None
    on_kept: Callable[[int, int], None] = lambda kept, total: None
    on_trial: Callable[[Trial, int, int], None] = lambda trial, number, total: None
    on_report: Callable[[Report], None] = lambda report: None


def compare(request: Request, folder: ComparisonFolder, *, resume: bool, listener: Listener) -> Report:
    """Compare masks and return the report, which the listener writes while the folder is still locked.

    Raises:
        ValueError: something that no trial could run, a folder that holds something else, or not one mask measured.
    """
    description = request.description()
    # Errors that every trial would meet are raised before the first one.
    model = small_outline() if request.model is None else _loaded(request.model, request.where)
    labels = _labels(model, request)
    with folder.claimed(description, resume):
        if request.model is None:
            tokenizer = small_tokenizer(request.train, request.held_out)
        else:
            tokenizer = load_tokenizer(request.model, **request.where)
        experiment = _experiment(tokenizer, model, request)
        del model
        if request.model is None:
            path = in_own_process(_small_model, request.train, request.held_out, listener.on_small_model)
            experiment = dataclasses.replace(experiment, model=str(path))
        trials = _try(experiment, request.pairs, folder, description, listener)
        if all(trial.error for trial in trials):
            raise ValueError(f"no mask could be measured; {trials[0].mask}: {trials[0].error}")
        report = Report(
            title=_title(description["model"], request),
            context=request.settings.context,
            masks=request.masks,
            trials=trials,
            speeds=speeds(experiment, request.masks),
            break_even=in_own_process(_break_even, experiment, request.masks, request.longest),
            longest=request.longest,
            labels=labels,
            probe=request.settings.probe,
            description=description,
        )
        listener.on_report(report)
    return report


def _title(model: str, request: Request) -> str:
    return f"{model}, {request.source}, context {request.settings.context}, {request.settings.steps} steps"


def _loaded(model: str, where: Mapping[str, Any]) -> PreTrainedModel:
    refuse_adapter(model)
    return load_model(model, dtype=torch.float32, **where)


def _labels(model: PreTrainedModel, request: Request) -> dict[str, str]:
    """Return what the report calls each mask; raise a ValueError for one that no trial could run."""
    labels = {}
    for spec in request.masks:
        patch_model(
            model,
            spec,
            layers=request.layers,
            backend=request.backend,
            replace_model_window=request.replace_model_window,
            check=request.model is not None,
        )
        refuse_lookahead(model, "its perplexity")
        labels[spec] = label_of(model)
        unpatch_model(model)
    return labels


def _small_model(train: Text, held_out: Text, on_record: Callable[[dict[str, Any]], None] | None) -> Path:
    silence_libraries()
    return small_model(train, held_out, on_record)


def _experiment(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: Request) -> Experiment:
    """Return what all trials share; raise a ValueError for what every one of them would refuse."""
    settings = request.settings
    check_vocabulary(model, tokenizer)
    eval_ids, n_bytes = encode(request.held_out, tokenizer, settings.eval_tokens)
    train_ids = encode(request.train, tokenizer, settings.train_tokens)[0]
    for token_ids in (eval_ids, train_ids):
        check_fits(model, token_ids, settings.context)
    bos = bos_of(tokenizer, None)
    WindowedText(eval_ids, settings.context, settings.stride, bos, batch_size=1)
    Contexts.pack(train_ids, settings.context)
    return Experiment(
        model=request.model or "",
        train_ids=train_ids.numpy(),
        eval_ids=eval_ids.numpy(),
        settings=settings.training(),
        stride=settings.context if settings.stride is None else settings.stride,
        bos_token_id=bos,
        text_bytes=n_bytes,
        layers=request.layers,
        replace_model_window=request.replace_model_window,
        backend=request.backend,
        where={} if request.model is None else request.where,
        device=request.device,
        task=None if settings.probe is None else _task(settings.probe, tokenizer, model, settings.context, bos),
    )


def _task(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, context: int, bos: int | None) -> Task:
    """Return the task of a probe; raise a ValueError if it cannot be asked in such a context."""
    task = probe_task(name, tokenizer)
    check_readable(model, Questions(task, context, bos_token_id=bos))
    return task


def _try(
    experiment: Experiment,
    pairs: Sequence[Pair],
    folder: ComparisonFolder,
    description: dict[str, Any],
    listener: Listener,
) -> list[Trial]:
    """Return all trials; those in the folder are not made again."""
    done = {pair: trial for pair in pairs if (trial := folder.find(*pair)) is not None}
    if done:
        listener.on_kept(len(done), len(pairs))
    missing = [pair for pair in pairs if pair not in done]
    for number, trial in enumerate(try_masks(experiment, missing, listener.on_training), start=1):
        done[trial.mask, trial.seed] = trial
        if trial.error is None:
            # Not earlier: a comparison that fails at once leaves nothing behind.
            folder.describe(description)
            folder.keep(trial)
        listener.on_trial(trial, number, len(missing))
    return [done[pair] for pair in pairs]


def _break_even(experiment: Experiment, specs: Sequence[str], longest: int) -> dict[str, int | None]:
    shape = shape_of(AutoConfig.from_pretrained(experiment.model, **experiment.where))
    attention = Shape(longest, shape.query_heads, shape.key_heads, shape.head_size, device=experiment.device)
    return break_even(specs, attention, longest)
