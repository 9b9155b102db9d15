"""Turn a dataclass of options into a command whose module is imported when the command runs."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import FieldError
from ..interrupts import Interrupted, raised
from .config_file import read_options
from .terminal import say_interrupted


def command(module: str, options: type) -> Callable[..., None]:
    """Return a function for Typer: it collects its arguments in ``options`` and passes them to ``module``'s `run`.

    Fields that are dataclasses themselves are groups; their fields become options of the same command.
    """
    parameters = list(_parameters(options))
    parameters.append(_config_file(parameters))

    def run(config: Path | None, **values: Any) -> None:
        flags = {name: flag_of(name) for name in values}
        try:
            with raised():
                # Not at the top: these import torch, which `--help` does without.
                from ..evaluation.loading import silence_libraries

                silence_libraries()
                importlib.import_module(module).run(_collected(options, values))
        except FieldError as error:
            raise ValueError(error.sentence(flags)) from error
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


def _config_file(parameters: list[inspect.Parameter]) -> inspect.Parameter:
    """Return the option `--config`, whose file gives the others new defaults."""
    repeatable = {
        parameter.name: typing.get_origin(typing.get_args(parameter.annotation)[0]) is list for parameter in parameters
    }

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            context.default_map = {**(context.default_map or {}), **read_options(path, repeatable)}
        return path

    option = typer.Option(
        "--config", is_eager=True, callback=read, help="read options from this YAML file; the command line overrides"
    )
    return inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
    )


def _collected(options: type, values: Mapping[str, Any]) -> Any:
    """Return an instance of ``options`` with the values of its fields and of those of its groups."""
    kinds = typing.get_type_hints(options)
    return options(
        **{
            field.name: _collected(kinds[field.name], values) if is_dataclass(kinds[field.name]) else values[field.name]
            for field in fields(options)
        }
    )
