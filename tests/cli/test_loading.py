"""How the commands load a model: dtype, device, revision, code of its own, backend, masks from a file."""

import json
import shutil

import pytest
import torch

from hf_masking import MaskConfig
from hf_masking.cli import loading
from hf_masking.cli.options.groups import LoadingOptions

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(model_folder, tmp_path):
    """A model whose classes are in its folder."""
    folder = shutil.copytree(model_folder, tmp_path / "own")
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own_llama",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def evaluated(run, *arguments):
    code, out, err = run("eval", *arguments, "--context", "16", "--max-tokens", "65", "--output", "-")
    assert code == 0, err
    return json.loads(out)


def test_the_dtype_is_that_of_the_weights(model_folder):
    assert loading.load_placed(str(model_folder), LoadingOptions(dtype="bfloat16")).dtype == torch.bfloat16
    assert loading.load_placed(str(model_folder), LoadingOptions(device="cpu")).device.type == "cpu"


def test_code_of_a_model_runs_only_when_trusted(run, own_code, text_file):
    code, out, err = run("eval", own_code, "--data", text_file, "--context", "16")
    assert (code, out) == (2, "") and "allow it with --trust-remote-code" in err and err.count("\n") == 1
    report = evaluated(run, own_code, "--data", text_file, "--trust-remote-code")
    assert [row["mask"] for row in report["rows"]] == ["causal"]


def test_a_mask_from_a_file(run, model_folder, text_file, tmp_path):
    path = tmp_path / "masks.json"
    MaskConfig("window:4", layers={0: "causal"}).save(path)
    report = evaluated(run, model_folder, "--data", text_file, "--mask", "causal", "--mask-config", path)
    assert [row["runs"] for row in report["rows"]] == ["causal", "window:4; layer 0: causal"]
    assert [row["layers"] for row in report["rows"]] == [{}, {"0": "causal"}]
    assert [row["replace_model_window"] for row in report["rows"]] == [False, False]
    assert not {"layers", "replace_model_window"} & report.keys()
    code, _, err = run("eval", model_folder, "--mask-config", path, "--layer", "0=causal", "--data", text_file)
    assert code == 2 and "--layer goes with --mask; --mask-config has its own" in err


def test_the_backend_is_kept_in_the_run(run, model_folder, text_file, tmp_path):
    code, _, err = run(
        "finetune", model_folder, "--mask", "window:4", "--backend", "reference", "--data", text_file, "--steps", "1",
        "--warmup-steps", "0", "--context", "16", "--eval-tokens", "65", "--output", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["backend"] == "reference"


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--dtype must be one of float32, float64, bfloat16, float16, got 'int8'", ["--dtype", "int8"]),
        ("--device must be cpu or cuda, got 'tpu'", ["--device", "tpu"]),
        ("--device must be cpu or cuda, got 'cuda:x'", ["--device", "cuda:x"]),
        ("--device cuda:99: no such CUDA device is available", ["--device", "cuda:99"]),
        ("fast", ["--mask", "causal", "--backend", "fast"]),
        ("nowhere.json", ["--mask-config", "nowhere.json"]),
    ],
)
def test_what_cannot_be_loaded(run, model_folder, message, arguments):
    code, out, err = run("eval", model_folder, *arguments, "--context", "16", "--max-tokens", "65")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_revision_is_passed_on(run, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "hf_masking.evaluation.loading.AutoTokenizer.from_pretrained", lambda *_, **where: asked.append(where)
    )
    run("eval", "someone/model", "--revision", "v2", "--context", "16")
    assert asked[0] == {"revision": "v2", "trust_remote_code": False}
