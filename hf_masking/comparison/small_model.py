"""Train a small LLaMA-style model on Python source: a real model to compare masks on, without a download."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..evaluation import Text, encode
from ..files import written_aside
from ..modeling import outline
from ..training.loop import finetune
from ..training.settings import TrainingSettings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Say what a small model consists of and how it is trained.

    shape: arguments of `LlamaConfig`.
    """

    shape: Mapping[str, Any]
    settings: TrainingSettings
    vocabulary: int = 2048
    train_tokens: int = 700_000
    eval_tokens: int = 4 * 513


SMALL = Recipe(
    shape={
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "initializer_range": 0.05,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    settings=TrainingSettings(
        context=512,
        steps=300,
        batch_size=4,
        learning_rate=4e-3,
        warmup_steps=20,
        eval_every=300,
        checkpoint_every=100,
    ),
)


def cache_folder() -> Path:
    """Return where trained models are kept: $HF_MASKING_CACHE, or hf_masking in the user's cache folder."""
    if "HF_MASKING_CACHE" in os.environ:
        return Path(os.environ["HF_MASKING_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hf_masking"


def small_model(
    train: Text,
    held_out: Text,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    recipe: Recipe = SMALL,
) -> Path:
    """Return the folder of the model for this text, and train it first unless that was done before.

    An interrupted training continues from its last checkpoint.
    """
    run = _folder(train, held_out, recipe)
    finished = run / "finished"
    if finished.exists():
        return run / "best"
    settings = recipe.settings
    tokenizer = small_tokenizer(train, held_out, recipe)
    torch.manual_seed(settings.seed)
    finetune(
        AutoModelForCausalLM.from_config(_config(recipe, tokenizer.eos_token_id)),
        encode(train, tokenizer, recipe.train_tokens)[0],
        encode(held_out, tokenizer, recipe.eval_tokens)[0],
        settings,
        output=run,
        resume=True,
        tokenizer=tokenizer,
        on_record=on_record,
    )
    finished.touch()
    return run / "best"


def small_tokenizer(train: Text, held_out: Text, recipe: Recipe = SMALL) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the model for this text, and train it first unless that was done before."""
    run = _folder(train, held_out, recipe)
    return _tokenizer(train, recipe.vocabulary, run.with_name(f"{run.name}-tokenizer.json"))


def small_outline(recipe: Recipe = SMALL) -> PreTrainedModel:
    """Return the model without weights, as it is before training."""
    return outline(_config(recipe, None))


def _config(recipe: Recipe, eos_token_id: int | None) -> LlamaConfig:
    return LlamaConfig(
        **recipe.shape,
        vocab_size=recipe.vocabulary,
        max_position_embeddings=4 * recipe.settings.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
    )


def _folder(train: Text, held_out: Text, recipe: Recipe) -> Path:
    return cache_folder() / f"small-llama-{_fingerprint(recipe, train, held_out)}"


def _fingerprint(recipe: Recipe, train: Text, held_out: Text) -> str:
    """Return a digest of what makes the model, without settings at their defaults: new ones change nothing."""
    settings = {
        option.name: value
        for option in dataclasses.fields(recipe.settings)
        if (value := getattr(recipe.settings, option.name)) != option.default
    }
    made_of = dataclasses.asdict(recipe) | {"settings": settings, "texts": (train.sha256, held_out.sha256)}
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]


def _tokenizer(text: Text, vocabulary: int, path: Path) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of the text, kept in a file: a resumed training must tokenize alike."""
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text.content[:2_000_000].splitlines(keepends=True), trainer)
        with written_aside(path) as aside:
            tokenizer.save(str(aside))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|endoftext|>")
