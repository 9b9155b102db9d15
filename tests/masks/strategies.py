"""Random masks for property tests."""

from hypothesis import strategies as st

from hf_masking.masks import (
    AfterPrompt,
    BlockCausal,
    BlockLocal,
    Causal,
    Dilated,
    LogSparse,
    Mask,
    Offsets,
    Prefix,
    Prompt,
    Sinks,
    SlidingWindow,
    Spans,
    Strided,
    Summary,
)

small = st.integers(1, 9)

patterns: st.SearchStrategy[Mask] = st.one_of(
    st.just(Causal()),
    st.builds(SlidingWindow, small),
    st.builds(BlockCausal, small),
    st.builds(BlockLocal, small, st.integers(0, 3)),
    st.builds(Offsets, st.lists(st.integers(0, 20), min_size=1, max_size=6).map(tuple)),
    st.builds(Strided, small),
    st.builds(Dilated, small, small),
    st.builds(LogSparse, st.integers(2, 5)),
    st.builds(Sinks, small),
    st.builds(Prefix, st.integers(0, 12)),
    st.builds(Prompt, st.integers(0, 12)),
    st.builds(AfterPrompt, st.integers(0, 12)),
    st.lists(st.integers(0, 20), min_size=2, max_size=7, unique=True).map(
        lambda edges: Spans(tuple(sorted(edges))[: len(edges) // 2 * 2])
    ),
    st.builds(lambda stride, width: Summary(stride, min(stride, width)), small, small),
)


def _compose(masks: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
    return st.one_of(
        st.builds(lambda a, b: a | b, masks, masks),
        st.builds(lambda a, b: a & b, masks, masks),
        st.builds(lambda a, b: a - b, masks, masks),
    )


expressions: st.SearchStrategy[Mask] = st.recursive(patterns, _compose, max_leaves=5)
