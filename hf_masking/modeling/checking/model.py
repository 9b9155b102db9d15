"""Check on tiny random batches that a patched model computes what its masks define.

Changing one token may change exactly the rows that the masks let it influence, padded and packed as well, and cached
decoding must equal recomputation. The model runs under its own masks and, since a wide mask excludes nothing in a tiny
batch, once more under a sparse one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...attention import masked_attention
from ...errors import FailedCheckError
from ...masks import MaskExpression
from ...spec import parse_mask
from ..base_model.architecture import count_layers, positions_of, pretrained
from ..base_model.modes import evaluating
from ..base_model.placement import require_weights
from ..forward.interface import RecordedCall, recording
from ..forward.marks import Needs
from ..patching.config import MaskConfig
from ..patching.layer_mask import LayerMask, attach, attached
from ..patching.record import require_patch
from .layouts import LAYOUTS, LENGTH, PACKED, PADDED, PLAIN, Layout
from .readout import Readout
from .refusals import explained, influences, refuse_not_finite
from .report import CheckReport, CheckRow
from .rounding import TOLERANCES, Rounding, distance, precision, relative, spread

logger = logging.getLogger("hf_masking")

CHANGED = (0, 3, 5, 8)  # columns whose token is changed; more would cost time and show nothing new
TURNS = 8  # the most tokens that it is changed into before a row counts as independent of it
PIECES = (LENGTH - 4, 1, 1, 2)  # lengths of the pieces of a text that is decoded with a cache
ITSELF = parse_mask("window:1")
PROBE = parse_mask("strided:3|sinks:1")


def check_model(model: nn.Module) -> CheckReport:
    """Run the checks on a patched model: 38 forward passes of at most 60 tokens for one mask.

    Returns:
        A report whose rows have a name, a verdict and the greatest difference; ``print`` shows it as a table.

    Raises:
        ValueError: the model is not patched, or its weights are not loaded.
        UnsupportedModelError: the model's forward raises under the mask, or its outputs are not finite.
    """
    wanted = require_patch(model).config
    require_weights(model)
    with evaluating(model), torch.no_grad(), explained(type(pretrained(model)).__name__):
        probe = _Probe(model, wanted)
        routed = probe.every_layer_asks_for_its_mask()
        if not routed.passed:
            return CheckReport((routed,))
        # For the few tokens of these checks `auto` chooses another backend than for long texts: both are compared.
        automatic = wanted.backend == "auto"
        with _backend(model, "reference" if automatic else wanted.backend):
            rows = [routed, *probe.only_attention_mixes(), *probe.masks_reach_what_they_allow()]
            rows += [*probe.layouts_agree(), *probe.cache_agrees()]
        compared = ("auto", "blockwise", "gathered") if automatic else (wanted.backend,)
        return CheckReport((*rows, *probe.backends_agree(compared)))


class _Probe:
    """A patched model, and the checks that it runs."""

    def __init__(self, model: nn.Module, wanted: MaskConfig) -> None:
        self.model, self.wanted = model, wanted
        config = pretrained(model).config
        if (positions := positions_of(config)) < LENGTH:
            raise FailedCheckError(f"the checks need {LENGTH} positions and the model has {positions}")
        self.n_layers = count_layers(config)
        self.read = Readout(model)
        self.tokens = self.read.draw(1, LENGTH, seed=0)
        self.needs = Needs.of(wanted.masks(self.n_layers))
        with recording() as calls:
            whole = self.rows(self.tokens, PLAIN)
        if not bool(whole.isfinite().all()):
            refuse_not_finite(model, self.tokens)
        self.scale = spread(whole)
        self.rounding = Rounding(model, precision(model, calls), [PIECES])
        # Rows that nothing influences are computed alike in both runs, so they differ by rounding at most.
        self.noise = 10 * self.rounding.epsilon

    def rows(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return the model's outputs for rows that share a layout ``[B, N, size]``."""
        ids = torch.tensor(layout.ids, device=tokens.device).expand_as(tokens)
        positions = torch.tensor(layout.positions, device=tokens.device).expand_as(tokens)
        arguments: dict[str, Any] = {"position_ids": positions} if self.read.takes_positions else {"document_ids": ids}
        if layout is PADDED:
            arguments["attention_mask"] = (ids >= 0).long()
        return self.read(tokens, **arguments, **self.marked(layout, tokens))

    def marked(self, layout: Layout, tokens: Tensor) -> dict[str, Any]:
        """Return the marks of a layout, or of its first tokens, that the masks need."""
        spans = torch.tensor(layout.spans[: tokens.shape[1]], device=tokens.device).expand_as(tokens)
        needed = {"span_ids": self.needs.spans, "prompt_mask": self.needs.prompt}
        return {name: spans if name == "span_ids" else spans >= 0 for name, needs in needed.items() if needs}

    def influence(self, layout: Layout, turn: int = 0) -> Tensor:
        """Return how much each row changes when one token does ``[N, changed]``; each turn takes another token."""
        changed = self.tokens.repeat(len(CHANGED) + 1, 1)
        for row, column in enumerate(CHANGED, start=1):
            changed[row, column] = self.read.another(int(changed[row, column]), row + turn * len(CHANGED))
        rows = self.rows(changed, layout)
        return distance(rows[1:], rows[:1]).amax(-1).mT.cpu() / self.scale

    def calls(self, layout: Layout = PLAIN) -> list[RecordedCall]:
        """Return one call of each attention, in the order of the layers."""
        with recording() as calls:
            self.rows(self.tokens, layout)
        # DiffLlama's layers attend twice with the same queries, each time to half of the values: that counts as one.
        once = {(call.layer, id(call.query)): call for call in calls}
        return sorted(once.values(), key=lambda call: call.layer)

    def every_layer_asks_for_its_mask(self) -> CheckRow:
        asked = {call.layer: call.own for call in self.calls()}
        wrong = [layer for layer in range(self.n_layers) if asked.get(layer) != self.wanted.mask_of(layer)]
        detail = f"(not layer {', '.join(map(str, wrong))})" if wrong else ""
        return CheckRow("every layer's attention asks for its mask", not wrong, 0.0, detail)

    def only_attention_mixes(self) -> Iterator[CheckRow]:
        """Check that no row depends on another if every token sees only itself."""
        with _masks(self.model, {}, default=ITSELF):
            yield self.compare("nothing but attention mixes tokens", PLAIN, [], exact=True)

    def masks_reach_what_they_allow(self) -> Iterator[CheckRow]:
        masks = [call.mask for call in self.calls()]
        name = "a token reaches no row that the masks exclude"
        for layout in LAYOUTS:
            yield self.compare(f"{name}: {layout.name}", layout, masks, exact=False)
        alone = {self.wanted.mask_of(layer): layer for layer in reversed(range(self.n_layers))}
        for mask, layer in [*alone.items(), (PROBE, self.n_layers - 1)]:
            with _masks(self.model, {layer: mask}, default=ITSELF):
                masks = [call.mask for call in self.calls()]
                exact = not mask.is_adaptive
                for layout in LAYOUTS:
                    verdict = "is exactly itself" if exact else "stays within its bounds"
                    name = f"'{mask}' alone, in layer {layer}, {verdict}: {layout.name}"
                    yield self.compare(name, layout, masks, exact=exact)

    def backends_agree(self, backends: Sequence[str]) -> Iterator[CheckRow]:
        """Compare backends on each layer's mask and random inputs in float32, whose rounding errors are small."""
        for layout in LAYOUTS:
            calls = {call.mask: call for call in self.calls(layout)}.values()
            for backend in backends:
                difference = max(_disagreement(call, backend, self.tokens.device) for call in calls)
                name = f"backend '{backend}' = 'reference': {layout.name}"
                yield CheckRow(name, difference <= TOLERANCES[torch.float32], difference)

    def compare(self, name: str, layout: Layout, masks: Sequence[MaskExpression], *, exact: bool) -> CheckRow:
        """Compare the influence of tokens on rows with what the masks allow; ``exact``: all allowed pairs must show."""
        influence = self.influence(layout)
        reach = _reach([layout.allowed(mask) for mask in masks])[:, CHANGED]
        real = torch.tensor(layout.ids)[:, None] >= 0
        for turn in range(1, TURNS if exact else 1):
            if not (real & reach & (influence == 0)).any():
                break
            # In half precision a row may round away the change of one token, and not that of another.
            influence = torch.maximum(influence, self.influence(layout, turn))
        leaks = torch.where(real & ~reach, influence, 0.0)
        lost = (real & ~influence.isfinite()).any(-1)
        detail = ""
        if lost.any():
            # Some kernels return finite numbers for weights that are not finite: SDPA does for a query of NaN.
            refuse_not_finite(self.model, self.tokens)
            detail = f"(row {int(lost.nonzero()[0])} is not finite)"
        elif leaks.max() > self.noise:
            row, column = divmod(int(leaks.argmax()), len(CHANGED))
            detail = f"(row {row} depends on token {CHANGED[column]}, which is out of its reach)"
        elif exact and (real & reach & (influence == 0)).any() and self.attention_has_influence:
            row, column = (real & reach & (influence == 0)).nonzero()[0].tolist()
            detail = f"(row {row} does not depend on token {CHANGED[column]}, which it may attend to)"
        return CheckRow(name, not detail, float(leaks.max()), detail)

    @functools.cached_property
    def attention_has_influence(self) -> bool:
        """True if a token influences another in the model without its mask; logs a warning if not."""
        found = influences(self.model, self.tokens, self.read.another(int(self.tokens[0, 0]), 1))
        if not found:
            logger.warning(
                "no token influences another in %s, with its mask or without (are the output projections of its "
                "attention zero?); so only its attention was checked",
                self.read.name,
            )
        return found

    def layouts_agree(self) -> Iterator[CheckRow]:
        """Compare rows of several documents with each document alone.

        A model without position ids places padded tokens by column, with and without a mask, and is not compared.
        """
        if not self.read.takes_positions:
            return
        for mask, masks in self.own_and_probe():
            with masks:
                for layout in (PADDED, PACKED):
                    yield self.agree_with_separate_documents(layout, mask)

    def agree_with_separate_documents(self, layout: Layout, mask: str) -> CheckRow:
        together, ids = self.rows(self.tokens, layout)[0], torch.tensor(layout.ids, device=self.tokens.device)
        differences = []
        for document in range(max(layout.ids) + 1):
            tokens = self.tokens[:, ids == document]
            alone = self.rows(tokens, Layout("alone", (0,) * tokens.shape[1]))[0]
            differences.append(distance(together[ids == document], alone).amax(-1) / self.scale)
        return self.verdict(f"{layout.name} = each document alone, {mask}", torch.cat(differences))

    def cache_agrees(self) -> Iterator[CheckRow]:
        if any(mask.unmarked.union.lookahead for mask in self.wanted.masks(self.n_layers)):
            return
        first = self.marked(PLAIN, self.tokens[:, : PIECES[0]])
        for mask, masks in self.own_and_probe():
            with masks:
                # Without position ids: with a cache the model uses its own positions (RoBERTa's begin at 2).
                whole = self.read(self.tokens, **self.marked(PLAIN, self.tokens))
                pieces = self.read.cached(self.tokens, PIECES, **first)
                yield self.verdict(f"cached decoding = recomputation, {mask}", relative(pieces, whole))

    def verdict(self, name: str, differences: Tensor) -> CheckRow:
        return CheckRow(name, self.rounding.forgives(differences), float(differences.max()))

    def own_and_probe(self) -> Iterator[tuple[str, AbstractContextManager[None]]]:
        own = {layer: self.wanted.mask_of(layer) for layer in range(self.n_layers)}
        yield "its own masks", _masks(self.model, own, default=ITSELF)
        yield f"'{PROBE}'", _masks(self.model, {}, default=PROBE)


def _disagreement(call: RecordedCall, backend: str, device: torch.device) -> float:
    """Return the greatest difference between a backend and the reference under a layer's mask and documents."""
    draw = torch.Generator().manual_seed(0)
    # Adaptive masks differ by head; the others are the same for any number of heads.
    adaptive, heads = call.mask.is_adaptive, len(call.mask.heads)
    query_heads, key_heads = (call.query.shape[1], call.key.shape[1]) if adaptive else (heads, heads)
    query, key, value = (
        torch.randn(1, heads, positions.shape[1], 16, generator=draw).to(device)
        for heads, positions in (
            (query_heads, call.documents.query_positions),
            *[(key_heads, call.documents.key_positions)] * 2,
        )
    )
    one, other = (
        masked_attention(query, key, value, call.mask, documents=call.documents, backend=name, features=call.features)
        for name in (backend, "reference")
    )
    return float(distance(one, other).max())


def _reach(layers: Sequence[Tensor]) -> Tensor:
    """Return whether a row can depend on a token, through all layers and the residual stream ``[N, N]``."""
    itself = torch.eye(LENGTH)
    reach = itself
    for allowed in layers:
        reach = ((allowed.float() + itself) @ reach > 0).float()
    return reach.bool()


@contextmanager
def _layers(model: nn.Module, change: Callable[[int, LayerMask], LayerMask]) -> Iterator[None]:
    """Change the masks of the layers for the length of a with block."""
    held = [(module, mask) for module in model.modules() if (mask := attached(module)) is not None]
    for module, layer_mask in held:
        attach(module, change(vars(module)["layer_idx"], layer_mask))
    try:
        yield
    finally:
        for module, layer_mask in held:
            attach(module, layer_mask)


def _masks(model: nn.Module, masks: dict[int, MaskExpression], default: MaskExpression) -> AbstractContextManager[None]:
    return _layers(model, lambda layer, held: replace(held, mask=masks.get(layer, default)))


def _backend(model: nn.Module, backend: str) -> AbstractContextManager[None]:
    return _layers(model, lambda layer, held: replace(held, backend=backend))
