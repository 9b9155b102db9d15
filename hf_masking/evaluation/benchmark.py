"""Benchmark attention: time and memory of masks against dense attention, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..attention import masked_attention
from ..attention.choice import choose
from ..attention.inputs import Inputs, Options
from ..masks import Causal, MaskExpression
from ..masks.counting import count_pairs
from ..plan import Documents, Lengths, plan_of
from ..spec import parse_mask
from .memory import peak_memory
from .process import in_own_process
from .timing import MATRIX, Spread, Timing, interleaved, matrix_product, timed

RIVALS = IS_CAUSAL, DENSE_MASK = "sdpa is_causal", "sdpa dense mask"


@dataclass(frozen=True)
class Shape:
    """The shape of the inputs of attention: ``[batch, heads, length, head_size]``."""

    length: int
    heads: int = 8
    key_heads: int = 8
    head_size: int = 64
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"

    def inputs(self, requires_grad: bool) -> list[Tensor]:
        generator = torch.Generator(self.device).manual_seed(0)
        counts = self.heads, self.key_heads, self.key_heads
        sizes = [(self.batch, count, self.length, self.head_size) for count in counts]
        options = {"generator": generator, "dtype": getattr(torch, self.dtype), "device": self.device}
        return [torch.randn(size, requires_grad=requires_grad, **options) for size in sizes]


@dataclass(frozen=True)
class Contender:
    """A mask under one of our backends, or dense attention by PyTorch (``is_rival``)."""

    mask: str
    backend: str

    @property
    def is_rival(self) -> bool:
        return self.backend in RIVALS


@dataclass
class Row:
    """The measurements of a contender at one length.

    forward_seconds, both_seconds: one entry per round that counts, the same rounds for all rows of a length.
    quiet_rounds: how many rounds were quiet; None if nobody looked.
    """

    length: int
    mask: str
    backend: str
    allowed_pairs: int
    touched_pairs: int | None = None
    ran: str | None = None
    forward_seconds: list[float] = field(default_factory=list)
    both_seconds: list[float] = field(default_factory=list)
    quiet_rounds: int | None = None
    forward_share: float | None = None
    both_share: float | None = None
    plan_seconds: float | None = None
    plan_bytes: int | None = None
    extra_bytes: int | None = None
    inputs_bytes: int | None = None
    error: str | None = None
    memory_error: str | None = None

    @property
    def runs(self) -> str:
        """Return the backend, and the one that `auto` chose."""
        return self.backend if self.ran in (None, self.backend) else f"{self.backend}: {self.ran}"

    @property
    def timings(self) -> tuple[Timing, Timing]:
        """Return the times of a forward, and of a forward and a backward."""
        both = self.forward_seconds, self.both_seconds
        forward, backward_too = (Timing(tuple(seconds), self.quiet_rounds) for seconds in both)
        return forward, backward_too

    @property
    def forward(self) -> Spread | None:
        """Return the seconds of a forward."""
        return self.timings[0].spread

    @property
    def both(self) -> Spread | None:
        """Return the seconds of a forward and a backward."""
        return self.timings[1].spread

    def document(self) -> dict[str, Any]:
        """Return the row as JSON: its fields, and the spread of both times."""
        spreads = {"forward": self.forward, "both": self.both}
        return asdict(self) | {name: spread and asdict(spread) for name, spread in spreads.items()}


def measure(shape: Shape, contenders: Sequence[Contender], rounds: int) -> list[Row]:
    """Return one row per contender: times, pairs, and the achieved share of the matrix-multiply rate.

    The share counts the work of allowed pairs only. A contender that fails gets an ``error``; the others continue.
    """
    inputs = shape.inputs(requires_grad=True)
    grad_out = torch.ones(shape.batch, shape.heads, shape.length, shape.head_size).to(inputs[0])
    rows = [_row(contender, shape) for contender in contenders]
    calls = [_calls(contender, _runnable(contender, shape), inputs, grad_out) for contender in contenders]
    device, calibration = inputs[0].device, matrix_product(shape.device, shape.dtype)
    timings = iter(interleaved([timed(call, device) for pair in calls for call in pair], rounds, calibration))
    rate = 2 * MATRIX**3 / calibration.best
    for row, pair in zip(rows, calls, strict=True):
        _fill(row, [next(timings) for _ in pair])
        work = 4 * row.allowed_pairs * shape.head_size * shape.heads * shape.batch
        row.forward_share = work / row.forward.median / rate if row.forward else None
        # The backward pass takes five matrix products, the forward pass two.
        row.both_share = 3.5 * work / row.both.median / rate if row.both else None
    return rows


def measure_memory(shape: Shape, contender: Contender, row: Row) -> None:
    """Measure the peak memory of a new process, above inputs, outputs and gradients, and that of making the plan."""
    try:
        row.plan_bytes, row.extra_bytes, row.inputs_bytes = in_own_process(_peaks, shape, contender)
    except Exception as error:  # whatever killed the process, the times are kept
        row.memory_error = next(iter(str(error).splitlines()), type(error).__name__)


def contenders_for(masks: Sequence[str], shape: Shape, *, dense: bool, causal: bool, flex: bool) -> Iterator[Contender]:
    """Yield the contenders of a length: the rivals, and each mask under `auto` and `blockwise`."""
    if causal:
        yield Contender("causal", IS_CAUSAL)
    if dense:
        yield Contender(masks[0], DENSE_MASK)
    for mask in masks:
        yield Contender(mask, "auto")
        if _auto_runs(mask, shape) != "blockwise" and parse_mask(mask) != Causal():
            yield Contender(mask, "blockwise")
        if flex:
            yield Contender(mask, "flex")


def _auto_runs(mask: str, shape: Shape) -> str:
    x = torch.empty(1, 1, 1, shape.head_size, device=shape.device).expand(-1, -1, shape.length, -1)
    documents = Documents.single(shape.length, shape.length)
    return choose(Inputs(x, x, x, parse_mask(mask), documents, Options(scale=1.0))).backend


def _runnable(contender: Contender, shape: Shape) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    grouped = shape.heads != shape.key_heads
    if contender.backend == IS_CAUSAL:
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if contender.backend == DENSE_MASK:
        dense = _dense(parse_mask(contender.mask), shape)
        return lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=grouped)
    return lambda q, k, v: masked_attention(q, k, v, contender.mask, backend=contender.backend)


def _dense(mask: MaskExpression, shape: Shape) -> Tensor:
    """Return the mask as booleans, made a few rows at a time to keep memory small."""
    dense = torch.empty(shape.length, shape.length, dtype=torch.bool, device=shape.device)
    keys = torch.arange(shape.length, device=shape.device)
    for rows in keys.split(256):
        dense[rows] = mask.union.allows(rows[:, None], keys)
    return dense


def _row(contender: Contender, shape: Shape) -> Row:
    n, mask = shape.length, parse_mask(contender.mask)
    plan_of.cache_clear()
    started = time.perf_counter()
    plans = [plan_of(member, Lengths(0, n, 0, n)) for member in mask.heads]
    seconds = time.perf_counter() - started
    allowed = sum(count_pairs(member, n) for member in mask.heads) // len(mask.heads)
    row = Row(n, contender.mask, contender.backend, allowed)
    if contender.is_rival:
        return row
    row.ran = _auto_runs(contender.mask, shape) if contender.backend == "auto" else contender.backend
    if row.ran == "blockwise":
        row.plan_seconds = seconds
        row.touched_pairs = sum(plan.touched for plan in plans) // len(plans)
    return row


def _calls(
    contender: Contender, run: Callable[..., Tensor], inputs: list[Tensor], grad_out: Tensor
) -> list[Callable[[], None]]:
    """Return what is timed: a forward, and a forward with a backward where there is one."""

    def forward() -> None:
        with torch.no_grad():
            run(*inputs)

    def both() -> None:
        for tensor in inputs:
            tensor.grad = None
        run(*inputs).backward(grad_out)

    has_backward = contender.backend != "flex" or inputs[0].device.type != "cpu"
    return [forward, both] if has_backward else [forward]


def _fill(row: Row, timings: Sequence[Timing]) -> None:
    """Write the times of forward, and of forward and backward, into a row; or the error that stopped one of them."""
    error = next((timing.error for timing in timings if timing.error is not None), None)
    if error is not None:
        row.error = next(iter(str(error).splitlines()), type(error).__name__)
        return
    row.quiet_rounds = timings[0].quiet_rounds
    for seconds, timing in zip((row.forward_seconds, row.both_seconds), timings, strict=False):
        seconds.extend(timing.seconds)


def _peaks(shape: Shape, contender: Contender) -> tuple[int, int, int]:
    """Return the bytes of making the plan, of forward and backward above the inputs, and of inputs and gradients."""
    if shape.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    # A small call first: libraries allocate memory once, which must not count.
    _forward_and_backward(replace(shape, length=256), contender)
    before = peak_memory(shape.device)
    if not contender.is_rival:
        for member in parse_mask(contender.mask).heads:
            plan_of(member, Lengths(0, shape.length, 0, shape.length))
    planned = peak_memory(shape.device)
    held = _forward_and_backward(shape, contender)
    return planned - before, peak_memory(shape.device) - planned - held, held


def _forward_and_backward(shape: Shape, contender: Contender) -> int:
    """Run once; return the bytes of inputs, output and their gradients."""
    inputs = shape.inputs(requires_grad=True)
    output = _runnable(contender, shape)(*inputs)
    grad_out = torch.ones_like(output)
    output.backward(grad_out)
    return 2 * sum(tensor.nbytes for tensor in (*inputs, output))
