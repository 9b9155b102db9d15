"""Every example and the notebook run on a CPU without a network, at small sizes."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import pytest

from .processes import PYTHON, launch

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
# Arguments that make an example short; at their defaults some take minutes.
SMALL = {
    "adaptive_span.py": ["20"],
    "long_context.py": ["3000"],
    "prefix_lm_summarization.py": ["20"],
    "streaming_generation.py": ["1000"],
    "top_blocks_recall.py": ["20"],
}
FINE_TUNE = ["finetune_gpt2.py", "finetune_llama.py", "finetune_trainer.py", "finetune_trl.py"]
# TRL uses names that Transformers has deprecated.
WARNINGS = {"finetune_trl.py": "default", "lm_evaluation_harness.py": "default"}
# The harness brings 50 packages, scikit-learn among them: `make test-lm-eval` runs its example.
NOT_INSTALLED = [] if importlib.util.find_spec("lm_eval") else ["lm_evaluation_harness.py"]


def output_of(example, *arguments):
    warnings = WARNINGS.get(example, "error")
    return launch(f"examples/{example}", *arguments, launcher=PYTHON, PYTHONWARNINGS=warnings).stdout


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example not in FINE_TUNE + NOT_INSTALLED])
def test_an_example_runs(example):
    assert output_of(example, *SMALL.get(example, []))


def test_spans_are_printed():
    first, *_ = output_of("adaptive_span.py", "1").splitlines()
    assert first == "spans at the start [[256, 256, 256, 256], [256, 256, 256, 256]]"


@pytest.mark.parametrize("example", FINE_TUNE)
def test_fine_tuning_runs_without_a_network(example, tmp_path):
    assert output_of(example, "--steps", "2", "--output", tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("example", FINE_TUNE[:3])
def test_fine_tuning_takes_a_model_and_a_text(example, model_folder, text_file, tmp_path):
    given = ["--model", model_folder, "--data", text_file, "--context", "32", "--steps", "2"]
    output = output_of(example, *given, "--output", tmp_path / "run")
    assert "before training: " in output
    assert "after training: " in output


@pytest.mark.parametrize("example", FINE_TUNE[:2])
def test_loops_that_people_copy_are_short(example):
    assert len((ROOT / "examples" / example).read_text().splitlines()) <= 80


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_says_how_to_run_it(example):
    docstring = (ROOT / "examples" / example).read_text().split('"""')[1]
    assert f"\npython examples/{example}" in docstring


NOTEBOOK = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join(line for output in cell["outputs"] for line in output.get("text", []))


def test_the_notebook_prints_what_is_stored_in_it():
    namespace = {}
    for cell in CODE:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), namespace)
        # DeepSpeed, where it is installed, logs to standard output.
        lines = [line for line in out.getvalue().splitlines(keepends=True) if "real_accelerator.py" not in line]
        assert "".join(lines) == printed(cell)


def test_the_notebook_shows_a_mask():
    assert any("text/html" in output.get("data", {}) for cell in CODE for output in cell["outputs"])
