"""Attention in a compiled graph: operators, and what the graph computes itself."""

import os
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from hf_masking import parse_mask
from hf_masking.adaptive import Features
from hf_masking.attention import BACKENDS, masked_attention, operators
from hf_masking.masks import Offsets, SlidingWindow
from hf_masking.plan import Documents

SHORT, LONG = 40, 150  # the graph itself computes up to 2^14 pairs
SPEC = "heads[window:9|sinks:2; strided:4]"
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()


def inputs(length, queries=None, learn=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, queries or length, 8), (2, 2, length, 8), (2, 2, length, 8)]
    return [torch.randn(shape, generator=generator).requires_grad_(learn) for shape in shapes]


def packed(length):
    ids = torch.zeros(2, length, dtype=torch.long)
    ids[0, :3], ids[1, length // 3 :] = -1, 10**12
    return ids


def attending(**options):
    return lambda *tensors: masked_attention(*tensors, SPEC, **options)


def one_graph(compiler="aot_eager", **options):
    return torch.compile(attending(**options), fullgraph=True, backend=compiler)


def with_gradients(attend, tensors):
    output = attend(*tensors)
    return [output, *torch.autograd.grad(output.square().sum(), tensors)]


def assert_equal(results, expected, atol=1e-4):
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("backend", "length", "options"),
    [
        ("auto", SHORT, {}),
        ("auto", SHORT, {"softcap": 2.0, "sink_logits": SINKS}),
        ("auto", LONG, {"documents": packed(LONG)}),
        ("auto", LONG, {"softcap": 2.0, "sink_logits": SINKS, "documents": packed(LONG)}),
        ("blockwise", SHORT, {"scale": -0.5}),
        ("sdpa", LONG, {"scale": -0.5, "documents": packed(LONG)}),
        ("reference", SHORT, {"softcap": 2.0, "sink_logits": SINKS, "documents": packed(SHORT)}),
    ],
)
def test_one_graph_equals_the_reference(backend, length, options):
    results = with_gradients(one_graph(backend=backend, **options), inputs(length))
    assert_equal(results, with_gradients(attending(backend="reference", **options), inputs(length)))


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
def test_generated_code_equals_the_reference():
    results = with_gradients(one_graph("inductor"), inputs(LONG))
    assert_equal(results, with_gradients(attending(backend="reference"), inputs(LONG)))


@pytest.mark.parametrize(("backend", "queries"), [("auto", None), ("gathered", None), ("gathered", 3), ("auto", 1)])
def test_without_gradients_any_backend_runs_in_one_graph(backend, queries):
    tensors = inputs(LONG, queries, learn=False)
    one, other = (attend(*tensors) for attend in (one_graph(backend=backend), attending(backend="reference")))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_one_graph_pays_for_what_the_mask_allows(monkeypatch):
    ran = []
    for name, backend in BACKENDS.items():
        spy = replace(backend, attend=lambda *a, name=name, run=backend.attend, **k: ran.append(name) or run(*a, **k))
        monkeypatch.setitem(BACKENDS, name, spy)
    one_graph()(*inputs(4096, learn=False))
    assert ran == ["blockwise"]


def test_dropout_is_drawn_as_it_is_uncompiled():
    options = {"dropout": 0.4, "backend": "blockwise"}
    compiled, drawn = one_graph(**options), []
    for attend in (compiled, attending(**options), compiled):
        torch.manual_seed(3)
        drawn.append(with_gradients(attend, inputs(LONG)))
    assert_equal(drawn[0], drawn[1])
    assert_equal(drawn[0], drawn[2], atol=0)
    assert not torch.equal(drawn[0][0], compiled(*inputs(LONG)))


def test_half_precision_in_one_graph():
    tensors = [x.detach().bfloat16().requires_grad_() for x in inputs(LONG)]
    results, expected = (with_gradients(attend, tensors) for attend in (one_graph(), attending(backend="blockwise")))
    assert results[0].dtype == results[1].dtype == torch.bfloat16
    assert_equal(results, expected, atol=1e-2)


def test_a_mask_as_an_object_is_compiled_too():
    mask = parse_mask("causal-(window:6-window:2)")
    compiled = torch.compile(lambda *x: masked_attention(*x, mask), backend="eager")
    torch.testing.assert_close(compiled(*inputs(SHORT)), masked_attention(*inputs(SHORT), mask))


def test_a_backend_whose_gradients_leave_the_graph_says_so():
    expected = with_gradients(attending(backend="reference"), inputs(SHORT))
    compiled = torch.compile(attending(backend="gathered"), backend="eager")
    assert_equal(with_gradients(compiled, inputs(SHORT)), expected)
    with pytest.raises(RuntimeError, match="use backend='blockwise'"):
        one_graph(backend="gathered")(*inputs(SHORT))


def test_what_does_not_fit_is_refused_while_compiling():
    with pytest.raises(RuntimeError, match="'sdpa' cannot compute this: it does not support softcap"):
        one_graph(backend="sdpa", softcap=2.0)(*inputs(SHORT))
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="groups of heads, which do not divide 3 query heads"):
        one_graph()(*(x[:, :3] if x.shape[1] == 4 else x[:, :1] for x in inputs(SHORT, learn=False)))


def test_the_choice_is_logged_when_the_graph_is_made(caplog):
    from hf_masking.attention.choice import _log_once

    _log_once.cache_clear()
    caplog.set_level("INFO", "hf_masking")
    for length, choice in ((SHORT, "runs 'sdpa'"), (LONG, "runs 'blockwise'")):
        caplog.clear()
        compiled = one_graph()
        compiled(*inputs(length)), compiled(*inputs(length))
        (line,) = [record.getMessage() for record in caplog.records if record.name == "hf_masking"]
        assert choice in line and "a compiled graph" in line


def operands(length, learn=True):
    query, key, value = inputs(length, learn=learn)
    return (
        query,
        key,
        value,
        SINKS.clone().requires_grad_(learn),
        Documents.from_ids(packed(length) % 7, torch.arange(length)).encode(),
    )


@pytest.mark.filterwarnings("ignore")  # of the checks themselves
def test_the_operators_keep_their_contracts():
    """Their shapes, strides and aliases are what they declare, and their gradients are registered as they should be."""
    mask = operators.name_of(parse_mask(SPEC))
    query, key, value, sinks, documents = operands(SHORT)
    free = operands(SHORT, learn=False)
    torch.library.opcheck(operators.allowed, (documents, 4, SHORT, mask))
    torch.library.opcheck(operators.attend, (list(free), mask, "auto", 0.3, 2.0))
    for seed, dropout in ((None, 0.0), (torch.tensor(5), 0.2)):
        torch.library.opcheck(
            operators.attend_blockwise, (query, key, value, sinks, documents, seed, mask, [0.3, dropout, 2.0])
        )


@dataclass(frozen=True)
class Namesake(SlidingWindow):
    """Prints as a window does, and is another mask."""

    def allows(self, q, k):
        return super().allows(q, k) & (k != 3)


@dataclass(frozen=True)
class Unregistered(SlidingWindow):
    """A mask that no spec can name."""

    name: ClassVar[str] = "unregistered"


@pytest.mark.parametrize("mask", [Namesake(9), Unregistered(9), Offsets(tuple(range(0, 9000, 4)))])
def test_a_mask_is_itself_and_not_what_its_text_says(mask):
    """A subclass that prints alike, a name that is not registered, and a text too long to be parsed."""
    compiled = torch.compile(lambda *x: masked_attention(*x, mask), backend="eager", fullgraph=True)
    tensors = inputs(SHORT, learn=False)
    torch.testing.assert_close(compiled(*tensors), masked_attention(*tensors, mask))


def test_each_call_of_a_graph_has_its_own_mask():
    compiled = torch.compile(lambda mask, *x: masked_attention(*x, mask), backend="eager", fullgraph=True)
    tensors = inputs(SHORT, learn=False)
    for mask in (SlidingWindow(9), Namesake(9), SlidingWindow(8), "window:9", "window:9|sinks:1", SlidingWindow(9)):
        torch.testing.assert_close(compiled(mask, *tensors), masked_attention(*tensors, mask))


def test_features_that_a_mask_does_not_take_are_refused():
    compiled = torch.compile(attending(features=[Features(torch.ones(2, 4, SHORT, 1))]), backend="eager")
    with pytest.raises(ValueError, match="takes no features"):
        compiled(*inputs(SHORT))


def test_masks_that_print_alike_have_different_names():
    one, other = operators.name_of(SlidingWindow(5)), operators.name_of(Namesake(5))
    assert one != other and operators.MASKS[one] == SlidingWindow(5) and operators.MASKS[other] == Namesake(5)
    assert operators.name_of(Namesake(5)) == other


def test_documents_are_described_once_for_all_layers_and_anew_for_other_keys():
    rows = Documents.single(8, 8).encode()
    described = operators.documents_of(rows, 8)
    assert operators.documents_of(rows.clone(), 8) is described
    assert operators.documents_of(rows, 10).key_positions.shape == (1, 10)
    rows[0, 0, 0] = 5
    assert operators.documents_of(rows, 10).key_positions[0, 0] == 5
