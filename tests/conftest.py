"""Settings and fixtures that tests share: a tiny model and a text on disk, the command line, a place for snippets."""

import os
import shutil
import signal

# Tiny models: a second thread costs more than it gives. Nothing may reach for a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A shell that starts the tests in the background has them ignore Ctrl-C, and so what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from hf_masking.cli import main

settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")
torch.set_num_threads(1)

TEXT = "The quick brown fox jumps over the lazy dog; then it sleeps, and dreams of masks.\n" * 40


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Save a tiny model and its tokenizer, as they would come from the hub."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def text_file(tmp_path):
    """Write a text of a few thousand characters."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line as a shell would; return (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["hf-masking", *map(str, arguments)])
        try:
            main.run()
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def workplace(tmp_path, monkeypatch, model_folder, text_file):
    """A folder with the model and the text that the snippets name."""
    shutil.copytree(model_folder, tmp_path / "my-model")
    text_file.rename(tmp_path / "book.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path
