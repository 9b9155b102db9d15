"""Read the options of a command from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_options(path: Path, parameters: Mapping[str, bool]) -> dict[str, Any]:
    """Return the values of a YAML file by parameter.

    Parameters:
        parameters: the names of the command's parameters, and whether each is repeatable.

    Raises:
        ValueError: the file is not a YAML mapping of options to values, or names an option that does not exist.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must map options to values, such as 'context: 1024', got {type(found).__name__}")
    values = {str(key).replace("-", "_"): value for key, value in found.items()}
    for name, value in values.items():
        if name not in parameters:
            known = ", ".join(sorted(parameters)).replace("_", "-")
            raise ValueError(f"{path} has {name.replace('_', '-')!r}, which this command lacks; it takes {known}")
        values[name] = _value(path, name, value, repeatable=parameters[name])
    return values


def _value(path: Path, name: str, value: Any, *, repeatable: bool) -> Any:
    """Return a value as Click takes it: lists for repeatable options, INDEX=MASK for a mapping of layers."""
    if repeatable and isinstance(value, dict):
        return [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, dict) or (isinstance(value, list) and not repeatable):
        raise ValueError(f"{path}: {name.replace('_', '-')} takes one value, got {value!r}")
    return [value] if repeatable and not isinstance(value, list) else value
