"""Fine-tuning of a model that lies in pieces in two processes, by FSDP2 or DeepSpeed's ZeRO."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from hf_masking import from_pretrained, perplexity

from ..processes import launch
from .in_pieces import EVAL, cases_of, run

# What the second process writes into a checkpoint, of what it alone holds: weights, or the optimizer's state.
PIECES = {
    "fsdp2": "pytorch_model_fsdp_0/__1_0.distcp",
    "zero1": "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero2": "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero3": "pytorch_model/zero_pp_rank_1_mp_rank_00_model_states.pt",
}


def names(run):
    with safe_open(run / "best" / "model.safetensors", framework="pt") as file:
        return sorted(file.keys())


def norms(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record["gradient_norm"] for record in log if "loss" in record]


@pytest.mark.parametrize("engine", PIECES)
def test_pieces_train_as_a_whole_model_does(engine, tmp_path):
    launch("-m", "tests.training.in_pieces", engine, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == cases_of(engine)
    for case in found:
        check(case, found[case], tmp_path, PIECES[engine])


def check(case, found, folder, piece):
    """Compare what two processes have found in a case, and written, with a run of a whole model."""
    with pytest.raises(
        ValueError, match=r"step-000004 was written by (FSDP|ZeRO-\d in 2 processes), and cannot be read"
    ):
        run(case, folder / case, resume=True)
    # FSDP cuts layer by layer, ZeRO knows none.
    layers = [name for name in found["layers"] if re.search(r"(layers|h)\.\d+$", name)]
    assert len(layers) == (2 if "fsdp" in piece else 0)
    assert (folder / case / "checkpoints" / "step-000004" / piece).stat().st_size
    _, whole = run(case, folder / f"{case}-whole")
    assert found["losses"] == pytest.approx(whole.losses, abs=1e-5)
    assert found["resumed"] == found["losses"]
    assert found["best"] == [whole.best[0], pytest.approx(whole.best[1], rel=1e-5)]
    mine, theirs = (from_pretrained(path / "best") for path in (folder / case, folder / f"{case}-whole"))
    assert perplexity(mine, EVAL, context=16).perplexity == pytest.approx(whole.best[1], rel=1e-5)
    # Not the weights: Adam makes noise into steps where a gradient is 0, as that of a key's bias is.
    torch.testing.assert_close(mine(EVAL[None]).logits, theirs(EVAL[None]).logits, atol=1e-4, rtol=0)
    assert names(folder / case) == names(folder / f"{case}-whole")
    assert norms(folder / case) == pytest.approx(norms(folder / f"{case}-whole"), rel=1e-4)
