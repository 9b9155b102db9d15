"""Does the model keep its mask? Asked of the model itself, on tiny random batches.

Changing one token may change exactly the rows that the masks let it reach, padded and packed too; and cached
decoding must equal recomputation. The masks are tried as they are and, since a wide mask is all of causal on a tiny
batch, once more with a probe that leaves much out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..attention import masked_attention
from ..masks import Mask
from . import attention, settings
from .attention import Call, LayerMask, recording
from .modes import evaluating
from .placement import device_of, require_weights
from .record import find_patch, pretrained
from .settings import Settings
from .shape import positions_of
from .spans import Asks

LENGTH = 12
MARKED = 3  # tokens at the start of a document that are its prefix, or its marked span
CHANGED = (0, 3, 5, 8)  # columns whose token is changed; the others would cost time and tell the same
ITSELF = Mask.parse("window:1")
PROBE = Mask.parse("strided:3|sinks:1")

# Relative to the standard deviation of the logits: what two ways of computing the same may differ by.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class CheckRow:
    """One question: its name, the verdict, the greatest difference seen (of logits), and what went wrong."""

    name: str
    passed: bool
    difference: float
    detail: str = ""

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.difference:9.2e}  {self.name} {self.detail}".rstrip()


@dataclass(frozen=True)
class CheckReport:
    """The rows of `check_model`."""

    rows: tuple[CheckRow, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))


@dataclass(frozen=True)
class _Layout:
    """A way of laying documents out in a row: the document of each column, PADDING (-1) for none."""

    name: str
    ids: tuple[int, ...]

    @property
    def positions(self) -> list[int]:
        """As the model wants them: the index in the document, and for padding the one of the token before."""
        counts: dict[int, int] = {}
        positions = []
        for document in self.ids:
            counts[document] = counts.get(document, -1) + (document >= 0)
            positions.append(max(0, counts[document] if document >= 0 else max(counts.values())))
        return positions

    @property
    def spans(self) -> list[int]:
        """The marked span of each column, -1 for none."""
        spans = zip(self.ids, self.positions, strict=True)
        return [document if position < MARKED else -1 for document, position in spans]

    def allowed(self, mask: Mask) -> Tensor:
        """``[N, N]``, pair by pair; what the content may decide counts as allowed."""
        positions, n = self.positions, len(self.ids)
        allowed = mask.bind(((0, MARKED),)).union.graded().bound.dense(n)
        pairs = [
            [self.ids[i] == self.ids[j] >= 0 and bool(allowed[positions[i], positions[j]]) for j in range(n)]
            for i in range(n)
        ]
        return torch.tensor(pairs)


PLAIN = _Layout("one document", (0,) * LENGTH)
PADDED = _Layout("padding on both sides and a hole", (-1, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1))
PACKED = _Layout("packed documents", (0,) * 5 + (1,) * 7)
LAYOUTS = (PLAIN, PADDED, PACKED)


def check_model(model: nn.Module) -> CheckReport:
    """Runs the checks on a patched model; 38 forward passes of at most 60 tokens for one mask.

    Returns:
        A report whose rows have a name, a verdict and the greatest difference seen; ``print`` it as a table.

    Raises:
        ValueError: the model is not patched, or its weights are not loaded.
    """
    patch = find_patch(model)
    if patch is None:
        raise ValueError(f"{type(model).__name__} is not patched; call patch_model(model, mask) first")
    require_weights(model)
    with evaluating(model), torch.no_grad():
        probe = _Probe(model, patch.settings)
        routed = probe.every_layer_asks_for_its_mask()
        if not routed.passed:
            return CheckReport((routed,))
        # What `auto` runs over the few tokens of these checks is not what it runs over long texts: both are compared.
        automatic = patch.backend == "auto"
        with _backend(model, "reference" if automatic else patch.backend):
            rows = [routed, *probe.only_attention_mixes(), *probe.masks_reach_what_they_allow()]
            rows += [*probe.layouts_agree(), *probe.cache_agrees()]
        return CheckReport((*rows, *probe.backends_agree(("auto", "blockwise") if automatic else (patch.backend,))))


@dataclass
class _Probe:
    model: nn.Module
    wanted: Settings
    n_layers: int = field(init=False)
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        base = pretrained(self.model)
        positions = positions_of(base.config)
        if positions < LENGTH:
            raise ValueError(
                f"the checks need {LENGTH} positions and the model has {positions}; patch with check=False"
            )
        self.n_layers = settings.count_layers(base.config)
        parameter = next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())
        self.device, self.tolerance = device_of(self.model), TOLERANCES.get(parameter.dtype, 1e-1)
        # Rows that nothing reaches are computed alike in both runs, so they differ by rounding at most.
        self.noise = 10 * torch.finfo(parameter.dtype).eps
        self.vocabulary = base.config.get_text_config(decoder=True).vocab_size
        draw = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(self.vocabulary, (LENGTH,), generator=draw).to(self.device)
        self.marks = Asks.of(self.wanted.masks(self.n_layers)).spans
        self.takes_positions = "position_ids" in inspect.signature(type(base).forward).parameters
        self.scale = float(self.logits(self.tokens[None], PLAIN).std().nan_to_num(nan=1.0).clamp(min=1e-30))

    def logits(self, tokens: Tensor, layout: _Layout) -> Tensor:
        """``[B, N, vocabulary]`` of rows that share a layout."""
        ids = torch.tensor(layout.ids, device=self.device).expand_as(tokens)
        positions = torch.tensor(layout.positions, device=self.device).expand_as(tokens)
        arguments = {"position_ids": positions} if self.takes_positions else {"document_ids": ids}
        if layout is PADDED:
            arguments["attention_mask"] = (ids >= 0).long()
        if self.marks:
            arguments["span_ids"] = torch.tensor(layout.spans, device=self.device).expand_as(tokens)
        return self.model(input_ids=tokens, use_cache=False, **arguments).logits.float()

    def influence(self, layout: _Layout) -> Tensor:
        """``[N, changed]``: how much each row moves when one token is changed."""
        changed = self.tokens.repeat(len(CHANGED) + 1, 1)
        for row, column in enumerate(CHANGED, start=1):
            changed[row, column] = (changed[row, column] + 1 + row) % self.vocabulary
        logits = self.logits(changed, layout)
        return _distance(logits[1:], logits[:1]).amax(-1).T.cpu() / self.scale

    def calls(self, layout: _Layout = PLAIN) -> list[Call]:
        with recording() as calls:
            self.logits(self.tokens[None], layout)
        return sorted(calls, key=lambda call: call.layer)

    def every_layer_asks_for_its_mask(self) -> CheckRow:
        asked = {call.layer: call.own for call in self.calls()}
        wrong = [layer for layer in range(self.n_layers) if asked.get(layer) != self.wanted.mask_of(layer)]
        detail = f"(not layer {', '.join(map(str, wrong))})" if wrong else ""
        return CheckRow("every layer's attention asks for its mask", not wrong, 0.0, detail)

    def only_attention_mixes(self) -> Iterator[CheckRow]:
        """Where every token sees itself alone, no row may depend on another: the reach is that of no attention."""
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
        """Each layer's attention on random numbers, in float32: half precision differs by what it rounds, and where."""
        for layout in LAYOUTS:
            calls = {call.mask: call for call in self.calls(layout)}.values()
            for backend in backends:
                difference = max(_disagreement(call, backend, self.device) for call in calls)
                name = f"backend '{backend}' = 'reference': {layout.name}"
                yield CheckRow(name, difference <= TOLERANCES[torch.float32], difference)

    def compare(self, name: str, layout: _Layout, masks: Sequence[Mask], *, exact: bool) -> CheckRow:
        """The influence of tokens on rows against the reach of the masks; ``exact``: each reach must be felt, too."""
        influence = self.influence(layout)
        reach = _reach([layout.allowed(mask) for mask in masks])[:, CHANGED]
        real = torch.tensor(layout.ids)[:, None] >= 0
        leaks = torch.where(real & ~reach, influence, 0.0)
        detail = ""
        if leaks.max() > self.noise:
            row, column = divmod(int(leaks.argmax()), len(CHANGED))
            detail = f"(row {row} depends on token {CHANGED[column]}, which is out of its reach)"
        elif exact and (real & reach & (influence == 0)).any():
            row, column = (real & reach & (influence == 0)).nonzero()[0].tolist()
            detail = f"(row {row} does not depend on token {CHANGED[column]}, which it may attend to)"
        return CheckRow(name, not detail, float(leaks.max()), detail)

    def layouts_agree(self) -> Iterator[CheckRow]:
        """Needs position ids: a model that takes none places padded tokens by column, unpatched too."""
        if not self.takes_positions:
            return
        for mask, masks in self.own_and_probe():
            with masks:
                for layout in (PADDED, PACKED):
                    yield self.agree_with_separate_documents(layout, mask)

    def agree_with_separate_documents(self, layout: _Layout, mask: str) -> CheckRow:
        together, ids = self.logits(self.tokens[None], layout)[0], torch.tensor(layout.ids, device=self.device)
        difference = 0.0
        for document in range(max(layout.ids) + 1):
            tokens = self.tokens[ids == document]
            alone = self.logits(tokens[None], _Layout("alone", (0,) * len(tokens)))[0]
            difference = max(difference, float(_distance(together[ids == document], alone).max()) / self.scale)
        return CheckRow(f"{layout.name} = each document alone, {mask}", difference <= self.tolerance, difference)

    def cache_agrees(self) -> Iterator[CheckRow]:
        if any(mask.bind(()).lookahead for mask in self.wanted.masks(self.n_layers)):
            return
        for mask, masks in self.own_and_probe():
            with masks:
                whole, pieces = self.logits(self.tokens[None], PLAIN), self.cached_logits()
                difference = float(_distance(torch.cat(pieces, 1), whole).max()) / self.scale
                yield CheckRow(f"cached decoding = recomputation, {mask}", difference <= self.tolerance, difference)

    def cached_logits(self) -> list[Tensor]:
        """The logits of a text that comes in pieces."""
        cache, pieces = None, []
        marked = {"span_ids": torch.tensor([PLAIN.spans[: LENGTH - 4]], device=self.device)} if self.marks else {}
        for tokens in self.tokens[None].split([LENGTH - 4, 1, 1, 2], dim=1):
            output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **marked)
            cache, marked = output.past_key_values, {}
            pieces.append(output.logits.float())
        return pieces

    def own_and_probe(self) -> Iterator[tuple[str, AbstractContextManager[None]]]:
        own = {layer: self.wanted.mask_of(layer) for layer in range(self.n_layers)}
        yield "its own masks", _masks(self.model, own, default=ITSELF)
        yield f"'{PROBE}'", _masks(self.model, {}, default=PROBE)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """What is not a number is as far away as can be: a comparison with it would pass for equal."""
    return (one - other).abs().nan_to_num(nan=torch.inf)


def _disagreement(call: Call, backend: str, device: torch.device) -> float:
    """The greatest difference between a backend and the reference under one layer's mask and documents."""
    draw = torch.Generator().manual_seed(0)
    # What the content decides is decided by head; other masks are the same for heads of any number.
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
    return float(_distance(one, other).max())


def _reach(layers: Sequence[Tensor]) -> Tensor:
    """``[N, N]``: whether the row can depend on the token, through all layers and the residual stream."""
    itself = torch.eye(LENGTH)
    reach = itself
    for allowed in layers:
        reach = ((allowed.float() + itself) @ reach > 0).float()
    return reach.bool()


@contextmanager
def _layers(model: nn.Module, change: Callable[[int, LayerMask], LayerMask]) -> Iterator[None]:
    """What is attached to the layers, changed for the length of a with block."""
    held = [(module, mask) for module in model.modules() if (mask := attention.attached(module)) is not None]
    for module, layer_mask in held:
        attention.attach(module, change(vars(module)["layer_idx"], layer_mask))
    try:
        yield
    finally:
        for module, layer_mask in held:
            attention.attach(module, layer_mask)


def _masks(model: nn.Module, masks: dict[int, Mask], default: Mask) -> AbstractContextManager[None]:
    return _layers(model, lambda layer, held: replace(held, mask=masks.get(layer, default)))


def _backend(model: nn.Module, backend: str) -> AbstractContextManager[None]:
    return _layers(model, lambda layer, held: replace(held, backend=backend))
