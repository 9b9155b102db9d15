"""Fine-tune under a mask on any number of processes:

    accelerate launch scripts/finetune.py gpt2 --mask 'window:256|sinks:4' --data book.txt --output runs/window

The same command as ``hf-masking finetune``; all options are in ``--help``.
"""

import sys

from hf_masking.cli.main import run

if __name__ == "__main__":
    sys.argv.insert(1, "finetune")
    run()
