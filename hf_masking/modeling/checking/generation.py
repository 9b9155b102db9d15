"""Check that every mode of `generate` gives what recomputation without a cache gives.

The sequences that a mode has generated run once more in one forward without a cache. Its logits must be those of the
mode, step by step, and the generated tokens must follow from them: the greatest, or those that the same seed draws.
Sequences are not compared: in half precision rounding decides between tokens with nearly equal logits.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from ...masks import MaskExpression
from ..api import cache_with_prefix, patch_model, unpatch_model
from ..base_model.architecture import positions_of, pretrained
from ..base_model.modes import evaluating
from ..caching.eviction import ROLLBACK
from ..forward.interface import recording
from ..forward.marks import Needs
from ..patching.record import layer_masks, require_patch
from .readout import Readout
from .refusals import reason
from .report import CheckReport, CheckRow
from .rounding import Rounding, precision, relative, spread

NEW = 10  # number of tokens that a mode generates
_SEED = 7


def check_generation(
    model: nn.Module,
    *,
    lengths: Sequence[int] | None = None,
    new_tokens: int = NEW,
    on_mode: Callable[[str], None] = lambda mode: None,
) -> CheckReport:
    """Run every mode of `generate` on random prompts, and compare it with recomputation.

    Parameters:
        model: a patched model.
        lengths: lengths of the prompts; by default around every border of the mask, see `borders`.
        new_tokens: number of tokens that each mode generates.
        on_mode: called with the name of each mode before it runs.

    Returns:
        One row per mode, with the greatest difference of its logits, relative to their standard deviation.

    Raises:
        ValueError: the model is not patched, cannot generate, or has too few positions for the prompts.
    """
    require_patch(model)
    base, masks = pretrained(model), layer_masks(model)
    if not base.can_generate():
        raise ValueError(
            f"{type(base).__name__} cannot generate, having no language-model head; check_model(model) checks it"
        )
    longest = positions_of(base.config) - 3 * new_tokens
    if longest < 2 or any(not 2 <= length <= longest for length in lengths or ()):
        raise ValueError(f"prompts of {list(lengths or ())} tokens, expected 2 to {longest} for this model")
    wanted = list(lengths) if lengths else borders(masks)
    fitting = [length for length in wanted if length <= longest] or [longest]
    with evaluating(model), torch.no_grad(), _plain_generation(base, new_tokens):
        probe = _Probe(base, fitting, new_tokens)
        rows = []
        for name, mode in MODES.items():
            on_mode(name)
            rows.append(_row(probe, name, mode, fitting))
    if missing := sorted(set(wanted) - set(fitting)):
        text = ", ".join(map(str, missing))
        rows.append(CheckRow(f"prompts of {text} tokens", True, 0.0, f"(not run: more than {longest}, the most here)"))
    return CheckReport(tuple(rows))


def borders(masks: Sequence[MaskExpression]) -> list[int]:
    """Return W-1, W, W+1, 2W and 5W for the widest window W in the masks, and a length at which caches evict keys."""
    keys = torch.arange(2**20, 2**20 + 2**12)
    reaches = [part.union.last_reader(keys) - keys + 1 for mask in masks for part in _parts(mask.unmarked)]
    finite = [int(reach[reach < 2**20].max()) for reach in reaches if bool((reach < 2**20).any())]
    window = max((reach for reach in finite if reach > 0), default=8)
    lengths = {window - 1, window, window + 1, 2 * window, 5 * window, window + 2 * ROLLBACK}
    return sorted(length for length in lengths if length >= 2)


def _parts(mask: MaskExpression) -> Iterator[MaskExpression]:
    """Yield the mask and its parts: a window has a border, even beside a stride that never evicts."""
    yield mask
    for part in (*getattr(mask, "operands", ()), *(head for head in mask.heads if head is not mask)):
        yield from _parts(part)


@contextmanager
def _plain_generation(model: PreTrainedModel, new_tokens: int) -> Iterator[None]:
    """Set aside the model's generation config, which may sample, stop early or penalize."""
    held = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens, pad_token_id=0, do_sample=False, disable_compile=True
    )
    try:
        yield
    finally:
        model.generation_config = held


class _Probe:
    """A model, and what the modes need from it."""

    def __init__(self, model: PreTrainedModel, lengths: Sequence[int], new_tokens: int) -> None:
        self.model, self.read = model, Readout(model)
        self.texts = [(length, *(1,) * new_tokens) for length in lengths]
        self.needs = Needs.of(layer_masks(model))

    @functools.cached_property
    def rounding(self) -> Rounding:
        with recording() as calls:
            self.recomputed(self.prompt(1, 4), 1, 1)
        return Rounding(self.model, precision(self.model, calls), self.texts)

    def prompt(self, rows: int, length: int) -> Tensor:
        return self.read.draw(rows, length, _SEED)

    def generate(self, prompt: Tensor, **options: Any) -> Any:
        torch.manual_seed(_SEED)
        # Given, since `generate` would take tokens with the padding's id for padding.
        options = {"output_logits": True, "attention_mask": torch.ones_like(prompt)} | options
        if "spans" in self.needs.names and "past_key_values" not in options:
            real: Any = options["attention_mask"]
            options["past_key_values"] = cache_with_prefix(self.model, real.sum(-1))
        inputs = {} if "inputs_embeds" in options else {"inputs": prompt}
        return self.model.generate(**inputs, return_dict_in_generate=True, **options)

    def marks(self, rows: int, prompt: int, prefix: int | None = None) -> dict[str, Any]:
        """Return the marks that the masks need, as a forward takes them.

        Parameters:
            prompt: number of tokens in the prompt.
            prefix: number of tokens in the prefix, by default the prompt.
        """
        prefix = prompt if prefix is None else prefix
        lengths = {"prefix_lengths": (prefix, self.needs.spans), "prompt_lengths": (prompt, self.needs.prompt)}
        return {name: [length] * rows for name, (length, needed) in lengths.items() if needed}

    def recomputed(self, sequences: Tensor, prompt: int, last: int, prefix: int | None = None) -> Tensor:
        """Return the logits of the last tokens ``[B, last, vocabulary]`` from one forward without a cache.

        Parameters:
            sequences: ``[B, N]``.
            prompt, prefix: as for `marks`.
        """
        arguments = self.marks(len(sequences), prompt, prefix)
        if self.read.takes_positions:
            # As `generate` gives them: RoBERTa's own begin at another number.
            arguments["position_ids"] = torch.arange(sequences.shape[1], device=sequences.device).expand_as(sequences)
        return self.read(sequences, last=last, **arguments)

    def difference(
        self, seen: Tensor, sequences: Tensor, prompt: int, *, prefix: int | None = None, drawn: bool = False
    ) -> Tensor:
        """Return how far the logits of each new token ``[B, n]``, and the token itself, are from recomputation.

        Parameters:
            seen: the logits that a mode has computed for its new tokens ``[B, n, vocabulary]``.
            sequences: prompt and new tokens ``[B, N]``.
            prompt, prefix: as for `marks`.
            drawn: the tokens are drawn with the seed; otherwise they have the greatest logits.
        """
        new = seen.shape[1]
        logits, written = self.recomputed(sequences, prompt, new + 1, prefix)[:, :-1], sequences[:, -new:]
        if drawn:
            # From the mode's own logits: with the recomputed ones rounding may decide what is drawn.
            torch.manual_seed(_SEED)
            again = [torch.multinomial(step.softmax(-1), 1) for step in seen.unbind(1)]
            wrong = torch.where(torch.cat(again, 1) == written, 0.0, torch.inf)
        else:
            # A token with less than the greatest logit may be one of two that are equal up to rounding.
            wrong = (logits.amax(-1) - logits.gather(-1, written[..., None])[..., 0]) / spread(logits)
        return torch.maximum(relative(seen, logits), wrong)


def _row(probe: _Probe, name: str, mode: Callable[[_Probe, int], Tensor], lengths: Sequence[int]) -> CheckRow:
    worst = 0.0
    for length in lengths:
        try:
            differences = mode(probe, length)
            worst = max(worst, float(differences.max()))
            if not probe.rounding.forgives(differences):
                return CheckRow(name, False, float(differences.max()), f"(prompts of {length} tokens)")
        except _NotHereError as why:
            return CheckRow(name, True, 0.0, f"(not run: {why})")
        except Exception as error:  # a model's forward may raise anything
            return CheckRow(name, False, float("inf"), f"(prompts of {length} tokens: {reason(error)})")
    return CheckRow(name, True, worst)


class _NotHereError(Exception):
    """Raised for a mode that this model, mask or machine does not have."""


def _greedy(probe: _Probe, length: int, rows: int = 2, drawn: bool = False, **options: Any) -> Tensor:
    prompt = probe.prompt(rows, length)
    result = probe.generate(prompt, **options)
    return probe.difference(torch.stack(result.logits, 1), result.sequences, length, drawn=drawn)


def _sampling(probe: _Probe, length: int, **options: Any) -> Tensor:
    return _greedy(probe, length, drawn=True, do_sample=True, top_k=0, **options)


def _beams(probe: _Probe, length: int, **options: Any) -> Tensor:
    """Compare the scores of every beam with recomputation; what follows from them is arithmetic."""
    steps: list[tuple[Tensor, Tensor]] = []

    def record(sequences: Tensor, scores: Tensor) -> Tensor:
        steps.append((sequences.clone(), scores.clone()))
        return scores

    processors = LogitsProcessorList([record])
    probe.generate(probe.prompt(2, length), num_beams=3, top_k=0, logits_processor=processors, **options)
    found = [
        relative(seen[:, None], probe.recomputed(sequences, length, 1).log_softmax(-1)) for sequences, seen in steps
    ]
    return torch.cat(found, 1)


def _beam_sampling(probe: _Probe, length: int) -> Tensor:
    return _beams(probe, length, do_sample=True)


def _prompt_lookup(probe: _Probe, length: int) -> Tensor:
    prompt = probe.prompt(1, (length + 1) // 2).repeat(1, 2)[:, :length]
    result = probe.generate(prompt, prompt_lookup_num_tokens=3)
    return probe.difference(torch.stack(result.logits, 1), result.sequences, length)


def _assisted(probe: _Probe, length: int) -> Tensor:
    draft = _draft(probe)
    try:
        return _greedy(probe, length, rows=1, assistant_model=draft)
    except Exception:
        _run_unmasked(probe, length, draft)
        raise


def _assisted_patched(probe: _Probe, length: int) -> Tensor:
    if probe.needs.spans:
        raise _NotHereError("a draft model would take back a part of its prefix")
    draft = _draft(probe)
    patch_model(draft, layer_masks(probe.model)[0], check=False)
    return _greedy(probe, length, rows=1, assistant_model=draft)


def _run_unmasked(probe: _Probe, length: int, draft: PreTrainedModel) -> None:
    """Run the unpatched model with the draft model.

    In Transformers 5.17 no draft model with a sliding window can write several tokens: its cache returns keys that
    its mask does not count.

    Raises:
        _NotHereError: it fails as well.
    """
    unmasked = unpatch_model(copy.deepcopy(probe.model))
    # Several tokens at a time, whatever the draft model's confidence.
    draft.generation_config.assistant_confidence_threshold = 0.0
    try:
        unmasked.generate(probe.prompt(1, length), assistant_model=draft)
    except Exception as error:
        raise _NotHereError(f"the model without a mask fails, too: {reason(error)}") from error


def _draft(probe: _Probe) -> PreTrainedModel:
    """Return the model without its mask and with noise on its weights: mostly right, sometimes wrong."""
    draft = unpatch_model(copy.deepcopy(probe.model))
    torch.manual_seed(_SEED)
    for parameter in draft.parameters():
        if parameter.is_floating_point() and parameter.ndim > 1:
            parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.05)
    return draft


def _chunked_prefill(probe: _Probe, length: int) -> Tensor:
    chunk = max(1, length // 3)
    options: dict[str, Any] = {"prefill_chunk_size": chunk}
    # A prefix must come in one call, so it is in the first chunk; a prompt is in all of them.
    if marks := probe.marks(2, length, prefix=chunk):
        lengths, prompt_lengths = marks.get("prefix_lengths"), marks.get("prompt_lengths")
        options["past_key_values"] = cache_with_prefix(probe.model, lengths, prompt_lengths=prompt_lengths)
    result = probe.generate(probe.prompt(2, length), **options)
    return probe.difference(torch.stack(result.logits, 1), result.sequences, length, prefix=chunk)


def _turns(probe: _Probe, length: int) -> Tensor:
    first = probe.generate(probe.prompt(2, length))
    text = torch.cat([first.sequences, probe.prompt(2, 5)], dim=1)
    second = probe.generate(text, past_key_values=first.past_key_values)
    return probe.difference(torch.stack(second.logits, 1), second.sequences, length)


def _left_padding(probe: _Probe, length: int) -> Tensor:
    """Generate from prompts of unequal length in one batch; each is recomputed alone and unpadded."""
    lengths = [length, length - 1, max(1, length // 2)]
    prompt, attention_mask = probe.prompt(3, length), torch.ones(3, length, dtype=torch.long, device=probe.read.device)
    for row, real in enumerate(lengths):
        attention_mask[row, : length - real] = 0
    result = probe.generate(prompt, attention_mask=attention_mask)
    logits = torch.stack(result.logits, 1)
    found = [
        probe.difference(logits[row, None], result.sequences[row, None, length - real :], real)
        for row, real in enumerate(lengths)
    ]
    return torch.cat(found)


def _embeddings(probe: _Probe, length: int) -> Tensor:
    prompt = probe.prompt(2, length)
    embeddings = probe.model.get_input_embeddings()(prompt)
    result = probe.generate(prompt, inputs_embeds=embeddings)
    return probe.difference(torch.stack(result.logits, 1), torch.cat([prompt, result.sequences], 1), length)


def _static(probe: _Probe, length: int) -> Tensor:
    if probe.needs.names:
        raise _NotHereError("a static cache cannot carry a prefix or the length of a prompt")
    if any(weighting.scores_pairs for mask in layer_masks(probe.model) for weighting in mask.weightings):
        raise _NotHereError("a static cache has no room for the features of the keys")
    windowed = getattr(probe.model.config.get_text_config(decoder=True), "sliding_window", None)
    if windowed and any(mask.selection is not None for mask in layer_masks(probe.model)):
        raise _NotHereError("the static cache of a model with windows lacks keys that the mask scores")
    return _greedy(probe, length, cache_implementation="static")


def _offloaded(probe: _Probe, length: int) -> Tensor:
    if probe.read.device.type == "cpu":
        raise _NotHereError("it needs an accelerator")
    return _greedy(probe, length, cache_implementation="offloaded")


def _return_sequences(probe: _Probe, length: int) -> Tensor:
    return _sampling(probe, length, num_return_sequences=3)


def _forward_by_forward(probe: _Probe, length: int) -> Tensor:
    """Run the model's own forward with a cache: the prompt, then several tokens, then one by one."""
    tokens = probe.prompt(2, length + 8)
    marked = probe.marks(2, length)
    return relative(probe.read.cached(tokens, (length, 4, 1, 1, 2), **marked), probe.read(tokens, **marked))


MODES: dict[str, Callable[[_Probe, int], Tensor]] = {
    "greedy": _greedy,
    "sampling": _sampling,
    "several return sequences": _return_sequences,
    "beams": _beams,
    "beam sampling": _beam_sampling,
    "prompt lookup": _prompt_lookup,
    "assisted by a draft model": _assisted,
    "assisted by a patched draft model": _assisted_patched,
    "chunked prefill": _chunked_prefill,
    "several turns on one cache": _turns,
    "left-padded prompts of unequal length": _left_padding,
    "inputs_embeds": _embeddings,
    "static cache": _static,
    "offloaded cache": _offloaded,
    "forward by forward": _forward_by_forward,
}
