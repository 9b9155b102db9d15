"""recall.py, copying.py, passkey.py, questions.py: items are what they say, at exactly the distance they say."""

import re

import pytest
import torch
from transformers import AutoTokenizer

from hf_masking.evaluation import Copy, Passkey, Recall, probe_task
from hf_masking.evaluation.probes import Questions, ordinary_tokens
from hf_masking.evaluation.probes.passkey import HIDDEN, QUESTION

from .tokenizers import of_characters, of_digit_pairs

TOKENS = range(100, 160)


def drawn(task, context, **options):
    return list(Questions(task, context, **{"questions": 20} | options))


def questions_of(items):
    """Each question as (tokens read, what follows them or None, candidates, right one, distance)."""
    for item in items:
        ids = item.token_ids.tolist()
        asked, right, back = item.asked.tolist(), item.right.tolist(), item.distances.tolist()
        for column, candidates, index, distance in zip(asked, item.candidates.tolist(), right, back, strict=True):
            follows = ids[column + 1] if column + 1 < len(ids) else None
            yield ids[: column + 1], follows, [tuple(some) for some in candidates], tuple(candidates[index]), distance


@pytest.mark.parametrize("context", [6, 10, 33, 200])
def test_recall(context):
    items = drawn(Recall(TOKENS), context)
    assert [len(item.token_ids) for item in items] == [context] * 20
    for read, follows, candidates, (right,), distance in questions_of(items):
        key = read[-1]
        assert read.count(key) == 2 and read.index(key) == len(read) - 1 - distance - 1
        assert read[-1 - distance] == right and follows in (None, right)
        assert len(set(candidates)) == 8 and (right,) in candidates and (key,) not in candidates
        assert set(read) <= set(TOKENS)
    assert {item.distances.tolist()[-1] for item in items} == {context - 2}
    # Values stand nowhere but after the keys.
    values = {value for (value,) in map(tuple, items[0].candidates[0].tolist())}
    assert sum(token in values for token in items[0].token_ids.tolist()) == 2 * len(items[0].right) - 1


@pytest.mark.parametrize("context", [25, 40, 200])
def test_copy(context):
    items = drawn(Copy(TOKENS), context)
    for read, follows, candidates, (right,), distance in questions_of(items):
        assert len(read) <= context and follows in (None, right)
        assert read[-1 - distance] == right and read[-2 - distance] == read[-1] and read.count(read[-1]) == 2
        assert len(set(candidates)) == 8
        # All candidates stand in the first copy, once, and not in what has been repeated of it.
        assert all(read.count(token) == 1 for (token,) in candidates)
        assert all(len(read) - 1 - read.index(token) <= distance for (token,) in candidates)
    assert {int(item.distances[0]) for item in items} == {16, *({context - 9} if context > 25 else ()), *(
        (32, 64, 128 if context - 9 >= 192 else 64) if context == 200 else ()
    )}  # fmt: skip


@pytest.mark.parametrize("make", [of_characters, of_digit_pairs])
def test_passkey(make):
    tokenizer = make()
    context = 300
    items = drawn(Passkey(tokenizer), context)
    assert len(items) == 20 * len({int(item.distances[0]) for item in items})
    for read, _, candidates, right, distance in questions_of(items):
        text, keys = tokenizer.decode(read), [tokenizer.decode([i for i in some if i >= 0]) for some in candidates]
        key = tokenizer.decode([i for i in right if i >= 0]).strip()
        begun = text[text.rindex("The pass key is") + len("The pass key is") :]
        assert re.findall(r"\d+", text.removesuffix(begun)) == [(begun + key).strip()], text
        assert HIDDEN.format(f"{begun.strip()}{key}") in text and text.endswith(QUESTION.format("").strip() + begun)
        assert tokenizer.decode(read[-1 - distance :]).lstrip().startswith(f"{begun}{key}".strip())
        assert len(set(keys)) == 8 and all(len((begun + other).strip()) == 5 for other in keys)
        assert len(read) + max(map(len, candidates)) - 1 == context
    lengths = {sum(token >= 0 for token in some) for item in items for some in item.candidates[0].tolist()}
    assert lengths == ({5} if make is of_characters else {3, 4, 5}) or (make is of_digit_pairs and len(lengths) > 1)


def test_what_lies_nearer_says_nothing_about_the_answer():
    """Right answers are spread evenly over the candidates, and over their order."""
    for task in (Recall(TOKENS), Copy(TOKENS), Passkey(of_characters())):
        right = torch.cat([item.right for item in drawn(task, 200, questions=100)])
        shares = torch.bincount(right, minlength=8) / len(right)
        assert (shares - 1 / 8).abs().max() < 4 * (1 / 8 * 7 / 8 / len(right)) ** 0.5


def test_the_same_seed_asks_the_same():
    task = Recall(TOKENS)
    one, again, other = (drawn(task, 50, seed=seed)[7].token_ids.tolist() for seed in (3, 3, 4))
    assert one == again != other
    questions = Questions(task, 50)
    assert [item.token_ids.tolist() for item in questions] == [item.token_ids.tolist() for item in questions]


def test_a_bos_token_stands_first_and_moves_nothing():
    (plain, *_), (begun, *_) = drawn(Recall(TOKENS), 50), drawn(Recall(TOKENS), 51, bos_token_id=7)
    assert begun.token_ids.tolist() == [7, *plain.token_ids.tolist()]
    assert (begun.asked - 1).tolist() == plain.asked.tolist()
    assert begun.distances.tolist() == plain.distances.tolist()


def test_distances_are_spaced_logarithmically():
    assert Questions(Recall(TOKENS), 512).distances == [4, 8, 16, 32, 64, 128, 256, 510]
    assert Questions(Recall(TOKENS), 8).distances == [6]
    assert Questions(Copy(TOKENS), 512).distances == [16, 32, 64, 128, 256, 503]
    assert len(Questions(Copy(TOKENS), 512)) == 6 * 64 and len(Questions(Copy(TOKENS), 512, questions=9)) == 6 * 16
    asked = Questions(Recall(TOKENS), 512, distances=[300, 5])
    assert {tuple(item.distances.tolist()) for item in asked} == {(5, 300)}


@pytest.mark.parametrize(
    ("task", "context", "options", "message"),
    [
        (Recall(TOKENS), 5, {}, "context must be at least 6 tokens for this probe, got 5"),
        (Recall(TOKENS), 6, {"bos_token_id": 1}, "context must be at least 7 tokens for this probe, got 6"),
        (Copy(TOKENS), 24, {}, "context must be at least 25 tokens for this probe, got 24"),
        (Recall(TOKENS), 2**24 + 1, {}, "context must be at most 16,777,216, got 16777217"),
        (Recall(TOKENS), 50, {"distances": [5, 49]}, "distances must be from 4 to 48 in this context, got [5, 49]"),
        (Recall(TOKENS), 50, {"distances": []}, "distances must be from 4 to 48 in this context, got []"),
        (Recall(TOKENS), 50, {"distances": [5, 8]}, "the distances of recall must be at least 4 apart, got [5, 8]"),
        (Recall(TOKENS), 50, {"questions": 0}, "questions must be from 1 to 2147483647, got 0"),
        (Recall(TOKENS), 50, {"seed": -1}, "seed must be from 0 to 9223372036854775807, got -1"),
        (Recall(range(20)), 50, {}, "recall takes at least 21 ordinary tokens (letters or digits), got 20"),
        (Copy(range(23)), 50, {}, "copy takes at least 24 ordinary tokens (letters or digits), got 23"),
    ],
)
def test_what_cannot_be_asked(task, context, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Questions(task, context, **options)


def test_the_least_that_can_be_asked():
    assert drawn(Recall(range(21)), 50) and drawn(Copy(range(24)), 50)


def test_ordinary_tokens(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_special_tokens({"eos_token": "a"})
    tokenizer.add_tokens(["word"])
    letters = [tokenizer.decode([token]) for token in ordinary_tokens(tokenizer)]
    assert sorted(letters) == sorted("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZbcdefghijklmnopqrstuvwxyz")


def test_a_tokenizer_without_digits():
    tokenizer = of_characters("abcdefghijklmnopqrstuvwxyzTWHIR .?")
    with pytest.raises(ValueError, match=r"not tell numbers such as \d{5} and \d{5} apart, .*; use recall or copy"):
        probe_task("passkey", tokenizer)
    assert drawn(probe_task("recall", tokenizer), 40)


def test_unknown_probes():
    with pytest.raises(ValueError, match="probe must be one of recall, copy, passkey, got 'recal'"):
        probe_task("recal", of_characters())
