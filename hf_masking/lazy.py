"""Import the public names of a package when the first one is used: torch and Transformers take seconds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def names_of(package: str, module: str, **apart: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for ``package`` that imports ``module`` and copies the names in its ``__all__``.

    Parameters:
        apart: public names that their own modules export, each imported only when its name is used.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 (a package's hook, PEP 562)
        # Python itself looks up such names; that must not import anything.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        held = vars(sys.modules[package])
        if name in apart:
            held[name] = getattr(importlib.import_module(apart[name], package), name)
            return held[name]
        public = importlib.import_module(module, package)
        names = {name: getattr(public, name) for name in public.__all__}
        held.update(names, __all__=[*public.__all__, *apart])
        try:
            return held[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None

    return __getattr__
