"""Parameters of adaptive masks survive re-patching: also when PEFT has wrapped them, and in modules with children."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DbrxConfig

from hf_masking import from_pretrained, mask_penalties, patch_model, patched
from hf_masking.adaptive import Features, Weighting
from hf_masking.errors import UnsupportedModelError
from hf_masking.masks import SlidingWindow
from hf_masking.modeling import api

from ..families import build, tokens

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, which calls what Transformers has renamed

SPAN = "adaptive_span:max=20,ramp=4|sinks:1"


def logits(model):
    with torch.no_grad():
        return model(input_ids=tokens(2, 17)).logits


@pytest.fixture
def trained():
    """A PEFT model whose spans have been trained, in the wrappers that PEFT puts around them."""
    options = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["adaptive_span"], init_lora_weights=False)
    model = peft.get_peft_model(patch_model(build("llama"), SPAN, check=False), options).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name and "share" in name:
            nn.init.constant_(parameter, 0.1)
    return model


def states(model):
    return {name: (parameter.requires_grad, id(parameter)) for name, parameter in model.named_parameters()}


def use_another_mask(model):
    with patched(model, "causal", check=False):
        logits(model)


def patch_again(model):
    patch_model(model, SPAN, check=False)


def fail_to_patch(model):
    with pytest.raises(UnsupportedModelError, match="a fault"):
        patch_model(model, "causal")


@pytest.mark.parametrize("change", [use_another_mask, patch_again, fail_to_patch])
def test_what_peft_has_wrapped_stays(trained, change, monkeypatch):
    def refuse(model):
        raise UnsupportedModelError("a fault")

    monkeypatch.setattr(api, "require_checks", refuse)
    expected, before = logits(trained), states(trained)
    change(trained)
    assert torch.equal(logits(trained), expected)
    assert states(trained) == before


def test_what_peft_has_merged_stays(trained):
    model = trained.merge_and_unload()
    expected = logits(model)
    patch_model(model, SPAN, check=False)
    assert torch.equal(logits(model), expected)


def test_parameters_that_another_mask_cannot_take_over_are_named(trained, caplog):
    patch_model(trained, "adaptive_span:max=20,ramp=9|sinks:1", check=False)
    assert any("what 'adaptive_span:max=20,ramp=9' continues is dropped: ModulesToSave" in m for m in caplog.messages)


@dataclass(frozen=True)
class Distant(Weighting):
    """A weighting whose module has a child."""

    name: ClassVar[str] = "distant"
    slope: int = 1

    @property
    def envelope(self):
        return SlidingWindow(12)

    def continues(self, other):
        return type(self) is type(other)

    def module(self, shape):
        return Scale(shape)

    def log_weight(self, query, key, distance, hard):
        return query.sigmoid().log() * (distance > 2)


class Scale(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads = shape.query_heads
        self.inner = nn.Linear(shape.hidden_size, shape.query_heads)

    def forward(self, hidden):
        return Features(query=self.inner(hidden).transpose(1, 2)[..., None])


@pytest.mark.parametrize("again", [Distant(), Distant(2)])
def test_modules_with_children_keep_what_they_have_learned(again):
    model = patch_model(build("llama"), Distant(), check=False)
    expected, before = logits(model), {id(parameter) for parameter in model.parameters()}
    patch_model(model, again, check=False)
    assert torch.equal(logits(model), expected)
    assert {id(parameter) for parameter in model.parameters()} == before


def test_of_two_nested_attentions_the_inner_one_has_the_mask(tmp_path):
    """DBRX has an attention named module around its attention."""
    torch.manual_seed(0)
    config = DbrxConfig(
        d_model=32, n_heads=4, n_layers=2, max_seq_len=128, vocab_size=97,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 32, "hidden_size": 32},
    )  # fmt: skip
    model = patch_model(AutoModelForCausalLM.from_config(config).eval(), SPAN, check=False)
    shares = [parameter for name, parameter in model.named_parameters() if name.endswith("share")]
    assert len(shares) == 2
    for share in shares:
        nn.init.constant_(share, 0.2)
    with mask_penalties() as penalties:
        model.train()(input_ids=tokens(2, 17))
    assert len(penalties) == 2
    expected = logits(model.eval())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path, check=False)), expected)
