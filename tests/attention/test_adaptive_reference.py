"""Adaptive masks: every backend against brute force, forward and backward; nothing leaks backwards."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_masking import parse_mask
from hf_masking.adaptive import Features, TopBlocks
from hf_masking.attention import masked_attention
from hf_masking.attention.adaptive_reference import picked_pairs
from hf_masking.plan import Documents, selected

from ..adaptive import oracle

LEAVES = [
    "adaptive_span:max=40,ramp=5",
    "adaptive_span:max=40,ramp=5,dynamic=true",
    "top_blocks:block=4,k=3",
    "top_blocks:block=5,k=2,score=mean",
    "relevance:rank=2,threshold=0.3",
    "relevance:rank=2,threshold=0",
    "(adaptive_span:max=40,ramp=5&relevance:rank=2,threshold=0.2)",
    "(top_blocks:block=4,k=3&relevance:rank=2,threshold=0.2)",
    "(top_blocks:block=4,k=3&adaptive_span:max=30,ramp=9)",
    "(top_blocks:block=6,k=2&adaptive_span:max=30,ramp=9,dynamic=true&relevance:rank=2)",
]
FORMS = [
    "{}",
    "{}|sinks:2",
    "{}|window:9|sinks:1",
    "{}&window:33",
    "{}&strided:2|window:3",
    "({}|block_local:7)-window:2",
]


@dataclass
class Problem:
    """Random inputs, with the tensors of which a gradient is wanted in ``tensors``."""

    spec: str
    queries: int = 60
    keys: int = 60
    key_heads: int = 2
    group: int = 2
    rows: int = 2
    hard: bool = True
    documents: torch.Tensor | None = None
    dtype: torch.dtype = torch.float64
    options: dict = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        draw = torch.Generator().manual_seed(self.seed)
        heads = self.key_heads * self.group

        def random(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(self.dtype).requires_grad_()

        self.mask = parse_mask(self.spec)
        self.tensors = [
            random(self.rows, heads, self.queries, 6),
            random(self.rows, self.key_heads, self.keys, 6),
            random(self.rows, self.key_heads, self.keys, 3),
        ]
        self.features = []
        for leaf in self.mask.weightings:
            if leaf.name == "adaptive_span":
                shape = (self.rows, heads, self.queries, 1) if leaf.dynamic else (1, heads, 1, 1)
                spans = torch.rand(shape, generator=draw, dtype=torch.float64).to(self.dtype) * leaf.max
                self.features.append(Features(spans.requires_grad_()))
                self.tensors.append(spans)
            elif leaf.name == "relevance":
                # The heads that share keys read the same.
                own = random(self.rows, self.key_heads, self.queries, 3)
                key = random(self.rows, self.key_heads, self.keys, 3)
                self.features.append(Features(own.repeat_interleave(self.group, 1), key, self.hard))
                self.tensors += [own, key]

    def output(self, backend):
        return masked_attention(
            *self.tensors[:3],
            self.mask,
            documents=self.documents,
            backend=backend,
            features=self.features,
            **self.options,
        )

    def outputs(self, backend):
        """The output, and the gradients of a fixed weighted sum of it."""
        output = self.output(backend)
        weight = torch.linspace(-1, 1, output.numel(), dtype=self.dtype).view(output.shape)
        loss = (output * weight).sum()
        # A query that sees nothing at all asks for no gradient.
        grads = torch.autograd.grad(loss, self.tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
        return [output.detach(), *grads]

    def differences(self, one, other):
        return [float((a - b).abs().max()) for a, b in zip(self.outputs(one), self.outputs(other), strict=True)]


def weights_by_definition(problem):
    """[B, Hq, N, N], pair by pair, of one document a row and as many queries as keys."""
    n, (query, key), group = problem.keys, (x.tolist() for x in problem.tensors[:2]), problem.group
    features = dict(zip([leaf.name for leaf in problem.mask.weightings], problem.features, strict=True))
    weights = torch.zeros(problem.rows, problem.key_heads * group, n, n, dtype=torch.float64)
    for row in range(problem.rows):
        for head in range(problem.key_heads * group):
            shared = head // group
            together = query[row][shared * group : (shared + 1) * group]

            def leaf_weight(leaf, i, j, row=row, head=head, shared=shared, together=together):
                if leaf.name == "top_blocks":
                    return float(j // leaf.block in oracle.chosen_blocks(leaf, together, key[row][shared], i))
                read = features[leaf.name]
                if leaf.name == "adaptive_span":
                    spans = read.query.expand(problem.rows, -1, n, -1)
                    return oracle.span_weight(leaf, float(spans[row, head, i, 0].detach()), i, j)
                mine, theirs = read.query[row, head].tolist(), read.key[row, shared].tolist()
                return oracle.relevance_weight(leaf, mine, theirs, i, j, read.hard)

            for i in range(n):
                for j in range(i + 1):
                    weights[row, head, i, j] = oracle.weight(problem.mask, i, j, leaf_weight)
    return weights


@pytest.mark.parametrize("form", ["{}", "{}|sinks:1|window:3", "{}&strided:2"])
@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("hard", [True, False])
def test_the_reference_is_the_dense_formula(leaf, form, hard):
    problem = Problem(form.format(leaf), queries=14, keys=14, rows=1, hard=hard)
    expected = oracle.attention(*problem.tensors[:3], weights_by_definition(problem))
    for backend in ("reference", "blockwise"):
        assert torch.allclose(problem.output(backend), expected, atol=1e-12), backend


def dense(problem):
    """The formula in torch, for its gradients: a line each of span and relevance."""
    query, key, value, *rest = problem.tensors
    distance = torch.arange(60)[:, None] - torch.arange(60)
    (leaf,) = problem.mask.normal_form().adaptive
    if leaf.name == "adaptive_span":
        weights = (1 + (rest[0] - distance) / leaf.ramp).clamp(0, 1) * (distance >= 0)
    elif leaf.name == "relevance":
        weights = (rest[0] @ rest[1].mT).sigmoid()
        if problem.hard:
            weights = weights * ((weights >= leaf.threshold) | (distance == 0))
        weights = (weights * (distance >= 0)).repeat_interleave(2, 1)
    else:
        weights = picked_pairs(leaf, Documents.single(60, 60), query, key).repeat_interleave(2, 1) * (distance >= 0)
    return oracle.attention(query, key, value, weights)


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if "&" not in leaf])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_gradients_are_those_of_autograd_through_the_formula(leaf, hard, backend):
    problem = Problem(leaf, hard=hard)
    output = dense(problem)
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    expected = torch.autograd.grad((output * weight).sum(), problem.tensors)
    for mine, theirs in zip(problem.outputs(backend)[1:], expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11)
        assert float(theirs.abs().max()) > 0


@st.composite
def problems(draw):
    keys = draw(st.integers(1, 150))
    run = st.tuples(st.integers(-1, 2), st.integers(1, 60))
    row = st.lists(run, min_size=1, max_size=6).map(lambda runs: [i for i, n in runs for _ in range(n)])
    rows = draw(st.none() | st.tuples(row, row))
    return Problem(
        draw(st.sampled_from(FORMS)).format(draw(st.sampled_from(LEAVES))),
        keys=keys,
        queries=keys if rows is None or draw(st.booleans()) else draw(st.integers(1, keys)),
        key_heads=draw(st.sampled_from([1, 2])),
        group=draw(st.sampled_from([1, 2, 3])),
        rows=2,
        hard=draw(st.booleans()),
        documents=None if rows is None else torch.tensor([(r * keys)[:keys] for r in rows]),
        dtype=draw(st.sampled_from([torch.float64, torch.float32])),
        options={"softcap": 3.0} if draw(st.integers(0, 3)) == 0 else {},
        seed=draw(st.integers(0, 5)),
    )


@settings(max_examples=300, deadline=None)
@given(problems())
def test_blockwise_equals_the_reference(problem):
    tolerance = 1e-11 if problem.dtype == torch.float64 else 2e-4
    assert max(problem.differences("blockwise", "reference")) < tolerance


def test_chunks_of_queries_are_merged(monkeypatch):
    monkeypatch.setattr(selected, "_CHUNK", 16)
    for spec in ("top_blocks:block=4,k=3", "top_blocks:block=4,k=3&relevance:rank=2|sinks:2"):
        assert max(Problem(spec).differences("blockwise", "reference")) < 1e-12


def test_sink_logits_take_their_share():
    problem = Problem("top_blocks:block=4,k=3|sinks:2", options={"sink_logits": torch.linspace(-1, 2, 4).double()})
    assert max(problem.differences("blockwise", "reference")) < 1e-12


def test_dropped_weights_are_the_same_in_the_backward_pass():
    """With dropout the output is linear in the values, under the weights that the backward pass must draw again."""
    for spec in ("top_blocks:block=4,k=3", "relevance:rank=2", "top_blocks:block=4,k=3&adaptive_span:max=30"):
        problem = Problem(spec, options={"dropout": 0.5})
        torch.manual_seed(3)
        output = problem.output("blockwise")
        grad = torch.randn_like(output)
        (of_value,) = torch.autograd.grad((output * grad).sum(), problem.tensors[2])
        linear = (of_value * problem.tensors[2].detach()).sum()
        assert float(linear) == pytest.approx(float((output * grad).sum().detach()))
        assert not torch.allclose(output, replace(problem, options={}).output("blockwise"))


def test_enough_blocks_and_the_longest_spans_are_causal():
    for spec, span in (
        ("top_blocks:block=4,k=15", None),
        ("adaptive_span:max=60", 60.0),
        ("adaptive_span:max=60,dynamic=true", 60.0),
    ):
        problem = Problem(spec)
        if span is not None:
            with torch.no_grad():
                problem.tensors[3].fill_(span)
        causal = masked_attention(*problem.tensors[:3], "causal", backend="reference")
        for backend in ("reference", "blockwise"):
            assert torch.allclose(problem.output(backend), causal, atol=1e-12)


def test_more_is_refused_in_words():
    problem = Problem("adaptive_span:max=40")
    for backend in ("sdpa", "flex"):
        with pytest.raises(ValueError, match=f"'{backend}' cannot compute this: it does not compute adaptive masks"):
            problem.output(backend)
    problem.features = []
    with pytest.raises(ValueError, match="'adaptive_span:max=40' needs features= of adaptive_span:max=40, got 0"):
        problem.output("blockwise")
    problem.features = [Features(torch.ones(1, 3, 1, 1))]
    with pytest.raises(
        ValueError, match=r"the query features of 'adaptive_span:max=40' must have shape \[2, 4, 60, 'size'\]"
    ):
        problem.output("blockwise")


# Nothing that comes later may change a row: rules C1 to C5 of adaptive masks.


def leak(attend, tensors, rows, n):
    """The greatest change of rows up to i when what comes after it is replaced by noise, for every i.

    attend: from query, key, value and whatever else has tokens along axis 2 to an output ``[B, H, N, D]``.
    """
    draw, before = torch.Generator().manual_seed(9), attend(*tensors)
    worst = 0.0
    for i in rows:
        noise = [
            torch.cat([x[:, :, : i + 1], 3 * torch.randn(x[:, :, i + 1 :].shape, generator=draw, dtype=x.dtype)], 2)
            if x.shape[2] == n
            else x
            for x in tensors
        ]
        worst = max(worst, float((attend(*noise)[:, :, : i + 1] - before[:, :, : i + 1]).abs().max()))
    return worst


def attention_of(problem, backend, mask=None):
    def attend(query, key, value, *rest):
        features, given = [], iter(rest)
        for read in problem.features:
            own = next(given)
            own = own if read.key is None else own.repeat_interleave(problem.group, 1)
            features.append(replace(read, query=own, key=None if read.key is None else next(given)))
        with torch.no_grad():
            return masked_attention(query, key, value, mask or problem.mask, backend=backend, features=features)

    return attend


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("reference", torch.float64, 0.0), ("blockwise", torch.float64, 1e-12), ("blockwise", torch.float32, 1e-5)],
)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leaf", LEAVES)
def test_nothing_that_comes_later_changes_a_row(leaf, form, backend, dtype, tolerance):
    for hard in (True, False) if "relevance" in leaf else (True,):
        problem = Problem(form.format(leaf), queries=29, keys=29, rows=1, hard=hard, dtype=dtype)
        tensors = [x.detach() for x in problem.tensors]
        assert leak(attention_of(problem, backend), tensors, range(28), 29) <= tolerance


@pytest.mark.parametrize("score", ["mean", "minmax"])
def test_choices_do_not_depend_on_what_comes_later(score):
    leaf, draw = TopBlocks(4, 2, score), torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 41, 6, generator=draw), torch.randn(41, 6, generator=draw)
    chosen = leaf.choose(queries, leaf.summarize(keys), torch.arange(41))
    for i in range(41):
        q, k = queries.clone(), keys.clone()
        q[:, i + 1 :], k[i + 1 :] = 7, -7
        again = leaf.choose(q, leaf.summarize(k), torch.arange(41))
        assert torch.equal(again[: i + 1], chosen[: i + 1])


class PooledQueries(TopBlocks):
    """A published design that leaks: a block of queries chooses together (XAttention, SeerAttention's prefill)."""

    def choose(self, queries, summaries, positions):
        blocks = positions // self.block
        pooled = torch.stack([queries[..., blocks == block, :].mean(-2) for block in blocks], dim=-2)
        return super().choose(pooled, summaries, positions)


def shifted_groups(query, key, value, *, group=8):
    """A published design that leaks: half a group of shift by `roll`, causal inside of each group (LongLoRA's S2)."""
    rolled = [x.roll(-group // 2, dims=2).unflatten(2, (-1, group)) for x in (query, key, value)]
    output = torch.nn.functional.scaled_dot_product_attention(*rolled, is_causal=True)
    return output.flatten(2, 3).roll(group // 2, dims=2)


def test_published_designs_that_leak_are_caught():
    problem = Problem("top_blocks:block=4,k=2", queries=41, keys=41, rows=1, group=1)
    tensors = [x.detach() for x in problem.tensors]
    assert leak(attention_of(problem, "reference"), tensors, range(40), 41) == 0
    assert leak(attention_of(problem, "reference", PooledQueries(4, 2)), tensors, range(40), 41) > 0.1
    assert leak(attention_of(problem, "blockwise", PooledQueries(4, 2)), tensors, range(40), 41) > 0.1
    tensors = [x[:, :, :40].contiguous() for x in tensors]
    assert leak(shifted_groups, tensors, range(39), 40) > 0.1
