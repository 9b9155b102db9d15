"""Launches other processes, one or several; what hangs fails with what each of them was doing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
PYTHON = (sys.executable,)
# Both find free ports themselves: tests run beside each other.
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--main_process_port", "0")


def launch(*command, launcher=TORCHRUN, seconds=300, **environment):
    """Launch a module (`"-m", name`) or a script with its arguments, from the root of the project.

    Returns what has run, with its `stdout` and `stderr`; fails with both unless all ends with 0 within so many seconds.
    """
    # On a signal each Python writes down where it is.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"} | environment
    words = [str(word) for word in (*launcher, *command)]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        pytest.fail(f"not done after {seconds} seconds: {' '.join(words)}\n{out}\n{err}")
    assert process.returncode == 0, f"exit code {process.returncode}: {' '.join(words)}\n{out}\n{err}"
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _end(process):
    """End a launcher and all that it has started; returns what they have written."""
    # Workers have sessions of their own, and would outlive their launcher.
    launcher = psutil.Process(process.pid)
    everyone = [*launcher.children(recursive=True), launcher]
    for each in everyone:
        each.send_signal(signal.SIGABRT)
    _, alive = psutil.wait_procs(everyone, timeout=30)
    for each in alive:
        each.kill()
    return process.communicate()
