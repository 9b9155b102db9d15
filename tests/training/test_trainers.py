"""Transformers' `Trainer` and TRL's `SFTTrainer` on a patched model: packed documents do not see each other."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from hf_masking import from_pretrained, patch_model
from hf_masking.modeling import is_learned

from ..modeling.families import VOCABULARY, build, tokens

# TRL asks its settings for every field, those that Transformers has renamed too.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
MASK, LEARNED = "window:4|sinks:1", "adaptive_span:max=16,ramp=4|sinks:1"
LENGTHS = [5, 11, 3, 7, 16, 2, 9, 4, 13, 6]
DOCUMENTS = [tokens(1, length, seed=length)[0].tolist() for length in LENGTHS]


def data():
    return Dataset.from_dict({"input_ids": DOCUMENTS})


def tokenizer():
    names = {"<unk>": 1, "<eos>": 2, "<pad>": 0} | {f"t{number}": number for number in range(3, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(names, unk_token="<unk>")), pad_token="<pad>", eos_token="<eos>"
    )


def patched(mask=MASK, family="llama"):
    return patch_model(build(family), mask, check=False)


def loss_alone(model, documents):
    """The mean over the labels of documents that a model reads one by one, in full."""
    total, count = 0.0, 0
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([document])
            logits = model(input_ids=ids, use_cache=False).logits
            total += F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
            count += len(document) - 1
    return total / count


def losses_of_batches(trainer):
    """Record what the trainer makes of each batch of its own, and the documents that it holds."""
    trainer.model.eval()
    batches = list(trainer.get_train_dataloader())
    assert len(batches) > 1
    with torch.no_grad():
        return [(trainer.compute_loss(trainer.model, dict(batch)).item(), batch) for batch in batches]


def sft(model, folder, **options):
    settings = {"max_length": 24, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "num_train_epochs": 8}
    config = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], logging_steps=1, save_strategy="no",
        disable_tqdm=True, **settings | {name: value for name, value in options.items() if name != "peft_config"},
    )  # fmt: skip
    return SFTTrainer(
        model, args=config, train_dataset=data(), processing_class=tokenizer(), peft_config=options.get("peft_config")
    )


def rows(batch):
    """The texts of a padded batch."""
    both = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [row[real].tolist() for row, real in both]


def pieces(batch):
    """The documents of a flattened batch: position ids start anew."""
    ids, positions = batch["input_ids"][0], batch["position_ids"][0]
    starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
    return [ids[start:end].tolist() for start, end in pairwise(starts)]


@pytest.mark.parametrize("mask", [MASK, LEARNED, "top_blocks:block=4,k=1"])
@pytest.mark.parametrize(
    "packing",
    [{"packing": True, "packing_strategy": "bfd"}, {"padding_free": True, "max_length": None}, {}],
    ids=["bfd", "padding_free", "padded"],
)
def test_packed_documents_have_the_loss_of_documents_alone(packing, mask, tmp_path):
    model = patched(mask)
    found = []
    for loss, batch in losses_of_batches(sft(model, tmp_path, **packing)):
        documents = pieces(batch) if packing else rows(batch)
        assert loss == pytest.approx(loss_alone(model, documents), abs=1e-5)
        found += documents
    assert sorted(found) == sorted(DOCUMENTS)


def test_wrapped_packing_makes_one_text_of_documents(tmp_path):
    """TRL means it so: it cuts anywhere, and does not tell where documents begin."""
    model = patched()
    for loss, batch in losses_of_batches(sft(model, tmp_path, packing=True, packing_strategy="wrapped")):
        assert loss == pytest.approx(loss_alone(model, rows(batch)), abs=1e-5)
        assert any(len(row) == 24 for row in rows(batch))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sft_trains_and_its_model_loads(family, tmp_path):
    model = patched(LEARNED, family)
    before = loss_alone(model, DOCUMENTS)
    trainer = sft(model, tmp_path, packing=True)
    trainer.train()
    after = loss_alone(model.eval(), DOCUMENTS)
    assert after < before - 1
    trainer.save_model(str(tmp_path / "model"))
    assert loss_alone(from_pretrained(tmp_path / "model"), DOCUMENTS) == pytest.approx(after, abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # of peft, on what it asks the hub for
@pytest.mark.parametrize("first", ["mask", "adapters"])
def test_sft_trains_adapters(first, tmp_path):
    options = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["adaptive_span"] if first == "mask" else None
    )
    model = patched(LEARNED) if first == "mask" else build("llama")
    trainer = sft(model, tmp_path, packing=True, peft_config=options)
    if first == "adapters":
        patch_model(trainer.model, LEARNED, check=False)
    before = loss_alone(trainer.model.eval(), DOCUMENTS)
    trainer.train()
    after = loss_alone(trainer.model.eval(), DOCUMENTS)
    assert after < before - 0.1
    learned = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert all("lora" in name or is_learned(name) for name in learned)
    assert any(is_learned(name) for name in learned)
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "model")
    assert loss_alone(from_pretrained(tmp_path / "model"), DOCUMENTS) == pytest.approx(after, abs=1e-4)


def test_the_trainer_of_transformers_with_flattened_batches(tmp_path):
    model = patched(LEARNED)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=3, learning_rate=1e-2,
        num_train_epochs=8, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data(), data_collator=DataCollatorWithFlattening())
    for loss, batch in losses_of_batches(trainer):
        assert loss == pytest.approx(loss_alone(model, pieces(batch)), abs=1e-5)
    before = loss_alone(model, DOCUMENTS)
    trainer.train()
    after = loss_alone(model.eval(), DOCUMENTS)
    assert after < before - 1
    trainer.save_model(str(tmp_path / "model"))
    assert loss_alone(from_pretrained(tmp_path / "model"), DOCUMENTS) == pytest.approx(after, abs=1e-5)


def test_what_says_where_documents_begin_must_agree():
    model, ids = patched(), tokens(1, 9)
    starts = torch.tensor([0, 4, 9], dtype=torch.int32)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    expected = model(ids, position_ids=positions).logits
    both = {"position_ids": positions, "cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 5}
    torch.testing.assert_close(model(ids, **both).logits, expected)
    for wrong in (torch.tensor([0, 5, 9]), torch.tensor([0, 4, 8, 9])):
        with pytest.raises(ValueError, match="begins other documents than document_ids or position_ids do"):
            model(ids, position_ids=positions, cu_seq_lens_q=wrong)
    for wrong in (
        {"cu_seq_lens_q": starts[:-1]},
        {"max_length_q": 5},
        {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts + 1},
    ):
        with pytest.raises(ValueError, match="must give where the documents of one row of 9 tokens begin"):
            model(ids, **wrong)
