"""Fine-tuning of a model that lies in pieces in two processes, by accelerate's FSDP2."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from hf_masking import from_pretrained, perplexity

from .fsdp import CASES, EVAL, run
from .test_sharded import ROOT


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What two processes have found, and their folders."""
    folder = tmp_path_factory.mktemp("sharded")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.training.fsdp", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "found.json").read_text())


def names(run):
    with safe_open(run / "best" / "model.safetensors", framework="pt") as file:
        return sorted(file.keys())


def norms(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record["gradient_norm"] for record in log if "loss" in record]


@pytest.mark.parametrize("case", CASES)
def test_pieces_train_as_a_whole_model_does(sharded, case, tmp_path):
    folder, found = sharded
    found = found[case]
    assert sum(re.search(r"(layers|h)\.\d+$", name) is not None for name in found["layers"]) == 2
    _, whole = run(case, tmp_path / "whole")
    assert found["losses"] == pytest.approx(whole.losses, abs=1e-5)
    assert found["resumed"] == found["losses"]
    assert found["best"] == [whole.best[0], pytest.approx(whole.best[1], rel=1e-5)]
    mine, theirs = (from_pretrained(path / "best") for path in (folder / case, tmp_path / "whole"))
    assert perplexity(mine, EVAL, context=16).perplexity == pytest.approx(whole.best[1], rel=1e-5)
    # Not the weights: Adam makes noise into steps where a gradient is 0, as that of a key's bias is.
    torch.testing.assert_close(mine(EVAL[None]).logits, theirs(EVAL[None]).logits, atol=1e-4, rtol=0)
    assert names(folder / case) == names(tmp_path / "whole")
    assert norms(folder / case) == pytest.approx(norms(tmp_path / "whole"), rel=1e-4)
