"""One of the processes of `test_sequence_parallel.py`: forwards and backwards of shards against those of whole rows."""

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from torch.nn import functional as F

from hf_masking import exchanged_bytes, parse_mask, patch_model, sequence_parallel, shard_batch
from hf_masking.attention import exchange
from hf_masking.plan import Documents
from hf_masking.plan.shards import Shards, Transfers, needed_columns
from hf_masking.training.process_group import clean_exit

from ..masks.strategies import expressions
from ..processes import ROOT
from ..snippets import blocks
from .families import MASKS, build, tokens

GUIDE = ROOT / "docs" / "guide.md"
LENGTH = 45  # no multiple of 2 or 4
IDS = tokens(2, LENGTH)
# Documents of both rows cross every border of 2 and 4 shards; the first row has padding at its end, the second inside.
DOCUMENTS = torch.tensor([[0] * 15 + [1] * 27 + [-1] * 3, [0] * 5 + [1] * 9 + [-1] * 2 + [2] * 20 + [0] * 9])
PACKED = {"document_ids": DOCUMENTS, "labels": IDS.where(DOCUMENTS >= 0, -100)}
PADDED = {"attention_mask": (torch.arange(LENGTH) < torch.tensor([[LENGTH], [26]])).long()}
PADDED["labels"] = IDS.where(PADDED["attention_mask"] > 0, -100)
LEFT = {"attention_mask": PADDED["attention_mask"].flip(1)}
LEFT["position_ids"] = (LEFT["attention_mask"].cumsum(1) - 1).clamp(min=0)
LEFT["labels"] = IDS.where(LEFT["attention_mask"] > 0, -100)
POSITIONS = {"position_ids": torch.cat([torch.arange(19), torch.arange(LENGTH - 19)])[None], "labels": IDS}
SPANS = {"span_ids": torch.tensor([[-1] * 9 + [4] * 17 + [-1] * 19, [7] * 30 + [-1] * 9 + [2] * 6])}
PROMPTS = {**PACKED, "prompt_mask": (torch.arange(LENGTH) < torch.tensor([[4], [3]])).long()}
CATALOGUE = [*MASKS, "sinks:3", "dilated:2,9|sinks:2", "strided:17", "prefix:30|window:3", "spans:3,9,20,40|causal"]
CATALOGUE += ["prompt:9|window:3", "window:3|sinks:1|after_prompt:20"]


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


def catalogue(every_backend):
    for index, mask in enumerate(CATALOGUE):
        for number in range(6) if every_backend else [index]:
            yield from variants(mask, number)
    for beside, kind in ((PADDED, "padded"), (LEFT, "padded on the left"), (POSITIONS, "positions that restart")):
        for family in ("gpt2", "llama"):
            yield Case("window:9|sinks:2", family, "blockwise", beside, kind)
    for family in ("mistral", "gemma3", "qwen3"):
        yield Case("dilated:4,3|sinks:2", family, kind="own window")
    yield Case("heads[window:3|sinks:1; strided:5]", kind="by head")
    yield Case("spans|window:3", beside=SPANS, kind="marked")
    yield Case("spans|causal-window:4", beside=SPANS, backend="blockwise", kind="marked")
    yield Case("prefix|window:3", beside={"prefix_lengths": torch.tensor([30, 7])}, kind="marked")
    for mask in ("prompt|window:3", "window:3|after_prompt"):
        yield Case(mask, beside={"prompt_lengths": torch.tensor([30, 7])}, kind="marked")
        yield Case(mask, beside=PROMPTS, kind="marked and packed")
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
    columns = Shards.even(LENGTH, dist.get_world_size()).columns(dist.get_rank())
    of_logits = (logits - whole[:, columns]).abs().max()
    of_gradients = torch.zeros(())
    for name, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad)
        of_gradients = torch.maximum(of_gradients, (parameter.grad - wanted[name]).abs().max())
    return of_logits.item(), of_gradients.item()


def uneven():
    """Return the greatest difference of logits where the first shard has most of the tokens."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    columns = Shards((LENGTH - 3 * (ranks - 1), *[3] * (ranks - 1))).columns(rank)
    model = patch_model(build("gpt2"), "window:9|sinks:2", check=False)
    with sequence_parallel(), torch.no_grad():
        logits = model(IDS[:, columns]).logits
    return (logits - model(IDS).logits[:, columns]).abs().max().item()


def exchanged(dtype):
    """Return whether keys and values of another size arrive, and their gradients return, as they should."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    shards = Shards.even(LENGTH, ranks)
    needed = needed_columns(parse_mask("window:4|sinks:2"), Documents.single(LENGTH, LENGTH), shards)
    transfers, mine = Transfers.of_rank(needed, shards, rank), shards.columns(rank)
    key, value = torch.arange(2 * LENGTH * 5 * 2.0).view(2, 2, LENGTH, 5).to(dtype).split([2, 3], -1)
    own = [x[:, :, mine].clone().requires_grad_() for x in (key, value)]
    held = exchange(*own, transfers, dist.group.WORLD)
    arrived = all(torch.equal(x, y[:, :, transfers.held]) for x, y in zip(held, (key, value), strict=True))
    sum((rank + 1) * x.sum() for x in held).backward()
    readers = (rank + 1) + (needed * torch.arange(1, ranks + 1)[:, None]).sum(0)[mine]
    return arrived and all(bool((x.grad == readers[:, None]).all()) for x in own)


def counted(mask):
    """Return the bytes that the layers of this rank send forward and backward, and what the mask predicts."""
    model = patch_model(build("llama"), mask, check=False)
    config, sent = model.config, []
    shard = shard_batch({"input_ids": IDS})
    all_to_all = dist.all_to_all_single

    def counting(received, rows, from_, to, **options):
        sent.append(rows.nbytes)
        assert rows.is_contiguous() and sum(to) == len(rows) and to[dist.get_rank()] == 0
        return all_to_all(received, rows, from_, to, **options)

    dist.all_to_all_single = counting
    try:
        with sequence_parallel():
            model(**shard).logits.sum().backward()
    finally:
        dist.all_to_all_single = all_to_all
    table = exchanged_bytes(
        mask, LENGTH, dist.get_world_size(), key_heads=config.num_key_value_heads, head_size=config.head_dim,
        dtype=torch.float32, rows=len(IDS),
    )  # fmt: skip
    layers, rank = config.num_hidden_layers, dist.get_rank()
    return sent, [table.sent[rank]] * layers + [table.received[rank]] * layers


def snippet():
    """Return the greatest difference that the guide's function leaves, in gradients and in the sum of its losses."""
    (block,) = (text for _, text in blocks(GUIDE.read_text(), "python") if "def gradients_of_shard" in text)
    names = {}
    exec(compile(block, "guide.md", "exec"), names)
    mine, whole = (patch_model(build("gpt2"), "window:9|sinks:2", check=False) for _ in range(2))
    loss = names["gradients_of_shard"](mine, {"input_ids": IDS, "labels": IDS})
    dist.all_reduce(loss)
    wanted = whole(IDS, labels=IDS, use_cache=False).loss
    wanted.backward()
    pairs = zip(mine.parameters(), whole.parameters(), strict=True)
    return max([(loss - wanted).abs().item(), *((a.grad - b.grad).abs().max().item() for a, b in pairs)])


def refusals():
    """Return the sentence with which each wrong use is refused; no process may be left waiting."""
    model = patch_model(build("llama"), "window:4", check=False)
    shard, rank = shard_batch({"input_ids": IDS}), dist.get_rank()
    padding = (torch.arange(shard["input_ids"].shape[1]) > 2 * (rank == 0)).long().expand(2, -1)
    unpatched, adaptive = build("llama"), patch_model(build("llama"), "relevance&window:8", check=False)
    scaled = build("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    calls = {
        "cache": lambda: model(**shard, use_cache=True),
        "generate": lambda: model.generate(shard["input_ids"], max_new_tokens=2, do_sample=False),
        "labels": lambda: model(**shard, labels=shard["input_ids"]),
        "attentions": lambda: model(**shard, output_attentions=True),
        "left padding": lambda: model(shard["input_ids"], attention_mask=padding),
        "flattened": lambda: model(**shard, cu_seq_lens_q=torch.tensor([0, 3])),
        "shape": lambda: model(**shard, document_ids=torch.zeros(2, LENGTH, dtype=torch.long)),
        "only one": lambda: model(**shard, **({"attention_mask": padding * 0 + 1} if rank else {})),
        "one alone": lambda: model(**shard, **({"document_ids": IDS} if rank else {"document_ids": padding})),
        "unpatched": lambda: unpatched(**shard),
        "adaptive": lambda: adaptive(**shard),
        "rope": lambda: patch_model(scaled, "window:4", check=False)(**shard),
    }
    return {name: refusal(call) for name, call in calls.items()}


def refusal(call):
    try:
        with sequence_parallel():
            call()
    except ValueError as error:
        return str(error)
    return None


def main(folder, count):
    cases = [*catalogue(every_backend=count > 0), *(drawn(count) if count else ())]
    found = {
        "differences": [[str(case), *compare(case)] for case in cases],
        "uneven": uneven(),
        "snippet": snippet(),
        "exchanged": [exchanged(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)],
        "bytes": {mask: counted(mask) for mask in ("causal", "window:9|sinks:2", "strided:5", "block_local:23")},
        "refusals": refusals(),
    }
    (folder / f"found-{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with clean_exit():
        main(Path(sys.argv[1]), int(sys.argv[2]))
