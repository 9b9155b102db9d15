"""Run `hf-masking generate MODEL`: stream text under a mask, and report the cache."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, TextStreamer

from ..evaluation import CacheSize, cache_size, load_text, tokenize
from ..evaluation.loading import check_vocabulary, load_tokenizer
from ..modeling import check_fits, label_of
from .loading import check_loading, load_placed
from .masking import check_one_mask, check_specs, chosen, most_lookahead, put_into
from .options.generate import GenerateOptions
from .terminal import console, errors
from .values import at_least, at_most, utf_8

MOST = 2**31 - 1  # tokens; no cache holds more
COLDEST = 1e-6  # temperature; scores divided by much less are infinite


def run(options: GenerateOptions) -> None:
    """Generate text, and print the speed and the size of the cache."""
    masks = options.masks
    check_one_mask(masks, "generate")
    _check(options)
    check_specs(masks)
    check_loading(options.loading)
    tokenizer = load_tokenizer(options.model, **options.loading.where())
    prompt = _prompt(options)
    tokens = _chat_tokens(tokenizer, prompt) if options.chat else tokenize(tokenizer, prompt, return_tensors="pt")
    if not tokens["input_ids"].numel():
        raise ValueError("the prompt has no tokens; give one: --prompt 'Once upon a time'")
    loaded = load_placed(options.model, options.loading)
    check_vocabulary(loaded, tokenizer)
    _check_positions(loaded, tokens["input_ids"], options)
    (spec,) = chosen(loaded, masks)
    put_into(loaded, spec, masks)
    worst, lookahead = most_lookahead(loaded)
    if lookahead:
        raise ValueError(f"{worst} looks {lookahead} tokens ahead: no generation; use a causal mask")
    cache = DynamicCache(config=loaded.config)
    started = time.perf_counter()
    if not options.chat and not options.json:
        console.print(prompt, end="", soft_wrap=True)
    new = _write(loaded, tokenizer, tokens.to(loaded.device), cache, options)
    found = _figures(label_of(loaded), len(new), time.perf_counter() - started, cache_size(cache))
    if options.json:
        text = tokenizer.decode(new, skip_special_tokens=True)
        console.print(json.dumps({"prompt": prompt, "text": text} | found, indent=2), soft_wrap=True)
    else:
        errors.print(_lines(found))


def _check(options: GenerateOptions) -> None:
    utf_8(prompt=options.prompt)
    at_least(1, max_new_tokens=options.max_new_tokens)
    at_most(MOST, max_new_tokens=options.max_new_tokens)
    if not 0 <= options.temperature < math.inf:
        raise ValueError(f"--temperature must be at least 0 and finite, got {options.temperature}")
    if 0 < options.temperature < COLDEST:
        raise ValueError(
            f"--temperature must be 0, which takes the likeliest token, or at least {COLDEST}, got "
            f"{options.temperature}"
        )
    if not -(2**63) <= options.seed < 2**63:
        raise ValueError(f"--seed must fit into 64 bits, got {options.seed}")
    if not 0 < options.top_p <= 1:
        raise ValueError(f"--top-p must be above 0 and at most 1, got {options.top_p}")


def _prompt(options: GenerateOptions) -> str:
    """Return the prompt, from the command line or a file without its last line break."""
    if options.prompt_file is None:
        return options.prompt
    if options.prompt:
        raise ValueError("--prompt and --prompt-file both give a prompt; leave one of them out")
    path = options.prompt_file
    if str(path) != "-" and (path.is_dir() or not path.exists()):
        raise ValueError(f"--prompt-file {path}: no such file; name a text file, or - for standard input")
    return load_text(str(path) if str(path) == "-" else str(path.absolute())).content.removesuffix("\n")


def _chat_tokens(tokenizer: Any, prompt: str) -> Any:
    """Return the tokens of a chat that begins with the prompt."""
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; leave --chat out")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )


def _check_positions(model: PreTrainedModel, prompt: Tensor, options: GenerateOptions) -> None:
    # The last token that is generated is not read.
    read = prompt.shape[1] + options.max_new_tokens - 1
    check_fits(model, prompt, read, f"a prompt of {prompt.shape[1]} and --max-new-tokens {options.max_new_tokens}")


def _write(
    model: PreTrainedModel, tokenizer: Any, tokens: Any, cache: DynamicCache, options: GenerateOptions
) -> Tensor:
    """Print the text as it is generated, unless JSON is asked for; return the new tokens ``[N]``."""
    sampling = {"temperature": options.temperature, "top_p": options.top_p} if options.temperature else {}
    torch.manual_seed(options.seed)
    streamer = None if options.json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sequences: Tensor = model.generate(
        **tokens,
        past_key_values=cache,
        max_new_tokens=options.max_new_tokens,
        do_sample=bool(options.temperature),
        streamer=streamer,
        **sampling,
    )
    return sequences[0, tokens["input_ids"].shape[1] :]


def _figures(mask: str, new_tokens: int, seconds: float, size: CacheSize) -> dict[str, Any]:
    return {
        "mask": mask,
        "new_tokens": new_tokens,
        "seconds": seconds,
        "tokens_per_second": new_tokens / seconds,
        "cache": {
            "retained_keys": size.kept,
            "keys": size.seen,
            "held_bytes": size.held_bytes,
            "full_bytes": size.full_bytes,
        },
    }


def _lines(found: dict[str, Any]) -> str:
    cache = found["cache"]
    return (
        f"mask    {found['mask']}\n"
        f"speed   {found['tokens_per_second']:,.1f} tokens/s ({found['new_tokens']:,} tokens in "
        f"{found['seconds']:.1f} s, the prompt included)\n"
        f"cache   {cache['retained_keys']:,} of {cache['keys']:,} keys retained, "
        f"{cache['held_bytes'] / 2**20:,.2f} MiB; a full cache holds {cache['full_bytes'] / 2**20:,.2f} MiB"
    )
