"""`patch_model` and its relatives: parse the masks, apply them, check the model, restore it if a check fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from ..errors import FailedCheckError, UnsupportedModelError
from ..masks import MaskExpression
from .announce import warn_of_dropped_parameters, warn_of_limits
from .base_model.architecture import count_layers, pretrained, shape_of
from .caching.record import GivenMarks, record_of
from .checking.model import check_model
from .forward.marks import Needs, refuse_unneeded
from .patching.apply import apply, reapply, unpatch
from .patching.config import MaskConfig, read
from .patching.record import find_patch, layer_masks

Model = TypeVar("Model", bound=nn.Module)


def patch_model(
    model: Model,
    mask: MaskExpression | str | MaskConfig | None = None,
    *,
    layers: Mapping[int, MaskExpression | str] | None = None,
    backend: str | None = None,
    replace_model_window: bool = False,
    check: bool = True,
) -> Model:
    """Make a decoder attend under a mask, in training, evaluation, prefill and decoding.

    Parameters:
        model: a decoder whose attention goes through Transformers' attention interface. A patched model gets the new
            mask in place of its old one.
        mask: a mask or its spec, such as ``"window:256|sinks:4"``, or a `MaskConfig`; None applies the one in the
            model's config again.
        layers: other masks for single layers, ``{0: "causal", -1: "causal"}``.
        backend: which implementation computes attention, see `masked_attention`; None for that of the `MaskConfig`,
            or else ``"auto"``.
        replace_model_window: set the model's own sliding window (Mistral, Gemma) aside, instead of intersecting the
            mask with it.
        check: run `check_model` on tiny random batches, and refuse the model if a check fails.

    Returns:
        The same model.

    Raises:
        ValueError: a wrong spec, layer or backend.
        UnsupportedModelError: the model cannot be patched or fails a check; it is restored.
    """
    before, config = find_patch(model), pretrained(model).config
    carried = read(config) if before is None else before.config
    wanted = _resolve(model, mask, layers, backend, replace_model_window)
    _patch(model, wanted, check)
    if carried is not None:
        warn_of_dropped_parameters(wanted, carried, count_layers(config), loaded=before is not None)
    return model


def unpatch_model(model: Model) -> Model:
    """Take the mask out of a model: configs, hooks and attributes are exactly as before `patch_model`.

    Raises:
        ValueError: the model is not patched.
    """
    if find_patch(model) is None:
        raise ValueError(f"{type(model).__name__} is not patched; there is nothing to undo")
    unpatch(model)
    return model


@contextmanager
def patched(
    model: Model,
    mask: MaskExpression | str | MaskConfig | None = None,
    *,
    layers: Mapping[int, MaskExpression | str] | None = None,
    backend: str | None = None,
    replace_model_window: bool = False,
    check: bool = True,
) -> Iterator[Model]:
    """Patch a model for the length of a with block; afterwards it is restored, with its earlier mask if it had one."""
    before = find_patch(model)
    _patch(model, _resolve(model, mask, layers, backend, replace_model_window), check)
    try:
        yield model
    finally:
        reapply(model, before)


def cache_with_prefix(
    model: nn.Module,
    lengths: Sequence[int] | Tensor | None = None,
    *,
    span_ids: Tensor | None = None,
    prompt_lengths: Sequence[int] | Tensor | None = None,
) -> DynamicCache:
    """Return an empty cache that knows the marks of the prompts: ``generate(..., past_key_values=...)``.

    Parameters:
        model: a model under a mask with ``prefix``, ``spans``, ``prompt`` or ``after_prompt``.
        lengths: number of real tokens in the prefix of each prompt ``[B]``.
        span_ids: the marked span of each token of the prompts ``[B, tokens]``, negative for none.
        prompt_lengths: number of real tokens in each prompt ``[B]``, for chunked prefill or where the text that
            `generate` is given holds more than the prompt.

    The first call must bring all tokens of a span, since they see each other bidirectionally. A prompt may come in
    several calls.

    Raises:
        ValueError: no mask of the model needs these marks; no marks, or both ``lengths`` and ``span_ids``, are given.
    """
    given, needs = GivenMarks(lengths, span_ids, prompt_lengths), Needs.of(layer_masks(model))
    refuse_unneeded(given._asdict(), needs)
    if (lengths is not None and span_ids is not None) or all(marks is None for marks in given):
        raise ValueError("give one of lengths and span_ids, or prompt_lengths, or both")
    cache = DynamicCache(config=pretrained(model).config)
    record_of(cache).marks = given
    return cache


def require_checks(model: nn.Module) -> None:
    """Raise a `FailedCheckError` if a patched model fails one of its checks."""
    report = check_model(model)
    failed = [str(row) for row in report.rows if not row.passed]
    if failed:
        raise FailedCheckError(
            f"{type(model).__name__} does not keep its mask ({len(failed)} of {len(report.rows)} checks fail), so it "
            "was left unpatched",
            *failed,
        )


def _patch(model: nn.Module, wanted: MaskConfig, check: bool) -> None:
    """Apply masks; restore the model, with its earlier mask if it had one, if that or a check fails."""
    before = find_patch(model)
    try:
        reapply(model, None)
        apply(model, wanted, before)
        if check:
            require_checks(model)
    except BaseException:
        reapply(model, before)
        raise
    warn_of_limits(wanted, pretrained(model).config)


def _resolve(
    model: nn.Module,
    mask: MaskExpression | str | MaskConfig | None,
    layers: Mapping[int, MaskExpression | str] | None,
    backend: str | None,
    replace_model_window: bool,
) -> MaskConfig:
    """Return what `patch_model` was asked for, with layers counted from 0."""
    base = pretrained(model)
    wanted = _carried(base) if mask is None else mask
    if not isinstance(wanted, MaskConfig):
        wanted = MaskConfig(wanted, layers, replace_model_window, "auto" if backend is None else backend)
    elif layers:
        raise ValueError("layers= goes with a mask: patch_model(model, 'window:256', layers={0: 'causal'})")
    elif replace_model_window and mask is not None:
        raise ValueError("replace_model_window= goes into the config: MaskConfig(mask, replace_model_window=True)")
    else:
        window = wanted.replace_model_window or replace_model_window
        wanted = replace(wanted, replace_model_window=window, backend=backend or wanted.backend)
    wanted = wanted.resolved(count_layers(base.config))
    _check_heads(wanted, base.config)
    return wanted


def _carried(base: PreTrainedModel) -> MaskConfig:
    """Return the masks in a model's config."""
    patch = find_patch(base)
    carried = read(base.config) if patch is None else patch.config
    if carried is None:
        raise ValueError("the model's config carries no mask; say which: patch_model(model, 'window:256|sinks:4')")
    masks = carried.masks(count_layers(base.config))
    if patch is None and any(mask.weightings for mask in masks):
        raise ValueError(
            f"the mask that the model's config carries, '{carried.mask}', has learned something, which was not loaded "
            "with it; load with hf_masking.from_pretrained(path), or start anew: patch_model(model, mask)"
        )
    return carried


def _check_heads(wanted: MaskConfig, config: PreTrainedConfig) -> None:
    if count_layers(config) < 1:
        raise UnsupportedModelError("the model has no layers, so there is nothing to put a mask into")
    for layer, mask in enumerate(wanted.masks(count_layers(config))):
        n_heads = shape_of(config, layer).query_heads if len(mask.heads) > 1 else 1
        if n_heads % len(mask.heads):
            raise ValueError(
                f"{mask} gives {len(mask.heads)} groups of heads, which do not divide the model's {n_heads} query "
                "heads; give as many masks as divide them"
            )
