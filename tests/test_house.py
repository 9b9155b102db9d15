"""Imports point one way, and importing changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_masking
from hf_masking import training

PACKAGE = Path(__file__).parents[1] / "hf_masking"
FLOORS = ["masks", "adaptive", "spec", "plan", "attention", "modeling", "evaluation", "training", "comparison", "cli"]


def imported(text, folder=()):
    """Return what a module in a folder of the package imports, as parts of a dotted name: `("torch", "nn")`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = (PACKAGE.name, *folder)[: len(folder) + 2 - node.level] if node.level else ()
            module = node.module.split(".") if node.module else []
            yield from ((*home, *module, alias.name) for alias in node.names)


def used_of_torch(text):
    """The parts of torch that a module takes by attribute: `torch.nn.functional.pad` uses `("torch", "nn")`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            yield "torch", node.attr


def floor_of(name):
    """The floor that a module or an imported name belongs to, or None."""
    package, *rest = name
    return FLOORS.index(rest[0]) if package == PACKAGE.name and rest and rest[0] in FLOORS else None


def points_down(text, folder):
    """Return whether a module in a folder of the package imports nothing from a floor above its own."""
    floors = [floor_of(name) for name in imported(text, folder)]
    return all(floor is None or floor <= FLOORS.index(folder[0]) for floor in floors)


def modules():
    """The text and the folder of each module of the package, by name; a package is named as its folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(name[:-1] if name[-1] == "__init__" else name)] = path.read_text(), name[1:-1]
    return found


def without_type_checking(text):
    """A module without what only type checkers run."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def import_graph(modules):
    """For each module those that it imports, also inside functions."""
    graph = {}
    for module, (text, folder) in modules.items():
        names = imported(without_type_checking(text), folder)
        prefixes = ([".".join(name[:n]) for n in range(len(name), 0, -1)] for name in names)
        # `from .a import b` imports the module a.b if there is one, else the module a.
        graph[module] = {next((prefix for prefix in some if prefix in modules), module) for some in prefixes} - {module}
    return graph


def reachable(graph, start):
    """The modules that a module imports, directly or through others."""
    seen, waiting = set(), [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def circles(graph):
    """The imports that lie on a circle."""
    reach = {module: reachable(graph, module) for module in graph}
    return {(one, other) for one, targets in graph.items() for other in targets if one in reach[other]}


def knows_modules(text):
    """Return whether a module uses Transformers, accelerate or `torch.nn`."""
    names = [*imported(text), *used_of_torch(text)]
    return any(name[0] in {"transformers", "accelerate"} or name[:2] == ("torch", "nn") for name in names)


def functions():
    """Every function of the package: its name, as `module.function`, and its number of parameters."""
    for module, (text, _) in modules().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                taken = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                yield f"{module}.{node.name}", len([name for name in taken if name not in ("self", "cls")])


def test_internal_functions_take_at_most_8_parameters():
    """Transformers decides how many its attention functions take."""
    public = {*hf_masking.__all__, *training.__all__}
    many = [name for name, parameters in functions() if parameters > 8 and name.rpartition(".")[2] not in public]
    assert many == ["hf_masking.modeling.forward.interface.attend"]


def test_no_file_is_longer_than_400_lines():
    folders = (PACKAGE.parent / name for name in ("hf_masking", "tests", "scripts", "examples"))
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 300
    assert [path for path in files if len(path.read_text().splitlines()) > 400] == []


def test_imports_point_one_way():
    floors = {
        name: (text, folder) for name, (text, folder) in modules().items() if floor_of(name.split(".")) is not None
    }
    assert len(floors) > 100
    assert [
        name for name, (text, folder) in floors.items() if not points_down(text, folder or (name.split(".")[1],))
    ] == []


def test_imports_have_no_circles():
    assert circles(import_graph(modules())) == set()


@pytest.mark.parametrize(
    "text",
    ["from . import b", "from .b import x", "import hf_masking.masks.b", "from hf_masking.masks import b",
     "def f():\n    from .b import x"],
)  # fmt: skip
def test_a_circle_is_seen(text):
    package = {"hf_masking.masks.a": (text, ("masks",)), "hf_masking.masks.b": ("from .a import y", ("masks",))}
    assert circles(import_graph(package)) == {tuple(package), tuple(package)[::-1]}
    for harmless in ("import b", f"if TYPE_CHECKING:\n    {text}" if "def" not in text else ""):
        package["hf_masking.masks.a"] = harmless, ("masks",)
        assert circles(import_graph(package)) == set()


@pytest.mark.parametrize(
    "text",
    ["from ..plan import plan_of", "from .. import plan", "import hf_masking.plan", "from hf_masking import plan",
     "from hf_masking.cli.app import call", "def f():\n    from ..plan.plan import Plan"],
)  # fmt: skip
def test_an_import_from_above_is_seen(text):
    assert not points_down(text, ("masks",))
    assert points_down(text, ("cli",))


def test_imports_within_a_floor_are_none_from_above():
    for text in ("from .mask import Mask", "from . import mask", "from ..files import written", "import torch.plan"):
        assert points_down(text, ("masks",))
    assert not points_down("from ...cli import app", ("modeling", "deeper"))


def test_masks_know_neither_transformers_nor_modules():
    assert [path for path in (PACKAGE / "masks").rglob("*.py") if knows_modules(path.read_text())] == []


@pytest.mark.parametrize(
    "text",
    ["import torch.nn", "import torch.nn as n", "from torch import nn", "from torch.nn import functional",
     "from torch.nn.functional import pad", "import torch\ntorch.nn.functional.pad(x, (0, 1))", "import transformers",
     "from accelerate.utils import set_seed"],
)  # fmt: skip
def test_what_masks_may_not_know_is_seen(text):
    assert knows_modules(text)


def test_importing_changes_no_model_and_needs_no_plotting():
    script = """
import sys, torch
from transformers import AttentionInterface, LlamaConfig, AutoModelForCausalLM
names = set(AttentionInterface().valid_keys())
import hf_masking, hf_masking.cli.app
assert set(AttentionInterface().valid_keys()) == names
hf_masking.patch_model
assert set(AttentionInterface().valid_keys()) - names == {"hf_masking", "hf_masking.from_pretrained"}
assert "matplotlib" not in sys.modules and "datasets" not in sys.modules
assert all(hasattr(hf_masking, name) for name in hf_masking.__all__)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_help_imports_no_torch():
    script = """
import sys
import hf_masking
from hf_masking.cli import app
for command in ([], *([command] for command in app.COMMANDS)):
    app.app(args=[*command, "--help"], standalone_mode=False)
assert not {"torch", "transformers", "accelerate", "datasets"} & set(sys.modules)
from hf_masking.training import finetune
assert callable(finetune) and callable(hf_masking.perplexity) and hf_masking.__version__
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
