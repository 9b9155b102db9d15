"""One of the two processes of `test_in_two.py`: runs that are stopped, damaged, refused, and that drop out."""

import dataclasses
import json
import logging
import signal
import sys
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from hf_masking import patch_model, perplexity
from hf_masking.interrupts import Interrupted
from hf_masking.training import finetune
from hf_masking.training.process_group import clean_exit

from ..modeling.families import build
from .in_pieces import EVAL, SETTINGS, TRAIN, killed_after

DROPOUT = {"attn_pdrop": 0.1, "resid_pdrop": 0.1}


def run(folder, dropout=False, ranks=1, **more):
    model = patch_model(build("gpt2", **(DROPOUT if dropout else {})), "window:4|sinks:1", check=False)
    settings = dataclasses.replace(SETTINGS, checkpoint_every=1, sequence_parallel=ranks)
    return finetune(model, TRAIN, EVAL, settings, output=folder, **more)


class Messages(logging.Handler):
    """Collect what is logged here."""

    def __init__(self):
        super().__init__()
        self.messages = []
        logging.getLogger("hf_masking").addHandler(self)

    def emit(self, record):
        self.messages.append(record.getMessage())


def stopped(folder):
    """A run that a signal to the second process alone ends; what is raised here."""

    def evaluate(model, token_ids):
        # Before the first step. `on_record` is called in the main process only.
        if not PartialState().is_main_process:
            signal.raise_signal(signal.SIGTERM)
        return perplexity(model, token_ids, context=SETTINGS.context, batch_size=8)

    try:
        run(folder, dropout=True, evaluate=evaluate)
    except Interrupted as stop:
        return str(stop), stop.exit_code
    return None


def main(folder):
    said = Messages()
    found = {"plain": run(folder / "plain").losses, "said of plain": list(said.messages)}
    found["dropout"] = run(folder / "dropout", dropout=True).losses
    found["said of dropout"] = list(said.messages)
    found["stopped"] = stopped(folder / "stopped")
    found["resumed"] = run(folder / "stopped", dropout=True, resume=True).losses
    found["shards"] = run(folder / "shards", dropout=True, ranks=2).losses
    with killed_after(3):
        run(folder / "shards-killed", dropout=True, ranks=2)
    found["shards resumed"] = run(folder / "shards-killed", dropout=True, ranks=2, resume=True).losses
    found["shards without dropout"] = run(folder / "shards-plain", ranks=2).losses
    with killed_after(4):
        run(folder / "damaged", dropout=True)
    if PartialState().is_main_process:
        (folder / "damaged" / "checkpoints" / "step-000003" / "optimizer.bin").write_bytes(b"garbage")
    PartialState().wait_for_everyone()
    said.messages.clear()
    found["fallen back"] = run(folder / "damaged", dropout=True, resume=True).losses
    found["said of damage"] = said.messages
    try:
        run(folder / "damaged")
    except ValueError as error:
        found["refused"] = str(error)
    (folder / f"found-{PartialState().process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    disable_progress_bar()
    with clean_exit():
        main(Path(sys.argv[1]))
