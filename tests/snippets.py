"""Find the snippets of a page, and run them."""

import re
import shlex

# Sizes for a test, in place of those of a real run.
SMALL = {"eval": ["--context", "32"], "finetune": ["--context", "16", "--steps", "3"], "check": ["--length", "9"]}
# Two seeds take twice the processes and have a test of their own.
SMALL["compare"] = ["--context", "16", "--steps", "3", "--eval-tokens", "65", "--seeds", "1", "--longest", "256"]
SMALL["bench"] = ["--length", "64", "--rounds", "1", "--heads", "1", "--head-size", "8"]


def blocks(page, *languages):
    """Return (language, text) of each block in these languages, in order."""
    return re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(block):
    """Return the command lines of hf-masking; others run this very test, or take a network or an hour."""
    lines = block.replace("\\\n", " ").splitlines()
    # `compare` without a model trains one for minutes: `make demo` is its test.
    return [line for line in lines if line.startswith("hf-masking ") and line != "hf-masking compare"]


def run_small(run, command, sizes=SMALL):
    """Run a command at the sizes of a test."""
    words = shlex.split(command, comments=True)[1:]
    code, _, err = run(*words, *sizes.get(words[0], []))
    assert code == 0, f"{command}\n{err}"
