"""Every mode of generation against recomputation, and a planted fault for every mode that turns its row red."""

import copy
import re

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModel, AutoModelForCausalLM, RobertaConfig

from hf_masking import check_generation, parse_mask
from hf_masking.modeling import batch, patch_model, unpatch_model
from hf_masking.modeling.batch import Batch
from hf_masking.modeling.caching import eviction
from hf_masking.modeling.caching.layer import MaskedLayer
from hf_masking.modeling.checking import generation
from hf_masking.modeling.checking.generation import MODES, borders
from hf_masking.modeling.forward import arguments, prompts, spans

from ..families import CONFIGS, OWN_WINDOWS, build

OLD = Version(transformers.__version__) < Version("5.23")
FAMILIES = ["gpt2", "llama", "mistral", "gemma3"]
MASKS = [
    "causal",
    "window:4|sinks:2",
    "block_local:4,1|sinks:1",
    "offsets:0,1,3,7",
    "dilated:3,2|window:2",
    "strided:3|window:4",
    "summary:4,1|window:3",
    "log_sparse",
    "causal-(window:6-window:2)",
    "heads[window:4; sinks:1|window:2]",
    "prefix|causal",
    "prefix|window:5|sinks:1",
    "spans|window:4|sinks:1",
    "prompt|window:8",
    "window:8|sinks:2|after_prompt",
    "prefix|prompt|window:4",
]


@pytest.fixture
def soon(monkeypatch):
    """Caches let go of keys after a few tokens already."""
    monkeypatch.setattr(eviction, "ROLLBACK", 12)


def model_of(family, mask):
    return patch_model(build(family, max_position_embeddings=512), mask, check=False)


def assert_passes(report, family=""):
    assert [row.name for row in report.rows] == list(MODES)
    failed = [row for row in report.rows if not row.passed]
    if OLD and OWN_WINDOWS.get(family):
        # There a draft model that has windows of its own fails by itself, patched or not.
        failed = [row for row in failed if row.name != "assisted by a draft model"]
    assert not failed, f"\n{report}"


@pytest.mark.parametrize(
    ("family", "mask"),
    [
        ("gpt2", "window:4|sinks:2"),
        ("llama", "prefix|window:5|sinks:1"),
        ("gpt2", "prompt|window:8"),
        ("qwen3", "window:8|sinks:2|after_prompt"),
        ("gemma3", "spans|prompt|window:4"),
        ("mistral", "heads[window:4; sinks:1|window:2]"),
        ("gemma3", "strided:3|window:4"),
    ],
)
def test_every_mode_equals_recomputation(soon, family, mask):
    assert_passes(check_generation(model_of(family, mask), lengths=[3, 5, 41]), family)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_matrix(family, mask):
    assert_passes(check_generation(model_of(family, mask)), family)


def test_masks_by_layer(soon):
    model = patch_model(build("llama"), "window:4|sinks:1", layers={1: "strided:2"}, check=False)
    assert_passes(check_generation(model, lengths=[41]))
    layers = model.generate(torch.ones(1, 41).long(), max_new_tokens=9, return_dict_in_generate=True)
    kept = [len(layer.columns) for layer in layers.past_key_values.layers]
    assert kept[0] < 20 and kept[1] == 49


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("window:256|sinks:4", [255, 256, 257, 384, 512, 1280]),
        ("strided:64", [7, 8, 9, 16, 40, 136]),
        ("summary:128,8|window:256", [255, 256, 257, 384, 512, 1280]),
        ("heads[strided:64|window:100; causal]", [99, 100, 101, 200, 228, 500]),
        ("block_local:16,1", [31, 32, 33, 64, 160, 160]),
    ],
)
def test_borders(mask, expected):
    assert borders([parse_mask(mask)]) == sorted(set(expected))


def a_key_dropped_one_step_early(monkeypatch):
    honest = Batch.readable
    early = lambda self, mask, columns, first: honest(self, mask, columns, self.seen + 1)  # noqa: E731
    monkeypatch.setattr(Batch, "readable", early)


def positions_not_reordered(monkeypatch):
    monkeypatch.setattr(MaskedLayer, "reorder_cache", lambda self, rows: None)


def a_crop_too_short(monkeypatch):
    honest = MaskedLayer.crop
    monkeypatch.setattr(MaskedLayer, "crop", lambda self, n: honest(self, min(0, n + 1)))


def empty_columns_of_a_static_cache_attended(monkeypatch):
    honest = batch.Documents.from_ids
    monkeypatch.setattr(
        batch.Documents, "from_ids", lambda ids, columns, marks=None: honest(ids.clamp(min=0), columns - 1, marks)
    )


def padding_counted(monkeypatch):
    monkeypatch.setattr(arguments, "_read_padding", lambda attention_mask, rows, seen, new: None)


FAULTS = {mode: [a_key_dropped_one_step_early] for mode in MODES} | {
    "beams": [a_key_dropped_one_step_early, positions_not_reordered],
    "beam sampling": [a_key_dropped_one_step_early, positions_not_reordered],
    "prompt lookup": [a_key_dropped_one_step_early, a_crop_too_short],
    "assisted by a draft model": [a_key_dropped_one_step_early, a_crop_too_short],
    "assisted by a patched draft model": [a_key_dropped_one_step_early, a_crop_too_short],
    "left-padded prompts of unequal length": [a_key_dropped_one_step_early, padding_counted],
    "static cache": [empty_columns_of_a_static_cache_attended],
    "offloaded cache": [],  # it runs on accelerators only
}


@pytest.mark.parametrize(("mode", "fault"), [(mode, fault) for mode, faults in FAULTS.items() for fault in faults])
def test_a_planted_fault_turns_the_row_red(soon, monkeypatch, mode, fault):
    model = model_of("llama", "window:4|sinks:2")
    monkeypatch.setattr(generation, "MODES", {mode: MODES[mode]})
    assert check_generation(model, lengths=[41]).passed
    fault(monkeypatch)
    report = check_generation(model, lengths=[41])
    assert not report.passed, f"\n{report}"


def fail(*_args, **_kwargs):
    raise RuntimeError("a fault")


def test_a_draft_model_that_fails_without_a_mask_too_is_no_fault_of_the_mask(soon, monkeypatch):
    """In Transformers 5.17 that is each draft model with a sliding window."""
    model = model_of("llama", "window:4")
    monkeypatch.setattr(generation, "MODES", {"assisted": generation._assisted})
    broken = unpatch_model(copy.deepcopy(model))
    broken.forward = fail
    monkeypatch.setattr(generation, "_draft", lambda probe: broken)
    report = check_generation(model, lengths=[9])
    assert report.passed and "not run: the model without a mask fails, too: RuntimeError" in str(report)


def test_a_draft_model_that_fails_only_under_a_mask_is_a_fault(soon, monkeypatch):
    model = model_of("llama", "window:4")
    monkeypatch.setattr(generation, "MODES", {"assisted": generation._assisted})
    monkeypatch.setattr(generation, "_greedy", fail)
    report = check_generation(model, lengths=[9])
    assert not report.passed and "a fault" in str(report)


def test_a_prefix_that_is_one_token_short_is_seen(soon, monkeypatch):
    honest = spans.prompts_of_generate
    monkeypatch.setattr(spans, "prompts_of_generate", lambda *arguments: honest(*arguments) - 1)
    monkeypatch.setattr(generation, "MODES", {"greedy": MODES["greedy"]})
    assert not check_generation(model_of("llama", "prefix|window:5"), lengths=[9]).passed


@pytest.mark.parametrize("mode", ["greedy", "left-padded prompts of unequal length", "prompt lookup"])
@pytest.mark.parametrize("mask", ["prompt|window:5", "window:5|after_prompt"])
def test_a_prompt_that_is_one_token_short_is_seen(soon, monkeypatch, mask, mode):
    monkeypatch.setattr(generation, "MODES", {mode: MODES[mode]})
    assert check_generation(model_of("llama", mask), lengths=[41]).passed
    honest = prompts.prompts_of_generate
    monkeypatch.setattr(prompts, "prompts_of_generate", lambda *arguments: honest(*arguments) - 1)
    assert not check_generation(model_of("llama", mask), lengths=[41]).passed


def a_cache_that_forgets_where_the_prompt_ends(monkeypatch):
    honest = Batch._last_reader
    unmarked = lambda self, mask, positions: honest(self, mask.unmarked, positions)  # noqa: E731
    monkeypatch.setattr(Batch, "_last_reader", unmarked)


def a_later_call_that_takes_all_tokens_for_the_prompt(monkeypatch):
    monkeypatch.setattr(prompts, "_held", lambda cache: torch.tensor([[1000]]))


@pytest.mark.parametrize("mode", ["greedy", "beams", "chunked prefill", "several turns on one cache"])
@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        ("prompt|window:5", a_cache_that_forgets_where_the_prompt_ends),
        ("prompt|window:5", a_later_call_that_takes_all_tokens_for_the_prompt),
        ("window:5|after_prompt", a_later_call_that_takes_all_tokens_for_the_prompt),
    ],
)
def test_a_fault_of_prompts_turns_the_row_red(soon, monkeypatch, mode, mask, fault):
    monkeypatch.setattr(generation, "MODES", {mode: MODES[mode]})
    fault(monkeypatch)
    assert not check_generation(model_of("llama", mask), lengths=[41]).passed


def test_wrong_lengths():
    with pytest.raises(ValueError, match=r"prompts of \[1\] tokens, expected 2 to 98"):
        check_generation(patch_model(build("llama"), "window:4", check=False), lengths=[1])
    with pytest.raises(ValueError, match="is not patched; call patch_model"):
        check_generation(build("llama"))


def test_borders_that_the_model_is_too_short_for_are_named(monkeypatch):
    monkeypatch.setattr(generation, "MODES", {"greedy": MODES["greedy"]})
    report = check_generation(patch_model(build("llama"), "window:90", check=False))
    assert [row.name for row in report.rows] == ["greedy", "prompts of 180, 218, 450 tokens"]
    assert report.rows[-1].detail == "(not run: more than 98, the most here)"
    assert check_generation(patch_model(build("llama"), "window:900", check=False)).passed


def test_what_is_not_a_number_fails(monkeypatch):
    monkeypatch.setattr(generation, "MODES", {"greedy": MODES["greedy"]})
    model = patch_model(build("llama"), "window:4", check=False)
    model.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)
    assert not check_generation(model, lengths=[9, 5]).passed


def test_modes_of_generation_of_a_class_that_cannot_generate():
    model = patch_model(AutoModel.from_config(CONFIGS["llama"]), "window:3|sinks:1")
    with pytest.raises(ValueError, match=r"LlamaModel cannot generate, .* check_model\(model\)"):
        check_generation(model)


def test_positions_that_do_not_begin_at_0(monkeypatch):
    """RoBERTa-like decoders have positions of their own, and `generate` gives others."""
    names = ("greedy", "sampling", "beams", "forward by forward")
    monkeypatch.setattr(generation, "MODES", {name: MODES[name] for name in names})
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = RobertaConfig(**sizes, vocab_size=97, max_position_embeddings=128, is_decoder=True, initializer_range=0.3)
    model = patch_model(AutoModelForCausalLM.from_config(config), "window:3|sinks:1", check=False)
    report = check_generation(model, lengths=[9])
    assert report.passed, f"\n{report}"


def test_what_a_model_raises_fails_its_row(monkeypatch):
    monkeypatch.setattr(generation, "MODES", {name: MODES[name] for name in ("greedy", "forward by forward")})
    model = patch_model(build("llama"), "window:4", check=False)

    def no_decoding(module, args):
        if args[0].shape[1] == 1:
            raise IndexError("index out of range")

    model.model.layers[1].mlp.register_forward_pre_hook(no_decoding)
    first, last = check_generation(model, lengths=[9]).rows
    assert not first.passed and not last.passed
    said = r"\(prompts of 9 tokens: IndexError in test_generation.py, line \d+ \(raise .*\): index out of range\)"
    assert re.fullmatch(said, first.detail)
