"""Models whose parameters lie in several processes (FSDP2)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("spec", ["window:4|sinks:1", "span:max=20,ramp=4|sinks:1", "top_blocks:block=4,k=2"])
def test_a_sharded_model_has_the_gradients_of_a_whole_one(spec):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "-m", "tests.training.sharded", spec], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
