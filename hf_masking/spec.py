"""The spec language, such as ``"window:256|sinks:4"``: parse specs, and register masks of your own.

Specs have Python's set operators and their precedence: ``-``, then ``&``, then ``|``, left-associative, and
parentheses. A name is ``[a-z_]+``; its arguments follow a colon and bind tightest: comma-separated unsigned integers,
decimals, words or ``key=value``. So ``offsets:0,1,2-sinks:4`` is a difference. ``heads[a; b]`` gives each half of the
query heads a mask.
"""

from __future__ import annotations

import difflib
import functools
import re
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

from .adaptive import ADAPTIVE
from .masks import FOREVER, PATTERNS, Difference, HeadMasks, Intersection, MaskExpression, Pattern, Union
from .masks.heads import compose
from .masks.mask import MAX_DEPTH

_TOKEN = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)|(?P<name>[a-z_]+)|(?P<symbol>[-|&():,=;\[\]])")
MASKS: dict[str, type[Pattern]] = {**PATTERNS, **ADAPTIVE}  # by the names that a spec may use
MAX_LENGTH = 10_000  # characters of a spec, which may come from anywhere and must not take minutes to parse
_CONTEXT = 60  # characters of a long spec that are shown on either side of the caret


class MaskSyntaxError(ValueError):
    """An error in a spec. The message shows the spec with a caret under the place."""

    @classmethod
    def at(cls, message: str, spec: str, place: int) -> MaskSyntaxError:
        first = max(0, place - _CONTEXT)
        shown = "".join(c if c.isprintable() else "?" for c in spec[first : place + _CONTEXT])
        return cls(f"{message}\n  {shown}\n  {' ' * (place - first)}^")


class _Token(NamedTuple):
    kind: str  # number, name, symbol or end
    text: str
    place: int


def register_mask(pattern: type[Pattern]) -> type[Pattern]:
    """Add a mask of your own to the spec language under its ``name``; usable as a decorator.

    Raises:
        ValueError: not a subclass of `Pattern`; the name is not made of lowercase letters and underscores, or another
            mask has it.
    """
    if not (isinstance(pattern, type) and issubclass(pattern, Pattern)):
        raise ValueError(f"a mask to register is a subclass of Pattern, Weighting or Selection, got {pattern!r}")
    name = getattr(pattern, "name", None)
    if not isinstance(name, str) or not re.fullmatch("[a-z_]+", name):
        raise ValueError(f"{pattern.__name__}.name must be made of lowercase letters and underscores, got {name!r}")
    known = MASKS.get(name, pattern)
    # The same class again, as when a cell of a notebook runs twice, takes the place of the earlier one.
    is_same = (known.__module__, known.__qualname__) == (pattern.__module__, pattern.__qualname__)
    if name == HeadMasks.name or not is_same:
        raise ValueError(f"a mask named {name!r} is known already; give {pattern.__name__} another name")
    MASKS[name] = pattern
    _parse.cache_clear()
    return pattern


def parse_mask(spec: str | MaskExpression) -> MaskExpression:
    """Return the mask that a spec such as ``"window:256|sinks:4"`` stands for; masks are returned unchanged.

    Raises:
        ValueError: neither a spec nor a mask.
        MaskSyntaxError: the spec has an error; the message shows the place.
    """
    if isinstance(spec, MaskExpression):
        return spec
    if not isinstance(spec, str):
        raise ValueError(f"a mask is a Mask or a spec such as 'window:256|sinks:4', got {spec!r}")
    if len(spec) > MAX_LENGTH:
        raise MaskSyntaxError(
            f"a spec may have {MAX_LENGTH:,} characters, got {len(spec):,}: {reprlib.repr(spec)}; build such a mask in "
            "Python, with the operators |, & and -"
        )
    return _parse(spec)


@functools.lru_cache(maxsize=256)
def _parse(spec: str) -> MaskExpression:
    return _Parser(spec).parse()


def _tokens(spec: str) -> list[_Token]:
    tokens, place = [], 0
    while place < len(spec):
        if spec[place] == " ":
            place += 1
            continue
        match = _TOKEN.match(spec, place)
        if match is None:
            hint = "; specs are written in lowercase" if spec[place].isupper() else ""
            raise MaskSyntaxError.at(f"unexpected character {spec[place]!r}{hint}", spec, place)
        tokens.append(_Token(str(match.lastgroup), match.group(), place))
        place = match.end()
    return [*tokens, _Token("end", "", len(spec))]


class _Parser:
    """Parses a spec by recursive descent, one method per level of precedence."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.tokens = _tokens(spec)
        self.next = 0
        self.nesting = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def parse(self) -> MaskExpression:
        mask = self.union()
        if self.token.kind != "end":
            raise self.error(f"expected '|', '&', '-' or the end, got {self.token.text!r}")
        return mask

    def union(self) -> MaskExpression:
        members = [self.intersection()]
        while self.accept("|"):
            members.append(self.intersection())
        return self.build(compose, Union, *members) if len(members) > 1 else members[0]

    def intersection(self) -> MaskExpression:
        members = [self.difference()]
        while self.accept("&"):
            members.append(self.difference())
        return self.build(compose, Intersection, *members) if len(members) > 1 else members[0]

    def difference(self) -> MaskExpression:
        mask = self.atom()
        while self.accept("-"):
            mask = self.build(compose, Difference, mask, self.atom())
        return mask

    def atom(self) -> MaskExpression:
        if self.accept("("):
            self.enter()
            mask = self.union()
            if not self.accept(")"):
                raise self.error(f"expected ')', got {self.token.text or 'the end'!r}")
            self.nesting -= 1
            return mask
        if self.token.kind != "name":
            hint = " (numbers are unsigned; '-' takes a mask away)" if self.token.text == "-" else ""
            raise self.error(f"expected a mask such as 'window:256', got {self.token.text or 'the end'!r}{hint}")
        return self.heads() if self.token.text == HeadMasks.name else self.pattern()

    def heads(self) -> MaskExpression:
        self.advance()
        if not self.accept("["):
            raise self.error(f"expected '[' as in 'heads[window:64; causal]', got {self.token.text or 'the end'!r}")
        self.enter()
        masks = [self.union()]
        while self.accept(";"):
            masks.append(self.union())
        if not self.accept("]"):
            raise self.error(f"expected ';' or ']', got {self.token.text or 'the end'!r}")
        self.nesting -= 1
        return self.build(HeadMasks, tuple(masks))

    def enter(self) -> None:
        self.nesting += 1
        if self.nesting > MAX_DEPTH:
            raise self.error(f"parentheses nest more than {MAX_DEPTH} deep")

    def pattern(self) -> MaskExpression:
        name, patterns = self.advance(), MASKS
        if name.text not in patterns:
            nearest = difflib.get_close_matches(name.text, [*patterns, HeadMasks.name], n=1, cutoff=0.5)
            hint = (
                f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(patterns)}, {HeadMasks.name}[...]"
            )
            raise self.error(f"unknown mask {name.text!r}; {hint}", name)
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        start = name
        if self.accept(":"):
            start = self.token
            self.argument(arguments, keywords)
            while self.accept(","):
                self.argument(arguments, keywords)
            if self.token.kind in ("name", "number"):
                raise self.error(f"expected '|', '&', '-' or the end, got {self.token.text!r}")
        try:
            return patterns[name.text].from_arguments(tuple(arguments), keywords)
        except ValueError as error:
            raise self.error(str(error), start) from None

    def argument(self, arguments: list[Any], keywords: dict[str, Any]) -> None:
        token = self.advance()
        if token.kind == "name" and self.accept("="):
            if token.text in keywords:
                raise self.error(f"{token.text!r} is given twice", token)
            keywords[token.text] = self.value(self.advance())
        elif keywords:
            raise self.error("a plain argument may not follow key=value", token)
        else:
            arguments.append(self.value(token))

    def value(self, token: _Token) -> Any:
        if token.kind == "name":
            return token.text
        if token.kind != "number":
            raise self.error(f"expected an unsigned number or a word, got {token.text or 'the end'!r}", token)
        # Digits are counted first, since int() refuses thousands of them with an error of its own.
        whole = re.split("[.e]", token.text)[0]
        if len(whole) > 4000 or float(token.text) > FOREVER:
            raise self.error(f"numbers must be at most {FOREVER}", token)
        return int(token.text) if token.text == whole else float(token.text)

    def accept(self, symbol: str) -> bool:
        accepted = self.token.kind == "symbol" and self.token.text == symbol
        self.next += accepted
        return accepted

    def advance(self) -> _Token:
        token = self.token
        self.next += token.kind != "end"
        return token

    def build(self, composition: Callable[..., MaskExpression], *operands: Any) -> MaskExpression:
        try:
            return composition(*operands)
        except ValueError as error:
            raise self.error(str(error)) from None

    def error(self, message: str, token: _Token | None = None) -> MaskSyntaxError:
        return MaskSyntaxError.at(message, self.spec, (token or self.token).place)
