"""Measure the figures of the README: python scripts/bench_attention.py --preset readme --output docs/bench.json"""

import sys

from hf_masking.cli.main import run

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    run()
