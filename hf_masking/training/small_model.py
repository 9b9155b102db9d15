"""A small LLaMA-style model of Python source, trained here: something real to compare masks on, without a download."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from ..evaluation import Text, encode
from ..files import written_aside
from .finetune import finetune
from .settings import TrainingSettings

VOCABULARY = 2048
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "initializer_range": 0.05,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SETTINGS = TrainingSettings(
    context=512,
    steps=300,
    batch_size=4,
    learning_rate=4e-3,
    warmup_steps=20,
    eval_every=300,
    checkpoint_every=100,
)
TRAINING_TOKENS, EVAL_TOKENS = 700_000, 4 * 513


def cache_folder() -> Path:
    """Where trained models are kept: $HF_MASKING_CACHE, else hf_masking in the user's cache folder."""
    if "HF_MASKING_CACHE" in os.environ:
        return Path(os.environ["HF_MASKING_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hf_masking"


def small_model(train: Text, held_out: Text, on_record: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """The folder of the model for this text, trained now unless that was done before.

    An interrupted training goes on from its last checkpoint.
    """
    recipe = repr((SHAPE, VOCABULARY, SETTINGS, TRAINING_TOKENS, train.sha256, held_out.sha256))
    run = cache_folder() / f"small-llama-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    finished = run / "finished"
    if finished.exists():
        return run / "best"
    tokenizer = _tokenizer(train, cache_folder() / f"{run.name}-tokenizer.json")
    torch.manual_seed(SETTINGS.seed)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=VOCABULARY,
        max_position_embeddings=4 * SETTINGS.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    finetune(
        AutoModelForCausalLM.from_config(config),
        encode(train, tokenizer, TRAINING_TOKENS)[0],
        encode(held_out, tokenizer, EVAL_TOKENS)[0],
        SETTINGS,
        output=run,
        resume=True,
        tokenizer=tokenizer,
        on_record=on_record,
    )
    finished.touch()
    return run / "best"


def _tokenizer(text: Text, path: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the text, kept in a file: a resumed training must cut the text as before."""
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text.content[:2_000_000].splitlines(keepends=True), trainer)
        with written_aside(path) as aside:
            tokenizer.save(str(aside))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|endoftext|>")
