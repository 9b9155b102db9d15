"""Options that several commands share: dataclasses, whose fields become options of the command that takes them."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="a hub id or a folder")]


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one option for every field of its dataclass parameters; ``help`` is in a field's metadata."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += [_option(field, typing.get_type_hints(kind)[field.name]) for field in fields(kind)]
        else:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def command(**values: Any) -> None:
        flags = {name: f"--{name.replace('_', '-')}" for name in values}
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        try:
            function(**values)
        except ValueError as error:
            error.args = tuple(with_flags(word, flags) if isinstance(word, str) else word for word in error.args)
            raise

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """A message that names fields, as it is meant for users of Python, with the options that stand for them."""
    named = "|".join(flags)
    # A word of prose is a field only where the sentence is about it; words with an underscore always are.
    message = re.sub(rf"^({named})(?= (?:must|may|counts|goes)\b)", lambda found: flags[found[1]], message)
    message = re.sub(rf"\b(?:settings|options)\.({named})\b", lambda found: flags[found[1]], message)
    words = rf"(?<![\w./'\"-])({named})(?![\w./'\"-])"
    return re.sub(words, lambda found: flags[found[1]] if "_" in found[1] else found[1], message)


def _option(field: Any, kind: Any) -> inspect.Parameter:
    default = field.default_factory() if field.default is MISSING else field.default
    flags = field.metadata.get("flags", ())
    annotation = Annotated[kind, typer.Option(*flags, help=field.metadata["help"])]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def at_least(minimum: int, **values: int | None) -> None:
    """Raise a ValueError that names the option for a value below ``minimum``."""
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {minimum}, got {value}")


def at_most(maximum: int, **values: int | None) -> None:
    """Raise a ValueError that names the option for a value above ``maximum``."""
    for name, value in values.items():
        if value is not None and value > maximum:
            raise ValueError(f"--{name.replace('_', '-')} must be at most {maximum:,}, got {value}")


def utf_8(**values: str | None) -> None:
    """Raise a ValueError that names the option for a value that holds bytes which are not UTF-8."""
    for name, value in values.items():
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"--{name.replace('_', '-')} is not UTF-8 text (character {error.start}); type it in UTF-8"
            ) from None


@dataclass(frozen=True)
class MaskOptions:
    """Which masks."""

    mask: list[str] = field(default_factory=list, metadata={"help": "a mask, e.g. 'window:256|sinks:4'; repeatable"})
    layer: list[str] = field(
        default_factory=list, metadata={"help": "another mask for one layer, e.g. 0=causal or -1=causal; repeatable"}
    )

    replace_model_window: bool = field(
        default=False,
        metadata={
            "help": "set a window of the model's own (Mistral, Gemma) aside instead of intersecting the mask with it",
            "flags": ("--replace-model-window",),
        },
    )

    def layers(self) -> dict[int, str]:
        """The overrides by layer; raises ValueError for what is not INDEX=SPEC."""
        layers: dict[int, str] = {}
        for item in self.layer:
            index, equals, spec = item.partition("=")
            try:
                number = int(index)
            except ValueError:
                number = None
            if not equals or number is None:
                raise ValueError(f"--layer takes INDEX=MASK such as 0=causal, got {item!r}")
            if number in layers:
                raise ValueError(f"--layer {number} is given twice")
            layers[number] = spec
        return layers


@dataclass(frozen=True)
class DataOptions:
    """Which text."""

    data: str = field(
        default="stdlib",
        metadata={
            "help": "a text file, a folder, - (standard input), a hub data set NAME[:CONFIG], or 'stdlib': this "
            "Python's library"
        },
    )
    split: str = field(default="test", metadata={"help": "the split of a hub data set"})
    column: str = field(default="text", metadata={"help": "the column of a hub data set"})


@dataclass(frozen=True)
class OutputOption:
    """Where the figures go."""

    output: Path | None = field(
        default=None, metadata={"help": "write the figures to this JSON file; - for standard output"}
    )
