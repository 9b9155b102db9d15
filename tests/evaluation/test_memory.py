"""Peak memory is that of the process, not of the one that started it."""

import json
import subprocess
import sys

import torch

from hf_masking.evaluation import peak_memory

SCRIPT = """
import json, torch
from hf_masking.evaluation.memory import peak_memory
before = peak_memory()
block = torch.ones(2**26)
del block
print(json.dumps([before, peak_memory()]))
"""


def test_it_is_the_peak_of_this_process_alone():
    held = torch.ones(2**28)  # 1 GiB
    # In a process of its own: what this one has held before may be more than any block here.
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    before, after = json.loads(done.stdout)
    assert before < 2**30 <= peak_memory()
    # The block took 256 MiB, and is gone again.
    assert after > before + 200 * 2**20
    assert held[-1] == 1
