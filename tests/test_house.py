"""Imports point one way, and importing changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hf_masking"
FLOORS = ["masks", "adaptive", "plan", "attention", "modeling", "evaluation", "training", "cli"]


def imported(path):
    """The modules of the package that a file imports, as (folder, ...) parts."""
    folder = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            home = folder[: len(folder) - (node.level - 1)]
            yield (*home, *(node.module or "").split("."))


def test_imports_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        floor = path.relative_to(PACKAGE).parts[0]
        for target in imported(path):
            if floor in FLOORS and target[0] in FLOORS:
                assert FLOORS.index(target[0]) <= FLOORS.index(floor), f"{path} imports {'.'.join(target)}"


def test_masks_know_neither_transformers_nor_modules():
    for path in (PACKAGE / "masks").glob("*.py"):
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
        }
        assert not {name for name in names if name and name.split(".")[0] in {"transformers", "accelerate", "nn"}}


def test_importing_changes_no_model_and_needs_no_plotting():
    script = """
import sys, torch
from transformers import AttentionInterface, LlamaConfig, AutoModelForCausalLM
names = set(AttentionInterface().valid_keys())
import hf_masking, hf_masking.cli.app
assert set(AttentionInterface().valid_keys()) == names
hf_masking.patch_model
assert set(AttentionInterface().valid_keys()) - names == {"hf_masking"}
assert "matplotlib" not in sys.modules and "datasets" not in sys.modules
assert all(hasattr(hf_masking, name) for name in hf_masking.__all__)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_imports_no_torch():
    script = """
import sys
import hf_masking
from hf_masking.cli import app
for command in ([], *([command] for command in app.COMMANDS)):
    app.app(args=[*command, "--help"], standalone_mode=False)
assert not {"torch", "transformers", "accelerate", "datasets"} & set(sys.modules)
from hf_masking.training import finetune
assert callable(finetune) and callable(hf_masking.perplexity) and hf_masking.__version__
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
