"""A run that a kill, a full disk or a careless user has damaged is recovered, or named in one sentence."""

import json
import re
import shutil

import pytest
import torch
from safetensors import SafetensorError

from hf_masking import from_pretrained
from hf_masking.training import TokenStream, finetune

from .test_finetune import EVAL, SETTINGS, TRAIN, KilledError, kill_after, model


def train(folder, **more):
    """With dropout, so that the random states count too."""
    return finetune(model(attention_dropout=0.2), TRAIN, EVAL, SETTINGS, output=folder, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
    """A run of 8 steps that was killed in the 8th, with checkpoints after 4 and 6."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(KilledError):
        train(folder, on_record=kill_after(8))
    return folder


@pytest.fixture
def killed(killed_run, tmp_path):
    return shutil.copytree(killed_run, tmp_path / "run")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path):
    path.write_bytes(b"garbage")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


NEWEST = [
    ("model.safetensors", cut),
    ("optimizer.bin", overwrite),
    ("optimizer.bin", flip),
    ("random_states_0.pkl", lambda path: path.unlink()),
    ("engine.json", overwrite),
    ("engine.json", lambda path: path.write_text('{"engine": "DDP"}')),
    ("engine.json", lambda path: path.unlink()),
]


@pytest.mark.parametrize(("name", "damage"), NEWEST)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(killed, whole, caplog, name, damage):
    damage(killed / "checkpoints" / "step-000006" / name)
    resumed = train(killed, resume=True)
    assert resumed.losses == whole.losses
    assert resumed.evaluations == whole.evaluations
    (said,) = caplog.messages
    assert re.search(rf"the checkpoint .*step-000006 is damaged \(.*{name}.*\); continuing from step-000004", said)


def test_the_damaged_checkpoint_does_not_count_as_one_of_those_that_stay(killed, whole, tmp_path):
    overwrite(killed / "checkpoints" / "step-000006" / "optimizer.bin")
    with pytest.raises(KilledError):
        train(killed, resume=True, on_record=kill_after(5))
    assert train(killed, resume=True).losses == whole.losses
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["step-000006", "step-000008"]


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_without_a_whole_checkpoint_is_refused(killed):
    for steps in (4, 6):
        overwrite(killed / "checkpoints" / f"step-00000{steps}" / "optimizer.bin")
    before = files(killed)
    with pytest.raises(
        ValueError, match=r"no checkpoint in .*checkpoints can be read: step-000006 is damaged \(opt.* a"
    ):
        train(killed, resume=True)
    assert files(killed) == before


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_damaged_description_is_named(killed, content):
    (killed / "run.json").write_bytes(content)
    before = files(killed)
    with pytest.raises(ValueError, match=r"run.json is damaged \(.*\); restore it, or give another --output"):
        train(killed, resume=True)
    assert files(killed) == before


UNREADABLE = [
    b"\xff\xfe\x00", b"[1]", b'{"step": "two"}', b'{"step": 1', b"[" * 100_000, b'{"step": 4, "loss": "x"}',
    b'{"step": 4, "loss": 1.0}', b'{"step": 4, "perplexity": null}',
]  # fmt: skip


@pytest.mark.parametrize("line", UNREADABLE)
def test_a_damaged_log_is_named(killed, line):
    log = killed / "log.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:3], line, *lines[4:]]))
    before = files(killed)
    with pytest.raises(ValueError, match=r"log.jsonl is damaged after line 3: a run that continues after step 6 needs"):
        train(killed, resume=True)
    assert files(killed) == before


@pytest.mark.parametrize("line", [b"\x00" * 9, b"\xff\xfe", b'{"step": 8, "lo'])
def test_what_a_log_lost_after_the_checkpoint_does_not_matter(killed, whole, line):
    with (killed / "log.jsonl").open("ab") as file:
        file.write(line)
    assert train(killed, resume=True).losses == whole.losses


def test_what_is_no_checkpoint_is_left_alone(killed, whole, caplog):
    mine = [killed / "checkpoints" / name for name in ("step-abc", "step-000004-copy")]
    for path in mine:
        path.mkdir()
    assert train(killed, resume=True).losses == whole.losses
    assert all(path.exists() for path in mine)
    (said,) = [message for message in caplog.messages if "step-abc" in message]
    assert "step-abc is not a checkpoint of this run and is left alone" in said


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("lose", [shutil.rmtree, empty, lambda best: (best / "model.safetensors").unlink()])
def test_a_best_model_that_is_gone_is_missed(tmp_path, lose):
    train(tmp_path / "run")
    lose(tmp_path / "run" / "best")
    with pytest.raises(ValueError, match=r"best is missing, where the best model was saved after step \d; put it back"):
        train(tmp_path / "run", resume=True)


def test_steps_without_a_checkpoint_are_done_again_with_a_warning(killed, whole, caplog):
    shutil.rmtree(killed / "checkpoints")
    assert train(killed, resume=True).losses == whole.losses
    (said,) = caplog.messages
    assert "checkpoints holds no checkpoint; starting again from step 0, without the 10 later lines of the log" in said


def test_what_a_kill_left_while_saving_is_cleared_away(killed, whole):
    """Between its two renames the best model is under neither name; its partial copy may be cut anywhere."""
    expected = from_pretrained(killed / "best")
    (killed / "best").rename(killed / ".best.4711.old")
    for name in (".best.4711.partial", "checkpoints/.step-000008.0.partial", "checkpoints/.step-000006.4711.old"):
        (killed / name).mkdir()
        (killed / name / "model.safetensors").write_bytes(b"half a mod")
    (killed / ".run.json.4711.partial").write_text("{")
    loaded = []

    def look(record):
        if not loaded:
            loaded.append(from_pretrained(killed / "best"))

    assert train(killed, resume=True, on_record=look).losses == whole.losses
    for mine, theirs in zip(loaded[0].parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not list(killed.rglob(".*"))


def fail(*arguments, **options):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


FAILURES = [
    ({"seed": -1}, TRAIN, "seed must be from 0 to 4294967295, got -1"),
    ({"seed": 2**32}, TRAIN, "seed must be from 0 to"),
    ({"learning_rate": float("inf")}, TRAIN, "learning_rate must be greater than 0 and finite, got inf"),
    ({"weight_decay": float("nan")}, TRAIN, "weight_decay must be at least 0 and finite, got nan"),
    ({"learning_rate": 1e30, "eval_every": 8, "checkpoint_every": 8}, TRAIN, "the loss became"),
    ({}, TokenStream(lambda skip: iter([[], []][skip:])), "has 0 tokens, and one context of 16 needs 17"),
    ({}, TokenStream(lambda skip: iter([[3] * 7][skip:])), "has 7 tokens, and one context of 16 needs 17"),
    ({}, TokenStream(lambda skip: iter([[3] * 16][skip:])), "has 16 tokens, and one context of 16 needs 17"),
]


@pytest.mark.parametrize(("change", "data", "message"), FAILURES)
@pytest.mark.parametrize("exists", [False, True])
def test_a_run_that_fails_leaves_nothing(tmp_path, change, data, message, exists):
    output = tmp_path / "new" / "run"
    if exists:
        output.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(message)):
        finetune(model(), data, EVAL, SETTINGS.__class__(**vars(SETTINGS) | change), output=output)
    assert sorted(tmp_path.rglob("*")) == before


NO_SPACE = r" could not be written \(.*No space left on device.*\); free some space and run it again with --resume"


def test_a_full_disk_is_named(tmp_path, killed, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("accelerate.Accelerator.save_state", fail)
        with pytest.raises(OSError, match="step-000002" + NO_SPACE):
            train(tmp_path / "new")
        assert not (tmp_path / "new").exists()
        with pytest.raises(OSError, match="step-000008" + NO_SPACE):
            train(killed, resume=True)
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
        with pytest.raises(OSError, match="run/best" + NO_SPACE):
            train(killed, resume=True)
    assert train(killed, resume=True).losses == whole.losses


def test_a_run_that_has_something_worth_keeping_keeps_it(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path / "run", on_record=kill_after(3))
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()


def test_the_description_says_when_and_on_what(tmp_path):
    train(tmp_path / "run")
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    assert held["started"]["versions"]["torch"] == torch.__version__
    assert re.match(r"20\d\d-\d\d-\d\dT", held["started"]["date"])
    held["started"]["versions"]["torch"] = "1.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(held))
    before = files(tmp_path / "run")[tmp_path / "run" / "run.json"]
    train(tmp_path / "run", resume=True)
    assert files(tmp_path / "run")[tmp_path / "run" / "run.json"] == before
