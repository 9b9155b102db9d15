"""One of the processes of `test_sequence_parallel.py`: forwards and backwards of shards against those of whole rows."""

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from torch.nn import functional as F

from hf_masking import patch_model, sequence_parallel, shard_batch
from hf_masking.training.process_group import clean_exit

from ..masks.strategies import expressions
from .families import MASKS, build, tokens

LENGTH = 45  # no multiple of 2 or 4
IDS = tokens(2, LENGTH)
# Documents of both rows cross every border of 2 and 4 shards; the first row has padding at its end, the second inside.
DOCUMENTS = torch.tensor([[0] * 15 + [1] * 27 + [-1] * 3, [0] * 5 + [1] * 9 + [-1] * 2 + [2] * 20 + [0] * 9])
PACKED = {"document_ids": DOCUMENTS, "labels": IDS.where(DOCUMENTS >= 0, -100)}
PADDED = {"attention_mask": (torch.arange(LENGTH) < torch.tensor([[LENGTH], [26]])).long()}
PADDED["labels"] = IDS.where(PADDED["attention_mask"] > 0, -100)
POSITIONS = {"position_ids": torch.cat([torch.arange(19), torch.arange(LENGTH - 19)])[None], "labels": IDS}
SPANS = {"span_ids": torch.tensor([[-1] * 9 + [4] * 17 + [-1] * 19, [7] * 30 + [-1] * 9 + [2] * 6])}
CATALOGUE = [*MASKS, "sinks:3", "dilated:2,9|sinks:2", "strided:17", "prefix:30|window:3", "spans:3,9,20,40|causal"]


@dataclasses.dataclass
class Case:
    """A model, its mask and what is given beside the tokens; `kind` is printed where it fails."""

    mask: str
    family: str = "llama"
    backend: str = "auto"
    beside: dict = dataclasses.field(default_factory=lambda: {"labels": IDS})
    kind: str = "plain"
    checkpointing: bool | None = None  # reentrant or not; None for none

    def __str__(self):
        return f"{self.mask} ({self.family}, {self.backend}, {self.kind}, checkpointing {self.checkpointing})"


def variants(mask, number=0):
    """Plain and packed, on one backend and family or another."""
    family, backend = ("llama", "gpt2")[number % 2], ("blockwise", "auto", "sdpa")[number % 3]
    yield Case(mask, family, backend)
    yield Case(mask, family, backend, PACKED, "packed")


def catalogue():
    for mask in CATALOGUE:
        for number in range(3):
            yield from variants(mask, number)
    for beside, kind in ((PADDED, "padded"), (POSITIONS, "positions that restart")):
        for family in ("gpt2", "llama"):
            yield Case("window:9|sinks:2", family, "blockwise", beside, kind)
    for family in ("mistral", "gemma3", "qwen3"):
        yield Case("dilated:4,3|sinks:2", family, kind="own window")
    yield Case("heads[window:3|sinks:1; strided:5]", kind="by head")
    yield Case("spans|window:3", beside=SPANS, kind="marked")
    yield Case("spans|causal-window:4", beside=SPANS, backend="blockwise", kind="marked")
    yield Case("prefix|window:3", beside={"prefix_lengths": torch.tensor([30, 7])}, kind="marked")
    for family in ("gpt2", "llama"):
        for reentrant in (False, True):
            yield Case("window:9|sinks:2", family, beside=PACKED, kind="packed", checkpointing=reentrant)


def drawn(count):
    """Compositions as they are drawn; the same in every process."""
    found = []
    draw = settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    draw(given(expressions)(lambda mask: found.append(str(mask))))()
    dist.broadcast_object_list(found)
    for number, mask in enumerate(found):
        yield from variants(mask, number)


def model_of(case):
    model = build(case.family)
    if case.checkpointing is not None:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": case.checkpointing})
        model.enable_input_require_grads()
    return patch_model(model, case.mask, backend=case.backend, check=False)


def loss_of(logits, labels, count):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / count


def compare(case):
    """Return the greatest differences of this shard's logits, and of the gradients of all, from those of whole rows."""
    batch = {"input_ids": IDS, "labels": IDS, **case.beside}
    labels = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    count = int((labels != -100).sum())
    model = model_of(case)
    given = {name: x for name, x in batch.items() if name != "labels"}
    whole = model(**given, use_cache=False).logits
    loss_of(whole, labels, count).backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    shard = shard_batch(batch)
    mine = shard.pop("shift_labels")
    with sequence_parallel():
        logits = model(**shard).logits
    loss_of(logits, mine, count).backward()
    first = sum(dist_sizes()[: dist.get_rank()])
    real = DOCUMENTS[:, first : first + logits.shape[1]] >= 0 if case.kind == "packed" else slice(None)
    of_logits = (logits - whole[:, first : first + logits.shape[1]])[real].abs().max()
    of_gradients = torch.zeros(())
    for name, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad)
        of_gradients = torch.maximum(of_gradients, (parameter.grad - wanted[name]).abs().max())
    return of_logits.item(), of_gradients.item()


def dist_sizes():
    ranks = dist.get_world_size()
    return [LENGTH // ranks + (rank < LENGTH % ranks) for rank in range(ranks)]


def main(folder, count):
    cases = [*catalogue(), *drawn(count)]
    found = [[str(case), *compare(case)] for case in cases]
    (folder / f"found-{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with clean_exit():
        main(Path(sys.argv[1]), int(sys.argv[2]))
