"""The entry of a config.json, which anybody may have written."""

import re

import pytest

from hf_masking import Offsets, patch_model
from hf_masking.modeling import layer_masks
from hf_masking.modeling.patching.config import Settings

from ..families import build

ENTRY = {
    "version": 1,
    "mask": "window:4|sinks:1",
    "layers": {"0": "causal", "11": "strided:2"},
    "replace_model_window": True,
}


def read(**changes):
    return Settings.from_json(ENTRY | changes, n_layers=12)


def test_an_entry_is_read_as_it_was_written():
    assert Settings.from_json(read().to_json(), 12) == read()
    assert read().to_json() == ENTRY
    least = Settings.from_json({"version": 1, "mask": "causal"}, 12)
    assert (dict(least.layers), least.replace_model_window) == ({}, False)


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
        ({"backend": "flex"}, "its fields: expected none but version, mask, layers, replace_model_window, got ['back"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match="the config's 'hf_masking' entry is wrong in " + re.escape(message)) as error:
        read(**changes)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("entry", [None, [], "window:4", {}, {"version": 1}, {"mask": "causal"}])
def test_what_is_no_entry_is_refused(entry):
    with pytest.raises(ValueError, match=r"the config's 'hf_masking' entry is wrong in (the entry itself|its fields)"):
        Settings.from_json(entry, 12)


def test_a_mask_that_could_not_be_loaded_again_is_refused():
    model = build("llama")
    with pytest.raises(ValueError, match=r"a mask of 14,452 characters cannot be saved with a model"):
        patch_model(model, Offsets(tuple(range(0, 6000, 2))), check=False)
    assert not layer_masks(model)
