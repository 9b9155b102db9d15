"""The settings of accelerate are what runs: precision, trackers, files, and streams that resume."""

import dataclasses
import json

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker

from hf_masking import from_pretrained, patch_model
from hf_masking.training import Contexts, TokenStream, finetune
from hf_masking.training.stream import Streamed

from ..modeling.families import build, tokens
from .in_pieces import without_compiling
from .test_finetune import EVAL, SETTINGS, TRAIN, KilledError, kill_after, model


@pytest.fixture
def fresh_state():
    """accelerate reads its settings once a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_bf16_of_the_launcher_is_that_of_the_flag(fresh_state, monkeypatch):
    settings = dataclasses.replace(SETTINGS, steps=3)
    by_flag = finetune(model(), TRAIN, EVAL, dataclasses.replace(settings, bf16=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trained = model()
    by_launcher = finetune(trained, TRAIN, EVAL, settings)
    assert by_launcher.losses == by_flag.losses
    assert by_launcher.evaluations == by_flag.evaluations
    assert finetune(model(), TRAIN, EVAL, dataclasses.replace(settings, bf16=True)).losses == by_flag.losses
    # Nothing of it stays in the model.
    plain = model()
    plain.load_state_dict(trained.state_dict())
    assert torch.equal(trained(EVAL[None]).logits, plain(EVAL[None]).logits)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision = fp16, which this loop does not support; use bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps = 4; here --micro-batch-size"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP was asked for, and accelerate runs NO in its place"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "not on Megatron-LM; launch with --use_fsdp"),
    ],
)
def test_what_would_become_something_else_is_refused(variable, value, message, fresh_state, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        finetune(model(), TRAIN, EVAL, SETTINGS)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"gradient_clipping": 0.3}, "gradient_clipping = 0.3, and the settings say 1.0; leave it out"),
        ({"train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu = 1, and the settings"),
        ({"train_batch_size": 64}, "train_batch_size = 64, and the settings say"),
        ({"optimizer": {"type": "Adam"}}, "a section 'optimizer', and this loop has its own"),
        ({"torch_autocast": {"enabled": True}}, "a section 'torch_autocast', and this loop has its own"),
        ({"zero_optimization": {"stage": 3}}, "ZeRO-3 removes parameters between the passes"),
        ({"zero_optimization": {"stage": 0}}, "DeepSpeed without ZeRO is DDP; set zero_stage to 1, 2 or 3"),
        ({"bf16": {"enabled": True}}, "would round the parameters of adaptive masks to bfloat16"),
        ({"fp16": {"enabled": True}}, "mixed_precision = fp16, which this loop does not support"),
    ],
)
def test_a_config_of_deepspeed_that_says_something_else_is_refused(
    section, message, tmp_path, fresh_state, monkeypatch
):
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}} | section))
    without_compiling()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for name, value in {"USE_DEEPSPEED": "true", "DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero.json")}.items():
            monkeypatch.setenv(f"ACCELERATE_{name}", value)
        with pytest.raises(ValueError, match=message):
            finetune(patch_model(build("llama"), "adaptive_span:max=8", check=False), TRAIN, EVAL, SETTINGS)
    finally:
        dist.destroy_process_group()


class Notes(GeneralTracker):
    name, requires_logging_directory, tracker = "notes", False, None

    def __init__(self):
        super().__init__()
        self.config, self.lines, self.finished = None, [], False

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.lines.append({"step": step} | values)

    def finish(self):
        self.finished = True


def test_trackers_are_told_what_the_log_says(tmp_path):
    notes = Notes()
    finetune(model(), TRAIN, EVAL, SETTINGS, output=tmp_path, trackers=[notes], description={"mask": "window:4"})
    assert notes.lines == [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert notes.config["mask"] == "window:4" and notes.config["learning_rate"] == SETTINGS.learning_rate
    assert notes.finished
    notes = Notes()
    with pytest.raises(KilledError):
        finetune(model(), TRAIN, EVAL, SETTINGS, trackers=[notes], on_record=kill_after(2))
    assert notes.finished


def test_trackers_that_are_not_there(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown tracker 'tensorbord'; expected one of .*tensorboard"):
        finetune(model(), TRAIN, EVAL, SETTINGS, trackers=["tensorbord"])
    monkeypatch.setattr("hf_masking.training.journal.get_available_trackers", list)
    with pytest.raises(ValueError, match="the tracker wandb is not installed; pip install wandb"):
        finetune(model(), TRAIN, EVAL, SETTINGS, trackers=["wandb"])


@pytest.mark.parametrize("lora", [None, 2])
def test_the_best_model_in_several_files(tmp_path, lora):
    trained = patch_model(build("llama"), "adaptive_span:max=16,ramp=4|sinks:1", check=False)
    settings = dataclasses.replace(SETTINGS, steps=3, eval_every=3, lora=lora, mask_penalty=5.0)
    finetune(trained, TRAIN, EVAL, settings, output=tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "best").glob("model-*-of-*.safetensors"))) > 2
    loaded, ids = from_pretrained(tmp_path / "best"), tokens(1, 30)
    assert {bool((p < 1).any()) for name, p in loaded.named_parameters() if name.endswith("share")} == {True}
    torch.testing.assert_close(loaded(ids).logits, trained.eval()(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", ["5 apples", "-1GB", 0, ""])
def test_wrong_sizes(size):
    with pytest.raises(ValueError, match="max_shard_size must be a number of bytes or a size such as '2GB', got"):
        finetune(model(), TRAIN, EVAL, SETTINGS, max_shard_size=size)


def stream_of(ids, buffer=1):
    lengths = [7, 0, 22, 1, 40, 3] * (len(ids) // 73 + 1)
    ends = torch.tensor(lengths).cumsum(0)
    pieces = [ids[end - length : end].tolist() for end, length in zip(ends.tolist(), lengths, strict=True)]
    return TokenStream(lambda skip: iter(pieces[skip:]), buffer)


def test_a_stream_has_the_contexts_of_the_text():
    whole = Contexts.pack(TRAIN[: 16 * 43 + 1], 16)
    source = Streamed(stream_of(TRAIN), 16, 3, seed=0)
    steps = [source.of_step(step) for step in range(14)]
    assert torch.equal(torch.cat([step.inputs for step in steps]), whole.inputs[:42])
    assert torch.equal(torch.cat([step.labels for step in steps]), whole.labels[:42])
    # The next pass follows without a gap.
    source = Streamed(stream_of(TRAIN), 16, 1, seed=0)
    tokens = torch.cat([source.of_step(step).inputs[0] for step in range(100)])
    assert torch.equal(tokens, TRAIN.repeat(3)[:1600])


def test_a_buffer_shuffles_and_loses_nothing():
    def drawn(seed, steps=200):
        source = Streamed(stream_of(TRAIN[:320], 8), 16, 1, seed)
        return [tuple(source.of_step(step).inputs[0].tolist()) for step in range(steps)]

    first, in_order = drawn(0), {tuple(row) for row in TRAIN[:320].view(-1, 16).tolist()}
    assert first == drawn(0) != drawn(1)
    assert set(first) == in_order
    assert {first.count(row) for row in in_order} <= {9, 10, 11}


def test_a_stream_without_text():
    with pytest.raises(ValueError, match="the stream to train on has 0 tokens, and one context of 16 needs 17"):
        finetune(model(), TokenStream(lambda skip: iter([[], []][skip:])), EVAL, SETTINGS)
    with pytest.raises(ValueError, match="the buffer must hold at least 1 context, got 0"):
        finetune(model(), stream_of(TRAIN, 0), EVAL, SETTINGS)


@pytest.mark.parametrize("buffer", [1, 5])
def test_a_run_on_a_stream_resumes(tmp_path, buffer):
    whole = finetune(model(), stream_of(TRAIN, buffer), EVAL, SETTINGS, output=tmp_path / "whole")
    with pytest.raises(KilledError):
        finetune(model(), stream_of(TRAIN, buffer), EVAL, SETTINGS, output=tmp_path / "run", on_record=kill_after(5))
    skipped = []
    stream = stream_of(TRAIN, buffer)
    noted = TokenStream(lambda skip: skipped.append(skip) or stream.documents(skip), buffer)
    resumed = finetune(model(), noted, EVAL, SETTINGS, output=tmp_path / "run", resume=True)
    assert resumed.losses == whole.losses
    assert skipped[0] > 0, "what was read before is read again"
