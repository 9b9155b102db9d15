"""Shards of a sequence in several processes: logits and gradients are those of one process, and so are the bytes."""

import json

import pytest
import torch

from hf_masking import sequence_parallel, shard_batch

from ..processes import TORCHRUN, launch

TOLERANCE = 1e-5  # float32

REFUSED = {
    "cache": "call the model with use_cache=False and generate outside of sequence_parallel",
    "generate": "call the model with use_cache=False and generate outside of sequence_parallel",
    "labels": "leave labels out, and compute the loss from shard_batch(batch, group)['shift_labels']",
    "attentions": "output_attentions=True needs all keys in one process",
    "left padding": "attention_mask has padding before a token; pad on the right",
    "flattened": "cu_seq_lens_q describe a whole row; pass this rank's shard of document_ids instead",
    "shape": "document_ids must be this rank's shard, of shape [2, ",
    "only one": "attention_mask differs (by rank: 0, 1;",
    "one alone": "",
    "unpatched": "no patched model ran on the shards of a sequence",
    "adaptive": "sequence_parallel is for static masks",
    "rope": "rotary embeddings that depend on the length of the forward (dynamic)",
}


def found_by(ranks, folder, drawn=0):
    """Return what each process has found."""
    launch("-m", "tests.modeling.in_shards", folder, drawn, launcher=(*TORCHRUN[:-1], ranks), seconds=1200)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(ranks)]


def worst(found):
    """Return the case with the greatest difference, and the number of cases."""
    cases = [case for each in found for case in each["differences"]]
    return max(cases, key=lambda case: max(case[1:])), len(cases) // len(found)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return found_by(2, tmp_path_factory.mktemp("two"))


def test_logits_and_gradients_are_those_of_one_process(two):
    (case, of_logits, of_gradients), count = worst(two)
    assert count > 40
    assert max(of_logits, of_gradients) <= TOLERANCE, case
    assert max(each["uneven"] for each in two) <= TOLERANCE


def test_the_guide_computes_the_gradients_of_one_process(two):
    assert max(each["snippet"] for each in two) <= TOLERANCE


def test_keys_arrive_and_gradients_return(two):
    assert [each["exchanged"] for each in two] == [[True] * 3] * 2


def test_bytes_sent_are_those_that_the_mask_predicts(two):
    for each in two:
        for mask, (counted, predicted) in each["bytes"].items():
            assert counted == predicted, mask
    assert sum(sum(counted) for each in two for counted, _ in each["bytes"].values())
    assert all(sum(each["bytes"]["block_local:23"][0]) == 0 for each in two)


@pytest.mark.parametrize("use", REFUSED)
def test_wrong_uses_are_refused_by_every_process(two, use):
    assert two[0]["refusals"].keys() == REFUSED.keys()
    for each in two:
        assert each["refusals"][use] is not None
        assert REFUSED[use] in each["refusals"][use]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_two_hundred_compositions_and_every_backend(ranks, tmp_path):
    (case, of_logits, of_gradients), count = worst(found_by(ranks, tmp_path, drawn=200))
    assert count > 600
    assert max(of_logits, of_gradients) <= TOLERANCE, case


def test_without_a_process_group_it_says_what_to_do():
    with (
        pytest.raises(ValueError, match=r"torchrun or accelerate launch, and call .*init_process_group"),
        sequence_parallel(),
    ):
        pass
    with pytest.raises(ValueError, match="needs several processes"):
        shard_batch({"input_ids": torch.zeros(1, 4)})
