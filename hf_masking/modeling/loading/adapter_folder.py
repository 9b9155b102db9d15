"""Find an adapter that PEFT has saved, with the base model and the mask that it names."""

from __future__ import annotations

import json
import warnings
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, find_adapter_config_file

from ..patching.config import KEY

_INSIDE = "base_model.model."  # the prefix that PEFT gives the names of the wrapped model's weights


@dataclass(frozen=True)
class Adapter:
    """The adapter in a folder or a hub repository.

    attributes: its config, without the entry of the mask.
    entry: the mask, as in a config.json; None for no mask.
    where: where its files are found, as keyword arguments of `from_pretrained`.
    """

    path: str
    attributes: dict[str, Any]
    entry: Any
    where: dict[str, Any]

    @property
    def base(self) -> str:
        """The base model: a folder or a hub id."""
        return str(self.attributes["base_model_name_or_path"])

    @property
    def revision(self) -> str | None:
        """The revision of the base model; None for the default."""
        return self.attributes.get("revision")

    @cached_property
    def weights(self) -> Set[str]:
        """The names of the weights that the adapter holds, as the model calls them that it is put into."""
        from peft import load_peft_weights

        return {name.removeprefix(_INSIDE) for name in load_peft_weights(self.path, device="cpu", **self.where)}

    def around(self, model: PreTrainedModel, **options: Any) -> Any:
        """Return the `PeftModel` around a base model; raises ValueError if weights of the adapter are missing."""
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_peft_type(**self.attributes)
        with warnings.catch_warnings():
            # PEFT uses a name that Transformers has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", "Found missing adapter keys")
            try:
                return PeftModel.from_pretrained(model, self.path, config=config, **self.where, **options)
            except UserWarning as missing:
                raise ValueError(f"{self.path} lacks weights, which would be random: {missing}") from None


def find(path: str | PathLike[str], where: dict[str, Any]) -> Adapter | None:
    """Return the adapter that a folder or a hub repository holds, None if it holds a model.

    Raises:
        ValueError: PEFT is not installed, or the adapter's config is damaged or does not name its base model.
    """
    where = {name: value for name, value in where.items() if name != "variant"}
    file = _config_file(Path(path), where)
    if file is None:
        return None
    try:
        attributes = dict(json.loads(Path(file).read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); save the adapter again") from None
    entry = attributes.pop(KEY, None)
    if not attributes.get("base_model_name_or_path"):
        raise ValueError(
            f"the adapter {path} names no base model (it was trained on one that came from no checkpoint); load that, "
            "patch_model(model, mask), and PeftModel.from_pretrained(model, path)"
        )
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ValueError(f"{path} is an adapter, which needs PEFT; pip install 'hf-masking[lora]'") from None
    return Adapter(str(path), attributes, entry, where)


def _config_file(path: Path, where: dict[str, Any]) -> str | None:
    if path.is_dir():
        folder = path / (where.get("subfolder") or "")
        # With a model beside it, it is that model's: Transformers loads both.
        whole, file = folder / CONFIG_NAME, folder / ADAPTER_CONFIG_NAME
        return str(file) if file.is_file() and not whole.is_file() else None
    try:
        return cast(str | None, find_adapter_config_file(str(path), **where))
    except OSError:  # it cannot be read; loading it as a model explains that better
        return None
