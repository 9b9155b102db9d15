"""Under sequence parallelism: gather from all ranks what the arguments of a forward say about the whole sequence.

A rank is given its shard of every argument that has a number per token. Positions, documents and marked spans follow
from those of all ranks, so these small integers are gathered; hidden states are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from ...plan.shards import Shards
from ..sharding import Sharding, gather_alike, gather_columns
from .marks import Needs

_PER_TOKEN = ("attention_mask", "document_ids", "position_ids", "span_ids", "prompt_mask")
_PER_ROW = ("prefix_lengths", "prompt_lengths")  # every rank must be given the same
_FLATTENED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
_ATTENTION = {"attention", "full_attention", "sliding_attention"}  # layers in which only attention mixes tokens
_BY_LENGTH = {"dynamic", "longrope"}  # rotary embeddings whose frequencies depend on the length of the forward


def gather(
    module: PreTrainedModel, arguments: Mapping[str, Any], needs: Needs, group: ProcessGroup, *, attentions: bool
) -> tuple[dict[str, Any], Sharding]:
    """Return the arguments for the whole sequence, with input ids that have only their shape, and the sharding.

    Parameters:
        attentions: the caller wants the attention probabilities, which is refused.

    Raises:
        ValueError: the model or an argument has no meaning for a shard, or the ranks were given different arguments.
    """
    refuse_model(module, needs)
    inputs = arguments.get("input_ids")
    inputs = arguments.get("inputs_embeds") if inputs is None else inputs
    given = {name: x for name in (*_PER_TOKEN, *_PER_ROW) if (x := arguments.get(name)) is not None}
    error = _error(inputs, arguments, given, attentions)
    rows, new = (1, 1) if inputs is None else inputs.shape[:2]
    device = next(module.parameters()).device if inputs is None else inputs.device
    flags = [int(name in given) for name in (*_PER_TOKEN, *_PER_ROW)]
    headers = gather_alike(torch.tensor([error is None, rows, new, *flags], device=device), group).tolist()
    if error is not None:
        raise ValueError(error)
    _refuse_differences(headers)
    sizes = tuple(header[2] for header in headers)
    whole = {name: gather_columns(_per_token(x, rows, new, device), sizes, group) for name, x in given.items()}
    for name in whole.keys() & set(_PER_ROW):
        if bool((whole[name] != whole[name][:, :1]).any()):
            raise ValueError(f"the ranks of a sequence were given different {name}; give all of them the same")
        whole[name] = whole[name][:, 0]
    _refuse_left_padding(whole)
    sharding = Sharding(group, dist.get_rank(group), Shards(sizes))
    shape = torch.zeros((), dtype=torch.long, device=device).expand(rows, sharding.total)
    return {**dict.fromkeys(arguments), **whole, "input_ids": shape}, sharding


def refuse_model(module: PreTrainedModel, needs: Needs) -> None:
    """Refuse what all ranks refuse alike: they run the same model."""
    if torch.compiler.is_compiling():
        raise ValueError(
            "sequence_parallel exchanges keys between processes, which no graph does; leave torch.compile out"
        )
    if needs.adaptive:
        raise ValueError(
            "sequence_parallel is for static masks, since an adaptive mask needs features of keys on other ranks; use "
            "a static mask, for example patch_model(model, 'window:256|sinks:4')"
        )
    config = module.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION)
    if others or getattr(module, "_is_stateful", False):
        kinds = ", ".join(others) or "recurrent"
        raise ValueError(
            f"{type(module).__name__} has layers that mix tokens outside of attention ({kinds}), whose state does not "
            "cross from one rank to the next; use a model in which only attention mixes tokens"
        )
    parameters = getattr(config, "rope_parameters", None) or {}
    rotary = {str(each.get("rope_type")) for each in (parameters, *parameters.values()) if isinstance(each, Mapping)}
    if by_length := rotary & _BY_LENGTH:
        raise ValueError(
            f"{type(module).__name__} has rotary embeddings that depend on the length of the forward "
            f"({', '.join(sorted(by_length))}), and a shard is shorter than its sequence; use a model "
            "with another rope_type, such as yarn"
        )


def _error(
    inputs: Tensor | None, arguments: Mapping[str, Any], given: Mapping[str, Tensor], attentions: bool
) -> str | None:
    """Return why this rank's arguments cannot be used; None if they can."""
    if inputs is None:
        return "a forward inside sequence_parallel needs input_ids or inputs_embeds: this rank's shard of them"
    if arguments.get("past_key_values") is not None or arguments.get("use_cache"):
        return (
            "sequence_parallel trains and scores whole sequences, without a cache; call the model with use_cache=False "
            "and generate outside of sequence_parallel"
        )
    if arguments.get("labels") is not None:
        return (
            "a model shifts labels inside its own shard, which loses the token at each border; leave labels out, and "
            "compute the loss from shard_batch(batch, group)['shift_labels']"
        )
    if attentions:
        return "output_attentions=True needs all keys in one process; leave it out inside sequence_parallel"
    if flattened := [name for name in _FLATTENED if arguments.get(name) is not None]:
        return f"{', '.join(flattened)} describe a whole row; pass this rank's shard of document_ids instead"
    rows, new = inputs.shape[:2]
    for name, x in given.items():
        if name in _PER_TOKEN and (x.ndim != 2 or x.shape[1] != new or x.shape[0] not in (1, rows)):
            return f"{name} must be this rank's shard, of shape [{rows}, {new}], got {list(x.shape)}"
    for name in given.keys() & set(_PER_ROW):
        if len(torch.as_tensor(given[name]).flatten()) != rows:
            return f"{name} must be {rows} integers, one per row, got {given[name]}"
    return None


def _refuse_differences(headers: Sequence[Sequence[int]]) -> None:
    for rank, header in enumerate(headers):
        if not header[0]:
            raise ValueError(f"rank {rank} of the sequence was given arguments that cannot be used; its error says why")
    names = ("batch size", *_PER_TOKEN, *_PER_ROW)
    for name, *values in zip(names, *([header[1], *header[3:]] for header in headers), strict=True):
        if len(set(values)) > 1:
            raise ValueError(
                f"the ranks of a sequence must be given the same arguments for their shards, but {name} differs "
                f"(by rank: {', '.join(map(str, values))}; 1 is given, 0 is not); cut the batch with shard_batch"
            )


def _refuse_left_padding(whole: Mapping[str, Tensor]) -> None:
    """Refuse padding before a token without position ids: models number such tokens in different ways."""
    real = whole.get("attention_mask")
    if real is None or "position_ids" in whole:
        return
    real = real.bool()
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise ValueError(
            "attention_mask has padding before a token; pad on the right, or pass this rank's shard of position_ids"
        )


def _per_token(x: Any, rows: int, new: int, device: torch.device) -> Tensor:
    x = torch.as_tensor(x, device=device).long()
    return (x[:, None] if x.ndim == 1 else x).expand(rows, new)
