"""What the commands make of a checkpoint: whole, or a message."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

NEEDED = "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    "command",
    [("eval", "--data", "TEXT"), ("generate", "--prompt", "a", "--mask", "causal"), ("check", "--mask", "causal")],
)
def test_missing_weights_are_named(run, model_folder, text_file, tmp_path, command):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights[NEEDED]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    name, *options = (text_file if argument == "TEXT" else argument for argument in command)
    code, out, err = run(name, folder, *options)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ") and f"lacks weights of LlamaForCausalLM, which would be random: {NEEDED}" in line
