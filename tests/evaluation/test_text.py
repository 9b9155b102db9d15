"""Texts from files, folders, the hub's data sets and the standard library."""

import hashlib
import re

import datasets
import pytest
import torch

from hf_masking.evaluation import Text, encode, load_text

from ..conftest import TEXT


def test_a_file_and_a_folder(tmp_path):
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a.md").write_text("first\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert load_text(str(tmp_path / "b.txt")).content == "second\n"
    assert load_text(str(tmp_path)).content == "first\n\nsecond\n"


def test_the_standard_library():
    text = load_text("stdlib")
    assert len(text.content) > 1_000_000
    assert "class ArgumentParser" in text.content
    assert text.sha256 == load_text("stdlib").sha256 == hashlib.sha256(text.content.encode()).hexdigest()


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"text": ["one", "two"], "label": [0, 1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_text("someone/wiki:raw", split="train").content == "one\ntwo"
    assert load_text("someone/wiki").content == "one\ntwo"
    assert asked == [("someone/wiki", "raw", "train"), ("someone/wiki", None, "test")]
    with pytest.raises(ValueError, match="has no column 'body'; its columns are text, label"):
        load_text("someone/wiki", column="body")


def test_the_held_out_part_starts_with_a_line():
    train, held_out = Text("x", TEXT).split(0.1)
    assert train.content + held_out.content == TEXT
    assert train.content.endswith("\n")
    assert 0.05 * len(TEXT) < len(held_out.content) <= 0.1 * len(TEXT)


@pytest.mark.parametrize("max_tokens", [None, 1, 50, 3279, 3280, 9999])
def test_a_cut_text_is_the_beginning_of_the_whole(model_folder, max_tokens):
    from transformers import AutoTokenizer

    text = Text("x", TEXT.replace("fox", "füchse"))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    whole = torch.tensor(tokenizer(text.content)["input_ids"])
    ids, n_bytes = encode(text, tokenizer, max_tokens)
    assert torch.equal(ids, whole[:max_tokens])
    # This tokenizer has a token a byte; a cut inside a character counts the character whole.
    assert len(ids) <= n_bytes <= len(ids) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "is not UTF-8 text (byte 0); convert it or name another file"),
        (b" \n", "is empty; name a file"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_text(str(tmp_path / "a.txt"))


def test_a_folder_without_text(tmp_path):
    with pytest.raises(ValueError, match="no text files in"):
        load_text(str(tmp_path))
