"""One of the processes of `test_process_group.py`: it ends right after a collective, whose thread has no time."""

import sys

import torch
import torch.distributed as dist

from hf_masking.training.process_group import clean_exit

if __name__ == "__main__":
    with clean_exit():
        dist.init_process_group("gloo")
        # As modules of torch keep it that take it as a default; else its threads would end with it.
        kept = dist.group.WORLD
        # From here on other threads get the interpreter only when this one waits.
        sys.setswitchinterval(1000)
        mine, everyone = torch.ones(100_000), [torch.empty(100_000) for _ in range(2)]
        for _ in range(200):
            dist.all_gather(everyone, mine)
        if sys.argv[1] == "fails":
            raise ValueError("as it should")
