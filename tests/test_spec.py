"""The spec language: what it accepts, what it prints, and how it refuses."""

import pickle
import random
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings

from hf_masking import MaskSyntaxError, parse_mask, register_mask, spec
from hf_masking.adaptive import AdaptiveSpan
from hf_masking.masks import Difference, Offsets, Sinks, SlidingWindow, Strided, Union
from hf_masking.masks.mask import _Members

from .masks.strategies import expressions


@given(expressions)
@settings(max_examples=2000)
def test_a_printed_mask_parses_to_the_same_value(mask):
    assert parse_mask(str(mask)) == mask


@given(expressions)
@settings(max_examples=500)
def test_no_pair_of_parentheses_can_be_left_out(mask):
    printed = str(mask)
    for place, character in enumerate(printed):
        if character == "(":
            end, depth = place, 0
            for end in range(place, len(printed)):
                depth += {"(": 1, ")": -1}.get(printed[end], 0)
                if depth == 0:
                    break
            assert parse_mask(printed[:place] + printed[place + 1 : end] + printed[end + 1 :]) != mask


@pytest.mark.parametrize(
    ("spec", "printed"),
    [
        ("window:256|sinks:4", "window:256|sinks:4"),
        (" ( window:256 | (sinks:4 | causal) ) ", "window:256|sinks:4|causal"),
        ("offsets:4,1,1,0", "offsets:0,1,4"),
        ("block_local:64,0", "block_local:64"),
        ("block_local:block_size=64,lookback=1", "block_local:64,1"),
        ("log_sparse:2", "log_sparse"),
        ("causal-window:3-sinks:2", "causal-window:3-sinks:2"),
        ("causal-(window:3-sinks:2)", "causal-(window:3-sinks:2)"),
        ("causal&(window:3|sinks:2)-strided:2", "causal&(window:3|sinks:2)-strided:2"),
    ],
)
def test_printed_form(spec, printed):
    assert str(parse_mask(spec)) == printed


def test_precedence_is_that_of_python():
    a, b, c = SlidingWindow(5), Sinks(2), Offsets((1, 3))
    assert parse_mask("window:5|sinks:2&offsets:1,3") == a | b & c
    assert parse_mask("window:5&sinks:2-offsets:1,3") == a & b - c
    assert parse_mask("offsets:1,3-sinks:2") == Difference(c, b)
    assert parse_mask("window:5|sinks:2|offsets:1,3") == Union((a, b, c))


@pytest.mark.parametrize(
    ("spec", "message", "place"),
    [
        ("", "expected a mask such as 'window:256', got 'the end'", 0),
        ("windw:3", "unknown mask 'windw'; did you mean 'window'?", 0),
        ("qqq", "unknown mask 'qqq'; known: causal, window", 0),
        ("window:3 sinks:2", "expected '|', '&', '-' or the end, got 'sinks'", 9),
        ("window:3|", "expected a mask such as 'window:256', got 'the end'", 9),
        ("window:-3", "expected an unsigned number or a word, got '-'", 7),
        ("window:0", "window: `window` must be an integer from 1 to 2147483647, got 0", 7),
        ("window:1.5", "got 1.5", 7),
        ("window", "window: missing a required argument: 'window'; write window:window", 0),
        ("window:1,2", "window: too many positional arguments", 7),
        ("causal:1", "causal: too many positional arguments; write causal", 7),
        ("block_local:2,size=3", "unexpected keyword argument 'size'", 12),
        ("block_local:lookback=3,lookback=4", "'lookback' is given twice", 23),
        ("block_local:lookback=3,4", "a plain argument may not follow key=value", 23),
        ("strided:0", "strided: `stride` must be", 8),
        ("(window:3", "expected ')', got 'the end'", 9),
        ("window:3)", "got ')'", 8),
        ("window:3^2", "unexpected character '^'", 8),
        ("window:99999999999", "numbers must be at most 2147483647", 7),
        ("window:" + "9" * 9000, "numbers must be at most", 7),
        ("(" * 65 + "causal" + ")" * 65, "parentheses nest more than 64 deep", 65),
        ("causal" + "-causal" * 65, "a mask may nest 64 operators deep, got 65", 461),
    ],
)
def test_errors_show_the_place(spec, message, place):
    with pytest.raises(MaskSyntaxError) as error:
        parse_mask(spec)
    text, shown, caret = str(error.value).split("\n")
    assert message in text
    assert caret.index("^") == 2 + min(place, 60)
    assert shown[2:] == spec[max(0, place - 60) : place + 60]


def test_errors_can_cross_a_process():
    with pytest.raises(MaskSyntaxError) as error:
        parse_mask("windw:3")
    twin = pickle.loads(pickle.dumps(error.value))
    assert type(twin) is MaskSyntaxError
    assert str(twin) == str(error.value)


def test_a_spec_must_be_a_text():
    with pytest.raises(ValueError, match="a mask is a Mask or a spec"):
        parse_mask(3)


@pytest.mark.parametrize("spec", ["(" * 10**6, "|".join(["causal"] * 50_000), "window:" + "9" * 20_000])
def test_a_spec_that_is_too_long_is_not_read(spec, monkeypatch):
    monkeypatch.setattr("hf_masking.spec._tokens", None)
    with pytest.raises(MaskSyntaxError, match=f"a spec may have 10,000 characters, got {len(spec):,}: '") as error:
        parse_mask(spec)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("operator", ["|", "&"])
@pytest.mark.parametrize("place", [0, 600, -1])
def test_a_chain_is_read_in_linear_time(operator, place, monkeypatch):
    """A composition copies its members, so what all of them had in sum is what it cost."""
    copied, count = [], _Members.__post_init__

    def counting(self):
        count(self)
        copied.append(len(self.members))

    monkeypatch.setattr(_Members, "__post_init__", counting)
    terms = ["sinks:1"] * 1000
    terms[place] = str(AdaptiveSpan(9))
    mask = parse_mask(operator.join(terms))
    mask.normal_form()
    assert sum(copied) < 10 * len(terms)


def test_random_strings_raise_nothing_but_the_parsers_error():
    draw = random.Random(7)
    pieces = ["window", "sinks", "causal", "offsets", "strided", "block_local", ":", ",", "=", "(", ")", "-", "&", "|"]
    pieces += [" ", "3", "0", "1.5", "99999999999", "x", "é", "\n", "\0", "٣", "²", "[", ";", "width"]
    parsed = 0
    for _ in range(100_000):
        spec = "".join(draw.choices(pieces, k=draw.randint(0, 12)))
        try:
            assert parse_mask(str(parse_mask(spec))) == parse_mask(spec)
            parsed += 1
        except MaskSyntaxError:
            pass
    assert parsed > 200


def test_adaptive_masks_are_known_to_a_fresh_interpreter():
    script = "from hf_masking import parse_mask; print(parse_mask('adaptive_span:max=8|sinks:1'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "adaptive_span:max=8|sinks:1\n", done.stderr


@dataclass(frozen=True)
class EveryThird(Strided):
    """A mask of somebody else's."""

    name: ClassVar[str] = "every_third"
    stride: int = 3


def test_a_mask_of_your_own_has_a_name(monkeypatch):
    monkeypatch.setattr(spec, "MASKS", dict(spec.MASKS))
    register_mask(EveryThird)
    mask = parse_mask("every_third|window:4")
    assert mask == EveryThird() | SlidingWindow(4)
    assert str(mask) == "every_third|window:4"
    assert mask.allows(torch.tensor(9), torch.tensor([3, 4, 6])).tolist() == [True, False, True]


def test_a_mask_of_your_own_is_defined_again(monkeypatch):
    """As in a notebook whose cell runs twice."""
    monkeypatch.setattr(spec, "MASKS", dict(spec.MASKS))

    def cell():
        @register_mask
        @dataclass(frozen=True)
        class Mine(Strided):
            name: ClassVar[str] = "mine"

        return Mine

    first, second = cell(), cell()
    assert type(parse_mask("mine:3")) is second is not first


def test_only_patterns_are_registered():
    with pytest.raises(ValueError, match="a mask to register is a subclass of Pattern, Weighting or Selection, got"):
        register_mask(type("Mine", (), {"name": "mine"}))


@pytest.mark.parametrize("name", ["window", "heads", "Third", "", None, "third1"])
def test_a_name_that_cannot_be_registered(name):
    pattern = type("Third", (Strided,), {"name": name})
    with pytest.raises(ValueError, match=r"Third\.name must be made of|give Third another name"):
        register_mask(pattern)
    assert pattern not in spec.MASKS.values()
