"""Train a small LLaMA-style model on Python source: a real model to compare masks on, without a download.

The context grows during training: most tokens are read in short contexts, where attention is cheap, and the last ones
in long contexts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from ..evaluation import Text, encode
from ..files import written_aside
from ..modeling import outline
from ..training.loop import finetune
from ..training.settings import TrainingSettings

_PART = 1_000_000  # characters


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Say what a small model consists of and how it is trained.

    shape: arguments of `LlamaConfig`.
    stages: the settings of each stage, which starts from the best model of the one before.
    train_tokens: length of the text that the stages draw their contexts from.
    """

    shape: Mapping[str, Any]
    stages: tuple[TrainingSettings, ...]
    vocabulary: int = 2048
    train_tokens: int = 700_000
    eval_tokens: int = 4097


SMALL = Recipe(
    # Narrow, so that attention is more than half of a training step at 4,096 tokens.
    shape={
        "hidden_size": 160,
        "intermediate_size": 432,
        "num_hidden_layers": 3,
        "initializer_range": 0.05,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    stages=(
        TrainingSettings(
            context=512, steps=300, batch_size=4, learning_rate=4e-3, eval_every=300, checkpoint_every=100
        ),
        TrainingSettings(
            context=4096,
            steps=24,
            batch_size=1,
            learning_rate=1e-3,
            warmup_steps=4,
            seed=1,
            eval_every=24,
            checkpoint_every=8,
        ),
    ),
    vocabulary=1536,
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
    folders = [run / f"stage-{number}" for number in range(1, len(recipe.stages) + 1)]
    if finished.exists():
        return folders[-1] / "best"
    tokenizer = small_tokenizer(train, held_out, recipe)
    train_ids = _train_ids(train, tokenizer, recipe.train_tokens)
    eval_ids = encode(held_out, tokenizer, recipe.eval_tokens)[0]
    torch.manual_seed(recipe.stages[0].seed)
    model = AutoModelForCausalLM.from_config(_config(recipe, tokenizer.eos_token_id))
    for number, (settings, folder) in enumerate(zip(recipe.stages, folders, strict=True), start=1):
        where = {"stage": number, "stages": len(recipe.stages), "steps": settings.steps}
        finetune(
            model,
            train_ids,
            eval_ids,
            settings,
            output=folder,
            resume=True,
            tokenizer=tokenizer,
            on_record=None if on_record is None else functools.partial(_tell, on_record, where),
        )
        model = AutoModelForCausalLM.from_pretrained(folder / "best")
    finished.touch()
    return folders[-1] / "best"


def _tell(on_record: Callable[[dict[str, Any]], None], where: dict[str, Any], record: dict[str, Any]) -> None:
    on_record(where | record)


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
        max_position_embeddings=4 * recipe.stages[-1].context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
    )


def _folder(train: Text, held_out: Text, recipe: Recipe) -> Path:
    return cache_folder() / f"small-llama-{_fingerprint(recipe, train, held_out)}"


def _fingerprint(recipe: Recipe, train: Text, held_out: Text) -> str:
    """Return a digest of what makes the model, without settings at their defaults: new ones change nothing."""
    defaults = dataclasses.asdict(TrainingSettings())
    stages = [
        {name: value for name, value in dataclasses.asdict(stage).items() if value != defaults[name]}
        for stage in recipe.stages
    ]
    made_of = dataclasses.asdict(recipe) | {"stages": stages, "texts": (train.sha256, held_out.sha256)}
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]


def _train_ids(text: Text, tokenizer: PreTrainedTokenizerFast, most: int) -> Tensor:
    """Return the first tokens of the text ``[N]``, at most so many."""
    found: list[Tensor] = []
    missing = most
    for part in _parts(text.content):
        found.append(torch.tensor(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"][:missing]))
        missing -= len(found[-1])
        if not missing:
            break
    return torch.cat(found)


def _parts(content: str) -> Iterator[str]:
    """Yield a text in parts that end with a line: tokenized at once, a long one would take gigabytes."""
    start = 0
    while start < len(content):
        stop = content.find("\n", start + _PART) + 1 or len(content)
        yield content[start:stop]
        start = stop


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
