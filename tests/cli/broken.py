"""Fill a folder with a model and a text that are whole, and with others that are broken."""

import json
import os
import shutil
import socket

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
)

from ..conftest import TEXT

MASKED = {"attn_implementation": "hf_masking.from_pretrained"}
LLAMA = LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
BERT = {"vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
OTHERS = {
    "positions": (AutoModelForCausalLM, GPT2Config(**GPT2, vocab_size=256, n_positions=32)),
    "vocabulary": (AutoModelForCausalLM, GPT2Config(**GPT2, vocab_size=100)),
    "encoder": (AutoModelForSeq2SeqLM, T5Config(vocab_size=256, d_model=16, d_kv=8, num_layers=1, num_heads=2)),
    "classes": (AutoModelForSequenceClassification, LLAMA),
    "bert": (AutoModelForCausalLM, BertConfig(**BERT)),
    "alibi": (AutoModelForCausalLM, BloomConfig(vocab_size=256, hidden_size=16, n_layer=1, n_head=2)),
}
CONFIGS = {
    "unknown_type": {"model_type": "gpt9"},
    "other_shape": {"hidden_size": 32},
    "no_layers": {"num_hidden_layers": 0},
    "less_layers": {"num_hidden_layers": -1},
    "words": {"hidden_size": "many"},
    "wrong_mask": MASKED | {"hf_masking": {"version": 1, "mask": "windw:3"}},
}
DAMAGE = {
    "no_weights": ("model.safetensors", None),
    "empty_weights": ("model.safetensors", b""),
    "other_weights": ("model.safetensors", b"not weights"),
    "no_config": ("config.json", None),
    "empty_config": ("config.json", b""),
    "list_config": ("config.json", b"[1]"),
    "binary_config": ("config.json", b"\xff\xfe\x00"),
    "no_tokenizer": ("tokenizer.json", None),
    "cut_tokenizer": ("tokenizer.json", b'{"version": '),
}
TEXTS = {
    "text.txt": TEXT.encode(),
    "short.txt": b"nine byte",
    "empty.txt": b"",
    "blank.txt": b" \n\n",
    "binary.txt": bytes(range(256)),
    "latin1.txt": "größe".encode("latin1"),
}


def fill(place, model_folder):
    """Put whole and broken models and texts into a folder, and return it."""
    shutil.copytree(model_folder, place / "model")
    config = json.loads((model_folder / "config.json").read_text())
    damage = DAMAGE | {name: ("config.json", json.dumps(config | new).encode()) for name, new in CONFIGS.items()}
    damage["cut_weights"] = ("model.safetensors", (model_folder / "model.safetensors").read_bytes()[:2000])
    for name, (file, content) in damage.items():
        shutil.copytree(model_folder, place / name)
        (place / name / file).unlink()
        if content is not None:
            (place / name / file).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for name, (auto_class, config) in OTHERS.items():
        torch.manual_seed(0)
        auto_class.from_config(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    broken = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.nn.init.constant_(broken.model.layers[0].self_attn.q_proj.weight[:1, :1], float("nan"))
    broken.save_pretrained(place / "nan")
    tokenizer.save_pretrained(place / "nan")
    for name, content in TEXTS.items():
        (place / name).write_bytes(content)
    (place / "void").mkdir()
    (place / "folder").mkdir()
    (place / "folder" / "thesis.dat").write_text("years of work")
    (place / "loop").symlink_to("loop")
    (place / "gone.txt").symlink_to("nowhere.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(place)  # a socket's name is short
        listener.bind("socket")
        os.chdir(here)
    return place
