"""`MaskPenaltyTrainer` and `MaskPenaltyMixin`: the loss and its gradients are those written by hand."""

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from hf_masking import MaskPenaltyMixin, MaskPenaltyTrainer, mask_penalties, patch_model

from ..modeling.families import build, tokens
from .test_trainers import tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
MASK, WEIGHT, RATE = "adaptive_span:max=16,ramp=4|sinks:1", 0.7, 0.1
LENGTHS = [4, 12, 5, 3]  # two batches of two, with different numbers of labels
ROWS = [{"input_ids": row, "labels": row} for row in (tokens(1, n, seed=n)[0].tolist() for n in LENGTHS)]


class Sequential:
    """Keep the rows in their order."""

    def _get_train_sampler(self, *_):
        return None


class InOrder(Sequential, MaskPenaltyTrainer):
    pass


class PenaltySFTTrainer(Sequential, MaskPenaltyMixin, SFTTrainer):
    pass


def patched(mask=MASK):
    return patch_model(build("llama"), mask, check=False)


def trainer_of(model, folder, trainer=InOrder, **options):
    given = {"gradient_accumulation_steps": 2} | options.pop("given", {})
    config = SFTConfig if issubclass(trainer, SFTTrainer) else TrainingArguments
    arguments = config(
        str(folder), use_cpu=True, report_to=[], per_device_train_batch_size=2, num_train_epochs=1, optim="sgd",
        learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0, save_strategy="no", disable_tqdm=True,
        bf16=False, logging_steps=1, **given,
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(tokenizer())
    return trainer(
        model, arguments, train_dataset=Dataset.from_list(ROWS), data_collator=collator,
        processing_class=tokenizer(), **options,
    )  # fmt: skip


def trained_by_hand(model, weigh):
    """Do one step of gradient descent on the loss over all labels, plus the mean penalty of the two batches."""
    model.train()
    losses, penalties, counts = [], [], []
    for start in (0, 2):
        batch = DataCollatorForSeq2Seq(tokenizer())([dict(row) for row in ROWS[start : start + 2]])
        with mask_penalties() as found:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        labels = batch["labels"][:, 1:]
        losses.append(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum"))
        counts.append(int((labels != -100).sum()))
        penalties.append(torch.stack(found).mean())
    assert counts[0] != counts[1]
    loss = weigh(losses, counts) + WEIGHT * torch.stack(penalties).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= RATE * parameter.grad
    return loss.item()


def over_all_labels(losses, counts):
    return torch.stack(losses).sum() / sum(counts)


def over_batches(losses, counts):
    return sum(loss / count for loss, count in zip(losses, counts, strict=True)) / len(losses)


def assert_same_training(trainer, weigh):
    by_hand = patched()
    loss = trained_by_hand(by_hand, weigh)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, abs=1e-4)
    shares = [name for name in before if ".hf_masking." in name]
    assert shares
    for (name, one), other in zip(trainer.model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)
    assert any((trainer.model.get_parameter(name) - before[name]).abs().max() > 1e-3 for name in shares)


@pytest.mark.parametrize("trainer", [InOrder, PenaltySFTTrainer])
def test_accumulated_gradients_are_those_by_hand(trainer, tmp_path):
    assert_same_training(trainer_of(patched(), tmp_path, trainer, mask_penalty=WEIGHT), over_all_labels)


def test_a_loss_that_the_trainer_divides_by_itself(tmp_path):
    trainer = trainer_of(patched(), tmp_path, mask_penalty=WEIGHT)
    trainer.model_accepts_loss_kwargs = False  # each batch has the mean over its own labels
    assert_same_training(trainer, over_batches)


def test_a_loss_function_of_the_user(tmp_path):
    def loss(outputs, labels, num_items_in_batch):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    assert_same_training(trainer_of(patched(), tmp_path, mask_penalty=WEIGHT, compute_loss_func=loss), over_all_labels)


def test_evaluation_has_no_penalty(tmp_path):
    losses = [
        trainer_of(patched(), tmp_path, trainer, eval_dataset=Dataset.from_list(ROWS), **weight).evaluate()["eval_loss"]
        for trainer, weight in ((InOrder, {"mask_penalty": 100.0}), (Trainer, {}))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_that_cannot_be(weight, tmp_path):
    with pytest.raises(ValueError, match="mask_penalty must be at least 0 and finite"):
        trainer_of(patched(), tmp_path, mask_penalty=weight)


def test_a_mask_without_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no layer of the model reported a penalty"):
        trainer_of(patched("window:4|sinks:1"), tmp_path).train()
