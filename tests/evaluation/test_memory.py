"""Peak memory is that of the process, not of the one that started it."""

import subprocess
import sys

import torch

from hf_masking.evaluation import peak_memory


def test_it_is_a_peak():
    before = peak_memory()
    block = torch.ones(2**26)  # 256 MiB
    del block
    assert peak_memory() > before + 100 * 2**20 or before > 10**9


def test_a_child_does_not_inherit_it():
    block = torch.ones(2**28)  # 1 GiB
    script = "from hf_masking.evaluation.memory import peak_memory; print(peak_memory())"
    child = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert child < 2**30 <= peak_memory()
    assert block[-1] == 1
