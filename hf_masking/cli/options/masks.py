"""Declare the options of `hf-masking masks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...options import option


@dataclass(frozen=True, kw_only=True)
class MasksOptions:
    """List the masks that a spec may name: their arguments, what they allow, and a density."""

    examples: ClassVar = ("hf-masking masks", "hf-masking masks --json")

    json: bool = option(False, "print the list as JSON", "--json")
