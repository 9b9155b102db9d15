"""Warnings that patching logs about a mask."""

import logging

import pytest

from hf_masking import patch_model

from .families import build


def test_losing_the_first_token_is_said(caplog):
    with caplog.at_level(logging.WARNING, "hf_masking"):
        patch_model(build("llama"), "window:4", check=False)
        assert "no query after position 3 sees the first token" in caplog.text
        assert "'window:4|sinks:4'" in caplog.text
        caplog.clear()
        patch_model(build("llama"), "causal", layers={0: "window:4", 1: "window:9"}, check=False)
        assert "mask window:9: no query after position 8 sees the first token" in caplog.text
        caplog.clear()
        patch_model(build("llama"), "window:4|sinks:1", check=False)
        patch_model(build("llama"), "window:4", layers={0: "causal"}, check=False)
        positions = build("llama").config.max_position_embeddings
        for mask in (f"window:{positions}", "log_sparse", "prompt|window:4", "window:4|after_prompt"):
            patch_model(build("llama"), mask, check=False)
        assert "first token" not in caplog.text
        patch_model(build("llama"), "block_causal:4", check=False)
        assert "looks ahead" in caplog.text


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_mask_that_the_models_own_window_clips_is_told(caplog, family):
    said = "the model's own see no further back than its"
    with caplog.at_level(logging.WARNING, "hf_masking"):
        # A summary is never at key 0, and the first span that is too long may start anywhere.
        wide = ("window:3|sinks:2", "summary:4,1", "spans:10,20|window:2", "prefix:6", "block_causal:9&window:9")
        for mask in (*wide, "prompt|window:2"):
            patch_model(build(family), mask, check=False)
            assert said in caplog.text, mask
            caplog.clear()
        for mask in ("causal", "window:2", "block_local:2", "spans:10,15|window:2", "prefix:5"):
            patch_model(build(family), mask, check=False)
        patch_model(build(family), "window:3|sinks:2", check=False, replace_model_window=True)
        patch_model(build(family), "window:2", layers={0 if family == "mistral" else 1: "causal"}, check=False)
        patch_model(build("llama"), "window:3|sinks:2", check=False)
        assert said not in caplog.text
