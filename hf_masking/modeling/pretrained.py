"""Load a model together with the mask that was saved with it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .api import patch_model, require_checks
from .base_model.architecture import count_layers
from .loading import adapter_folder
from .loading.adapter_folder import Adapter
from .loading.learned_weights import learned_parameters, load_learned, require_learned
from .loading.load_report import without_learned
from .patching.config import KEY, SAVED_ATTENTION, MaskConfig, forget, read, read_entry
from .patching.layer_mask import is_learned
from .patching.record import get_mask_config, is_patched

logger = logging.getLogger("hf_masking")

_WHERE = ("revision", "cache_dir", "token", "local_files_only", "subfolder", "variant")  # where a checkpoint is found
_OF_ADAPTERS = ("adapter_name", "is_trainable", "autocast_adapter_dtype")  # options for PEFT


def from_pretrained(
    path: str | PathLike[str],
    *,
    check: bool = True,
    backend: str | None = None,
    auto_class: Any = AutoModelForCausalLM,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model and patch it with the mask that its checkpoint carries.

    Learned parameters of masks are loaded as well; Transformers alone reports them as unexpected and drops them. For an
    adapter that PEFT has saved, this returns the `PeftModel` around the base model under the adapter's mask.

    Parameters:
        path: a folder or a hub id, of a model or of an adapter.
        check: as in `patch_model`.
        backend: which implementation computes attention; None for the one that the checkpoint names.
        auto_class: the class that loads the model: AutoModelForSequenceClassification, AutoModel, a model class.
        kwargs: passed to ``auto_class.from_pretrained``; ``is_trainable`` and ``adapter_name`` to PEFT.

    Raises:
        ValueError: the checkpoint carries no mask, lacks weights, or holds other parameters of masks than its masks
            learn.
    """
    model = load(path, backend=backend, auto_class=auto_class, **kwargs)
    if not is_patched(model):
        raise ValueError(
            f"{path} carries no mask; load it with {auto_class.__name__}.from_pretrained and give it one: "
            "patch_model(model, 'window:256|sinks:4')"
        )
    if check:
        require_checks(model)
    return model


def load(
    path: str | PathLike[str], *, backend: str | None = None, auto_class: Any = AutoModelForCausalLM, **kwargs: Any
) -> PreTrainedModel:
    """Load a checkpoint as `from_pretrained` does, unchecked, and without a mask if it carries none."""
    if kwargs.get("output_loading_info"):
        raise ValueError("output_loading_info=True is not supported: it would return more than a model; leave it out")
    adapter = _find_adapter(path, kwargs)
    if adapter is None:
        return _load_model(path, backend, auto_class, kwargs)
    return _load_adapter(adapter, backend, auto_class, kwargs)


def base_model_of(path: str | PathLike[str], **where: Any) -> tuple[str, dict[str, Any]] | None:
    """Return the base model of an adapter, and the arguments of `from_pretrained` for it; None for a whole model.

    Parameters:
        where: the arguments for the adapter: revision, trust_remote_code.
    """
    adapter = _find_adapter(path, where)
    return None if adapter is None else (adapter.base, _where_base_is(adapter, where))


@dataclass(frozen=True)
class Checkpoint:
    """The description of a checkpoint, without its weights.

    base: the base model of an adapter; None for a model.
    config: the config of the model.
    masks: the masks that the checkpoint carries, if any.
    """

    base: str | None
    config: PreTrainedConfig
    masks: MaskConfig | None


def read_checkpoint(path: str | PathLike[str], **where: Any) -> Checkpoint:
    """Read the config of a model or of an adapter, and the masks that it carries; load no weights.

    Parameters:
        where: passed to `AutoConfig.from_pretrained`: revision, trust_remote_code.

    Raises:
        ValueError: the masks are wrong or lost.
    """
    adapter = _find_adapter(path, where)
    if adapter is not None:
        path, where = adapter.base, _where_base_is(adapter, where)
    config = AutoConfig.from_pretrained(path, **where)
    masks = _carried(path, config, None, {name: where[name] for name in _WHERE if name in where})
    if adapter is not None and adapter.entry is not None:
        masks = read_entry(adapter.entry, count_layers(config))
    return Checkpoint(None if adapter is None else adapter.base, config, masks)


def _find_adapter(path: str | PathLike[str], options: dict[str, Any]) -> Adapter | None:
    return adapter_folder.find(path, {name: options[name] for name in _WHERE if name in options})


def _where_base_is(adapter: Adapter, where: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for the base model: the revision of an adapter is one of another repository."""
    return {**where, "revision": adapter.revision or "main"}


def _load_model(
    path: str | PathLike[str],
    backend: str | None,
    auto_class: Any,
    kwargs: dict[str, Any],
    beside: Set[str] = frozenset(),
) -> PreTrainedModel:
    """Load a model and its mask.

    Parameters:
        beside: weights that come from elsewhere.
    """
    # Loaded without the mask first, so that `unpatch_model` restores this. None: the fastest that the class has.
    options = {"attn_implementation": None} | kwargs | {"output_loading_info": True}
    with without_learned():
        model, report = auto_class.from_pretrained(path, **options)
    _refuse_missing(path, model, report["missing_keys"] - beside)
    _warn_of_unused(path, model, report["unexpected_keys"])
    where = {name: kwargs[name] for name in _WHERE if name in kwargs}
    saved = _carried(path, model.config, kwargs.get("config"), where)
    forget(model.config)
    if saved is not None:
        _patch(model, saved, backend)
        load_learned(model, path, where)
    return model


def _load_adapter(adapter: Adapter, backend: str | None, auto_class: Any, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Load the base model, its mask or that of the adapter, and the adapter around it."""
    of_adapter = {name: value for name, value in kwargs.items() if name in _OF_ADAPTERS}
    # The revision and the subfolder are those of the adapter's repository.
    of_base = {name: value for name, value in kwargs.items() if name not in (*_OF_ADAPTERS, "revision", "subfolder")}
    if adapter.revision is not None:
        of_base["revision"] = adapter.revision
    model = _load_model(adapter.base, backend, auto_class, of_base, adapter.weights)
    if adapter.entry is not None:
        learned = {id(parameter) for _, parameter in learned_parameters(model)}
        _patch(model, read_entry(adapter.entry, count_layers(model.config)), backend)
        fresh = [name for name, parameter in learned_parameters(model) if id(parameter) not in learned]
        require_learned(fresh, adapter.weights, adapter.path)
    whole: PreTrainedModel = adapter.around(model, **of_adapter)
    return whole


def _patch(model: PreTrainedModel, saved: MaskConfig, backend: str | None) -> None:
    wanted = saved if backend is None else replace(saved, backend=backend)
    if get_mask_config(model) != wanted:
        patch_model(model, wanted, check=False)


def _refuse_missing(path: str | PathLike[str], model: PreTrainedModel, missing: Set[str]) -> None:
    """Raise a ValueError if weights are missing, which Transformers would only report and fill in at random."""
    model_class, saved_class = type(model).__name__, next(iter(model.config.architectures or ()), None)
    if missing:
        is_other = saved_class not in (None, model_class)
        other = f" or auto_class=transformers.{saved_class}, which wrote this one" if is_other else ""
        raise ValueError(
            f"{path} lacks weights of {model_class}, which would be random: {_listed(missing)}; give a whole "
            f"checkpoint{other} (to train such weights: {model_class}.from_pretrained, then patch_model)"
        )


def _warn_of_unused(path: str | PathLike[str], model: PreTrainedModel, unexpected: Set[str]) -> None:
    if unused := [key for key in unexpected if not is_learned(key)]:
        logger.warning("%s holds weights that %s does not use: %s", path, type(model).__name__, _listed(unused))


def _listed(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def _carried(
    path: str | PathLike[str], loaded: PreTrainedConfig, given: Any, where: dict[str, Any]
) -> MaskConfig | None:
    """Return the masks that a checkpoint carries: our entry in its config, next to the name of our attention.

    That name makes Transformers refuse the checkpoint without this plugin. If a model was loaded without its mask and
    saved again, Transformers keeps the entry and drops the name: then the checkpoint carries no mask.

    Parameters:
        loaded: the config of the loaded model, from which Transformers has taken the name.
        given: what the caller gave as ``config``.
    """
    saved, named = read(loaded), _named_attention(path, given, where)
    if saved is None and named == SAVED_ATTENTION:
        raise ValueError(
            f"{path} has lost its mask: its config.json names attn_implementation {SAVED_ATTENTION!r} and has no "
            f"{KEY!r} entry; for full attention load it with AutoModelForCausalLM and attn_implementation='sdpa'"
        )
    if saved is not None and named != SAVED_ATTENTION:
        logger.warning(
            "%s carries no mask: its model was saved while '%s' was not in force (config.json has the entry without "
            "attn_implementation %r)",
            path,
            saved.mask,
            SAVED_ATTENTION,
        )
        return None
    return saved


def _named_attention(path: str | PathLike[str], given: Any, where: dict[str, Any]) -> str | None:
    """Return the attention implementation that a checkpoint's config names; None if it names none."""
    if isinstance(given, PreTrainedConfig):
        return vars(given).get("attn_implementation", given._attn_implementation)
    found = {name: value for name, value in where.items() if name != "variant"}
    try:
        return PreTrainedConfig.get_config_dict(given or path, **found)[0].get("attn_implementation")
    except OSError:  # the config comes from something else, such as a GGUF file
        return None
