"""The hooks around every forward of a patched model, and of the models inside it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from .. import running
from ..batch import Batch
from ..caching.adopt import adopt, new_cache, self_attention_cache
from ..caching.record import record_of
from ..patching.config import KEY
from .arguments import OWN, read
from .generate_calls import GenerationState, generation_state
from .interface import HARMLESS
from .marks import Needs
from .whole_arguments import gather


def enter(
    module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], *, names: Sequence[str], needs: Needs
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: read the batch, adopt the cache, and take out the arguments that the model does not know.

    Parameters:
        names: of the parameters of the module's forward, in order.
        needs: what the masks need to know about a batch.
    """
    outer = running.around(module)
    arguments = dict.fromkeys(names) | dict(zip(names, args, strict=False)) | kwargs
    _refuse_encoder_states(module, arguments)
    # Torch calls this hook from the frame that then runs the module.
    frame = None if torch.compiler.is_compiling() else getattr(inspect.currentframe(), "f_back", None)
    if outer is not None:
        running.push_inner(outer, module, (), frame)
        return args, {name: value for name, value in kwargs.items() if name not in outer.batch.for_loss}
    _refuse_another_implementation(module)
    _refuse_generation(arguments, needs.lookahead)
    kwargs = {name: value for name, value in kwargs.items() if name not in OWN}
    if (sequence := running.sequence()) is not None:
        sequence.forwards += 1
        batch, added = _read_shard(module, arguments, needs, sequence.group)
    else:
        batch, added = _read(module, arguments, needs, for_loss=_for_loss(module, names, kwargs))
    running.push(module, batch, frame)
    for name, value in added.items():
        args, kwargs = _with_argument(args, kwargs, names, name, value)
    return args, kwargs


def _with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a forward with one of them set, in its place if it was given by position."""
    place = names.index(name) if name in names else len(args)
    if place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, kwargs | {name: value}


def _read_shard(
    module: PreTrainedModel, arguments: Mapping[str, Any], needs: Needs, group: ProcessGroup
) -> tuple[Batch, dict[str, Any]]:
    """Return the batch of all ranks, and the arguments to set: a model cannot know where its shard begins."""
    whole, sharding = gather(module, arguments, needs, group, attentions=_wants_attentions(module, arguments))
    batch = read(whole, None, needs, caches=False, sharding=sharding)
    added: dict[str, Any] = {"use_cache": False}
    if arguments.get("position_ids") is None:
        columns = torch.arange(sharding.columns.start, sharding.columns.stop, device=whole["input_ids"].device)
        added["position_ids"] = columns[None]
    return batch, added


def _read(
    module: PreTrainedModel, arguments: Mapping[str, Any], needs: Needs, for_loss: frozenset[str]
) -> tuple[Batch, dict[str, Any]]:
    """Return the batch of a forward, whose cache is adopted, and the arguments to set: a new cache."""
    cache = _cache(module, arguments, needs)
    held = self_attention_cache(cache)
    adopted = held if held is not None and adopt(held, module, needs.adaptive) else None
    attentions = _wants_attentions(module, arguments)
    batch = read(arguments, adopted, needs, caches=cache is not None, attentions=attentions, for_loss=for_loss)
    return batch, {} if cache is arguments.get("past_key_values") else {"past_key_values": cache}


def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook, which runs after an exception, too: end the call, and note what its cache holds."""
    left = running.pop(module)
    if left is None:
        return
    returned = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    for value in (*kwargs.values(), *returned):
        if isinstance(value, Cache):
            record = record_of(value)
            record.filled = True
            if left.packed is not None:
                record.packed = left.packed


def _cache(module: PreTrainedModel, arguments: Mapping[str, Any], needs: Needs) -> Cache | None:
    """Return the cache that was given, or the one that the model would make itself."""
    cache, use_cache = arguments.get("past_key_values"), arguments.get("use_cache")
    if cache is not None:
        return cache
    use_cache = getattr(module.config, "use_cache", False) if use_cache is None else use_cache
    if not use_cache:
        return None
    checkpoints = module.training and any(getattr(part, "gradient_checkpointing", False) for part in module.modules())
    return None if checkpoints else new_cache(module, needs.adaptive)


def _wants_attentions(module: PreTrainedModel, arguments: Mapping[str, Any]) -> bool:
    asked = arguments.get("output_attentions")
    configs = (module.config, module.config.get_text_config())
    return any(config.output_attentions for config in configs) if asked is None else bool(asked)


def _for_loss(module: PreTrainedModel, names: Sequence[str], kwargs: Mapping[str, Any]) -> frozenset[str]:
    """Return the arguments that the model's forward passes on for its loss, which reach its attention as well."""
    extra = kwargs.keys() - set(names) - HARMLESS
    if not extra or "labels" not in names:
        return frozenset()
    return frozenset(extra & inspect.signature(module.loss_function).parameters.keys())


def _refuse_encoder_states(module: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
    if arguments.get("encoder_hidden_states") is not None:
        raise ValueError(
            f"{type(module).__name__} was given encoder_hidden_states; masks are for self-attention, and a patched "
            "model has no cross-attention: leave them out, or unpatch_model(model) first"
        )


def _refuse_another_implementation(module: PreTrainedModel) -> None:
    """Refuse a patched model whose attention was switched by `set_attn_implementation`: it would ignore its mask."""
    implementation = module.config.get_text_config()._attn_implementation
    if implementation != KEY:
        raise ValueError(
            f"attention was switched to {implementation!r} after patch_model, which loses the mask; "
            "call unpatch_model(model) for full attention, or patch_model(model, mask) again"
        )


def _refuse_generation(arguments: Mapping[str, Any], lookahead: int) -> None:
    if lookahead and generation_state(arguments) is not GenerationState.NONE:
        raise ValueError(
            f"the mask looks {lookahead} tokens ahead, so a model under it cannot generate; "
            "use a causal mask, for example patch_model(model, 'block_local:64,1')"
        )
