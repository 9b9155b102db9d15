"""Turn a dataclass of options into a command whose module is imported when the command runs."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any

import typer

from ..interrupts import Interrupted, raised
from .terminal import say_interrupted


def command(module: str, options: type) -> Callable[..., None]:
    """Return a function for Typer: it collects its arguments in ``options`` and passes them to ``module``'s `run`.

    Fields that are dataclasses themselves are groups; their fields become options of the same command.
    """
    parameters = list(_parameters(options))

    def run(**values: Any) -> None:
        flags = {name: flag_of(name) for name in values}
        try:
            with raised():
                # Not at the top: these import torch, which `--help` does without.
                from ..evaluation.loading import silence_libraries

                silence_libraries()
                importlib.import_module(module).run(_collected(options, values))
        except ValueError as error:
            error.args = tuple(with_flags(word, flags) if isinstance(word, str) else word for word in error.args)
            raise
        except KeyboardInterrupt as stop:
            say_interrupted(str(stop))
            raise typer.Exit(stop.exit_code if isinstance(stop, Interrupted) else 130) from None

    run.__doc__ = inspect.getdoc(options)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def flag_of(name: str) -> str:
    """Return the flag of a field: `--batch-size` for `batch_size`."""
    return f"--{name.replace('_', '-')}"


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """Return a message about fields with the flags that stand for them on the command line."""
    named = "|".join(flags)
    # A plain word is a field only where the sentence is about it; words with an underscore always are.
    message = re.sub(rf"^({named})(?= (?:must|may|counts|goes)\b)", lambda found: flags[found[1]], message)
    message = re.sub(rf"\b(?:settings|options)\.({named})\b", lambda found: flags[found[1]], message)
    words = rf"(?<![\w./'\"-])({named})(?![\w./'\"-])"
    return re.sub(words, lambda found: flags[found[1]] if "_" in found[1] else found[1], message)


def _parameters(options: type) -> Iterator[inspect.Parameter]:
    kinds = typing.get_type_hints(options)
    for field in fields(options):
        if is_dataclass(kinds[field.name]):
            yield from _parameters(kinds[field.name])
        else:
            yield _parameter(field, kinds[field.name])


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    declare = typer.Argument if field.metadata.get("positional") else typer.Option
    annotation = Annotated[kind, declare(*field.metadata.get("flags", ()), help=field.metadata["help"])]
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if default is MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _collected(options: type, values: Mapping[str, Any]) -> Any:
    """Return an instance of ``options`` with the values of its fields and of those of its groups."""
    kinds = typing.get_type_hints(options)
    return options(
        **{
            field.name: _collected(kinds[field.name], values) if is_dataclass(kinds[field.name]) else values[field.name]
            for field in fields(options)
        }
    )
