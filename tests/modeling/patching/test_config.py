"""MaskConfig, and the entry of a config.json, which anybody may have written."""

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest

from hf_masking import (
    Causal,
    MaskConfig,
    Offsets,
    SlidingWindow,
    from_pretrained,
    get_mask_config,
    is_patched,
    patch_model,
    patched,
    unpatch_model,
)
from hf_masking.modeling import layer_masks
from hf_masking.modeling.patching.config import read_entry

from ..families import build

ENTRY = {
    "version": 1,
    "mask": "window:4|sinks:1",
    "layers": {"0": "causal", "11": "strided:2"},
    "replace_model_window": True,
    "backend": "blockwise",
}


def read(**changes):
    return read_entry(ENTRY | changes, n_layers=12)


def test_an_entry_is_read_as_it_was_written():
    assert read_entry(read().to_dict(), 12) == MaskConfig.from_dict(read().to_dict()) == read()
    assert read().to_dict() == ENTRY
    least = MaskConfig("causal")
    assert read_entry({"version": 1, "mask": "causal"}, 12) == read_entry(least.to_dict() | {"backend": None}, 12)
    assert (dict(least.layers), least.replace_model_window, least.backend) == ({}, False, "auto")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replace_model_window": "false"}, "'replace_model_window': expected true or false, got 'false'"),
        ({"replace_model_window": 1}, "'replace_model_window': expected true or false, got 1"),
        ({"replace_model_window": None}, "'replace_model_window': expected true or false, got None"),
        ({"layers": {"1": "causal", " 1": "strided:2"}}, """'layers': expected layers "0" to "11", in plain digits"""),
        ({"layers": {"01": "causal"}}, "'layers': expected layers"),
        ({"layers": {"+1": "causal"}}, "'layers': expected layers"),
        ({"layers": {"1_0": "causal"}}, "'layers': expected layers"),
        ({"layers": {"٣": "causal"}}, "'layers': expected layers"),
        ({"layers": {"-1": "causal"}}, "'layers': expected layers"),
        ({"layers": {"12": "causal"}}, "'layers': expected layers"),
        ({"layers": {"9" * 9999: "causal"}}, "'layers': expected layers"),
        ({"layers": ["causal"]}, "'layers': expected an object"),
        ({"layers": {"3": 4}}, "'layers', layer 3: expected a spec"),
        ({"layers": {"3": "windw:4"}}, "'layers', layer 3: unknown mask 'windw'; did you mean 'window'?"),
        ({"mask": None}, "'mask': expected a spec such as 'window:256|sinks:4', got None"),
        ({"mask": "causal" + " " * 10_000}, "'mask': a spec may have 10,000 characters, got 10,006"),
        ({"mask": "windw:4"}, "'mask': unknown mask 'windw'"),
        ({"version": 2}, "'version': expected format version 1 (a newer hf_masking may know it), got 2"),
        ({"version": True}, "'version': expected format version 1"),
        ({"version": 1.0}, "'version': expected format version 1"),
        ({"version": "1"}, "'version': expected format version 1"),
        ({"backend": "fast"}, "'backend': unknown backend 'fast'; expected 'auto' or one of 'reference'"),
        ({"backend": ["flex"]}, "'backend': expected the name of a backend, got ['flex']"),
        ({"end": 1}, "its fields: expected none but version, mask, layers, replace_model_window, backend, got ['end']"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match="the config's 'hf_masking' entry is wrong in " + re.escape(message)) as error:
        read(**changes)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("entry", [None, [], "window:4", {}, {"version": 1}, {"mask": "causal"}])
def test_what_is_no_entry_is_refused(entry):
    with pytest.raises(ValueError, match=r"the config's 'hf_masking' entry is wrong in (the entry itself|its fields)"):
        read_entry(entry, 12)


def test_a_mask_that_could_not_be_loaded_again_is_refused():
    model = build("llama")
    with pytest.raises(ValueError, match=r"a mask of 14,452 characters cannot be saved with a model"):
        patch_model(model, Offsets(tuple(range(0, 6000, 2))), check=False)
    assert not layer_masks(model)


def test_a_config_is_a_value():
    config = MaskConfig("window:4", {-1: "causal"}, backend="reference")
    assert config.mask == SlidingWindow(4)
    assert config == MaskConfig(SlidingWindow(4), {-1: "causal"}, backend="reference") != MaskConfig("window:4")
    assert config.resolved(3).layers.keys() == {2}
    with pytest.raises(ValueError, match="layer 2 is given twice"):
        MaskConfig("window:4", {-1: "causal", 2: "causal"}).resolved(3)
    for layer in (True, "0", 1.0):
        with pytest.raises(ValueError, match="unknown layer"):
            MaskConfig("window:4", {layer: "causal"})
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        MaskConfig("window:4", backend="fast")


def test_a_model_says_which_config_it_carries(tmp_path):
    model, config = build("llama"), MaskConfig("window:4|sinks:1", {-1: "causal"}, backend="reference")
    assert get_mask_config(model) is None and not is_patched(model)
    with patched(model, config, check=False):
        assert get_mask_config(model) == config.resolved(2) and is_patched(model)
    assert get_mask_config(model) is None
    patch_model(model, get_mask_config(patch_model(build("llama"), config, check=False)), check=False)
    assert get_mask_config(model) == config.resolved(2)
    model.save_pretrained(tmp_path)
    assert get_mask_config(from_pretrained(tmp_path, check=False)) == config.resolved(2)
    chosen = from_pretrained(tmp_path, check=False, backend="auto")
    assert get_mask_config(chosen) == MaskConfig("window:4|sinks:1", {1: "causal"})
    assert get_mask_config(patch_model(model, config, backend="sdpa", check=False)).backend == "sdpa"
    assert not is_patched(unpatch_model(model))
    for options, named in (({"layers": {0: "causal"}}, "layers="), ({"replace_model_window": True}, "replace_model_w")):
        with pytest.raises(ValueError, match=named):
            patch_model(model, config, **options)


def test_a_config_is_a_file(tmp_path):
    path, config = tmp_path / "mask.json", MaskConfig("window:4|sinks:1", {-1: "causal", 0: "strided:3"})
    config.save(path)
    assert MaskConfig.load(path) == config
    for text, named in (
        ('{"version": 1, "mask": "windw:4"}', "mask.json is wrong in 'mask': unknown mask 'windw'"),
        ('{"version": 1, "mask": "causal", "layers": {"-0": "causal"}}', "mask.json is wrong in 'layers'"),
        ("{", "mask.json is damaged"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=named):
            MaskConfig.load(path)


def test_print_shows_the_mask_of_each_layer():
    model = build("llama")
    plain = repr(model)
    patch_model(model, "window:4|sinks:1", layers={1: "causal"}, backend="reference", check=False)
    assert repr(model).count("(hf_masking): AttachedMask('window:4|sinks:1', backend=reference)") == 1
    assert repr(model).count("(hf_masking): AttachedMask('causal', backend=reference)") == 1
    assert repr(unpatch_model(model)) == plain


def test_a_mask_without_a_registered_name_can_be_replaced():
    @dataclass(frozen=True)
    class Mine(SlidingWindow):
        name: ClassVar[str] = "mine"

    model = patch_model(build("llama"), Mine(4), check=False)
    assert get_mask_config(patch_model(model, "causal", check=False)).mask == Causal()
    patch_model(model, Mine(4), check=False)
    assert get_mask_config(patch_model(model, check=False)).mask == Mine(4)


def test_the_carried_mask_can_replace_the_models_window():
    model = patch_model(build("mistral"), "window:9", check=False)
    patch_model(model, replace_model_window=True, check=False)
    assert get_mask_config(model).replace_model_window
    patch_model(model, backend="reference", check=False)
    assert get_mask_config(model).replace_model_window and get_mask_config(model).backend == "reference"
