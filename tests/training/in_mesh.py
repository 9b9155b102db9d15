"""One of the four processes of `test_mesh.py`: two groups of two processes, each of which shares its contexts."""

import dataclasses
import json
import sys
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from hf_masking import patch_model
from hf_masking.training import finetune
from hf_masking.training.process_group import clean_exit

from ..modeling.families import build, tokens
from .in_pieces import SETTINGS, killed_after

# The last context is padded, in the shards of one process wholly.
TRAIN, EVAL = tokens(1, 16 * 9 + 6, seed=1)[0], tokens(1, 100, seed=2)[0]
# mask, family, changes of the settings
CASES = {
    "halo": ("window:4|sinks:1", "gpt2", {}),
    "checkpointing": ("heads[strided:3; window:3]", "llama", {"gradient_checkpointing": True, "micro_batch_size": 3}),
}


def run(case, folder, ranks=1, **more):
    mask, family, changes = CASES[case]
    model = patch_model(build(family), mask, check=False)
    settings = dataclasses.replace(SETTINGS, **changes, sequence_parallel=ranks)
    return finetune(model, TRAIN, EVAL, settings, output=folder, **more)


def figures(result):
    return {"losses": result.losses, "evaluations": list(result.evaluations.values())}


def refusal(mask, **changes):
    """Return the sentence with which a run on shards is refused."""
    model = build("llama")
    model = model if mask is None else patch_model(model, mask, check=False)
    try:
        finetune(model, TRAIN, EVAL, dataclasses.replace(SETTINGS, **changes))
    except ValueError as error:
        return str(error)
    return None


def main(folder):
    found = {case: figures(run(case, folder / case, ranks=2)) for case in CASES}
    found["one context"] = figures(run("halo", folder / "one", ranks=4))
    with killed_after(3):
        run("halo", folder / "killed", ranks=2)
    found["resumed"] = figures(run("halo", folder / "killed", ranks=2, resume=True))
    found["refused"] = {
        "adaptive": refusal("relevance&window:8", sequence_parallel=2),
        "unpatched": refusal(None, sequence_parallel=2),
        "three": refusal("causal", sequence_parallel=3),
        "short": refusal("causal", sequence_parallel=4, context=3),
        "batch": refusal("causal", sequence_parallel=2, batch_size=3),
    }
    (folder / f"found-{PartialState().process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    disable_progress_bar()
    with clean_exit():
        main(Path(sys.argv[1]))
