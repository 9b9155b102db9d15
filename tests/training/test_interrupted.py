"""Ctrl-C and SIGTERM while a run goes on."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from hf_masking import interrupts
from hf_masking.comparison.trials import Trial
from hf_masking.interrupts import Interrupted, noted
from hf_masking.training import finetune

from ..processes import ROOT
from .test_damage import train
from .test_finetune import EVAL, SETTINGS, TRAIN, model

HANDLERS = {number: signal.getsignal(number) for number in interrupts.SIGNALS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(folder), lines(folder)


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    yield
    assert {number: signal.getsignal(number) for number in interrupts.SIGNALS} == HANDLERS


def lines(folder):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "tokens_per_second"} for record in log]


def at(step, *signals):
    """Sends signals when the line of a step is written."""

    def on_record(record):
        if record["step"] == step and "loss" in record:
            for number in signals:
                signal.raise_signal(number)

    return on_record


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_stops_a_run_with_a_checkpoint(tmp_path, whole, caplog, step, number):
    """After 1 step; after 3, where it would be evaluated; after the last."""
    with pytest.raises(Interrupted, match=f"stopped after step {step} of 8, with a checkpoint") as stopped:
        train(tmp_path, on_record=at(step, number))
    assert stopped.value.exit_code == 128 + number
    assert caplog.messages == ["stopping after this step, with a checkpoint; a second signal stops at once"]
    assert (tmp_path / "checkpoints" / f"step-00000{step}").is_dir()
    resumed = train(tmp_path, resume=True)
    assert resumed.losses == whole[0].losses
    assert resumed.evaluations == whole[0].evaluations
    assert lines(tmp_path) == whole[1]


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    # `timeout` sends one twice: that is one.
    with pytest.raises(Interrupted, match="after step 1"):
        train(tmp_path / "one", on_record=at(1, signal.SIGINT, signal.SIGINT))
    monkeypatch.setattr(interrupts, "_TOGETHER", -1)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(tmp_path / "two", on_record=at(1, signal.SIGINT, signal.SIGINT))
    assert not isinstance(stopped.value, Interrupted)
    assert not (tmp_path / "two").exists()


def test_a_run_without_a_folder_has_nothing_to_save():
    with pytest.raises(KeyboardInterrupt) as stopped:
        finetune(model(), TRAIN, EVAL, SETTINGS, on_record=at(1, signal.SIGINT))
    assert not isinstance(stopped.value, Interrupted)


class Signalling(io.RawIOBase):
    """A stream during whose first write a signal comes."""

    def __init__(self):
        self.written = []

    def writable(self):
        return True

    def write(self, text):
        if not self.written:
            signal.raise_signal(signal.SIGTERM)
        self.written.append(bytes(text))
        return len(text)


def test_a_signal_that_comes_while_its_message_cannot_be_written():
    raw, told = Signalling(), threading.Event()
    stream = io.BufferedWriter(raw)

    def tell():
        stream.write(b"stopping")
        stream.flush()
        told.set()

    with noted(tell) as found:
        stream.write(b"a line")
        stream.flush()
        assert told.wait(10)
    assert found.number == signal.SIGTERM
    assert raw.written == [b"a line", b"stopping"]


def test_handlers_of_a_program_stay(tmp_path):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("term")), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(tmp_path, on_record=at(1, signal.SIGTERM, signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert came == ["term"]


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_the_command_says_how_it_goes_on(run, model_folder, text_file, tmp_path, monkeypatch, number):
    steps = ["--context", "16", "--steps", "4", "--batch-size", "4", "--eval-tokens", "65", "--warmup-steps", "1"]
    command = ["finetune", str(model_folder), "--data", str(text_file), *steps, "--mask", "window:4|sinks:1"]
    with monkeypatch.context() as patch:
        stop = at(2, number)
        patch.setattr("hf_masking.cli.finetune._teller", lambda *_: stop)
        code, _, err = run(*command, "--output", tmp_path / "my run")
    assert code == 128 + number
    said = err.splitlines()
    assert said[-1].startswith("interrupted: stopped after step 2 of 4, with a checkpoint; continue with: hf-masking ")
    again = shlex.split(said[-1].split("continue with: ")[1])
    assert again == ["hf-masking", *command, "--output", str(tmp_path / "my run"), "--resume"]
    code, _, err = run(*again[1:])
    assert code == 0, err
    assert re.search(r"perplexity before \d+\.\d+; best perplexity", err)
    run(*command, "--output", tmp_path / "whole")
    assert lines(tmp_path / "my run") == lines(tmp_path / "whole")


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_other_commands_say_one_line(run, model_folder, text_file, monkeypatch, number):
    monkeypatch.setattr("hf_masking.cli.eval.load_tokenizer", lambda name, **where: signal.raise_signal(number))
    code, out, err = run("eval", model_folder, "--data", text_file)
    assert (code, out, err) == (128 + number, "", "interrupted\n")


def wait_for(found, seconds=120):
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


def is_alive(pid):
    """Zombies, which nobody has asked for yet, are not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_of_its_own_ends_with_its_parent(tmp_path, number):
    """Ctrl-C reaches both of them, the other signals reach the parent."""
    note = tmp_path / "pid"
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.training.waiting", str(note)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: note.exists() and note.read_text())
    child = int(note.read_text())
    assert is_alive(child)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)
    else:
        parent.send_signal(number)
    _, err = parent.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert "Traceback" not in err
    else:
        assert (err, parent.returncode) == ("", 128 + number)
    wait_for(lambda: not is_alive(child))


def test_an_interrupted_comparison_says_how_it_goes_on(run, model_folder, text_file, tmp_path, monkeypatch):
    def trials(experiment, pairs, tell):
        for done, (mask, seed) in enumerate(pairs):
            if done == finished:
                raise KeyboardInterrupt
            yield Trial(mask, seed, recovery={0: 9.0, 1: 8.0}, by_position=(1.0,), seconds=1.0)

    monkeypatch.setattr("hf_masking.comparison.run.try_masks", trials)
    command = ["compare", str(model_folder), "--data", str(text_file), "--mask", "causal", "--mask", "window:4|sinks:1"]
    command += ["--context", "16", "--longest", "0", "--output", str(tmp_path / "out")]
    finished = 0
    code, _, err = run(*command)
    assert (code, err) == (130, "interrupted: 0 of 2 trials are finished, and nothing is kept\n")
    assert not (tmp_path / "out").exists()
    finished = 1
    code, _, err = run(*command)
    *_, said = err.splitlines()
    again = f"continue with: hf-masking {shlex.join(command)} --resume"
    assert (code, said) == (130, f"interrupted: 1 of 2 trials are kept in {tmp_path / 'out'}; {again}")
    code, _, err = run(*command, "--resume")
    assert "1 of 2 trials are there already" in err
