"""The pages of docs/: snippets run, links lead somewhere, the catalogue of masks is whole and its table true."""

import functools
import importlib
import re
import sys
from pathlib import Path

import pytest

from hf_masking import parse_mask
from hf_masking.adaptive import ADAPTIVE
from hf_masking.masks import PATTERNS, Offsets, Spans

from .snippets import blocks, commands, run_small

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
MASKS = (ROOT / "docs" / "masks.md").read_text()
NAMES = [*PATTERNS, *ADAPTIVE]


def script(name):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@functools.cache
def sections():
    """The text of each section of masks.md, by its heading without backticks."""
    _, *parts = re.split(r"^## (.+)\n", MASKS, flags=re.MULTILINE)
    return {heading.strip("`"): text for heading, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_every_mask_has_a_section_and_a_picture(name):
    section = sections()[name]
    assert f'<img src="masks/{name}.png"' in section
    assert (ROOT / "docs" / "masks" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for part in ("Spec", "Paper", "Pairs", "Cache", "Use"):
        assert f"\n* **{part}** " in section, part


def test_the_table_is_that_of_the_masks():
    table = script("mask_table")
    assert MASKS.split(table.BEGIN)[1].split(table.END)[0] == table.table(), "run python scripts/mask_table.py"
    assert {example.name for example in table.EXAMPLES} | {"layers"} == set(sections())
    assert set(NAMES) <= {example.name for example in table.EXAMPLES}


def arguments(mask, letters):
    """Return what the letters of a spec stand for in a mask; a lone letter may stand for a whole list."""
    if isinstance(mask, Spans):
        return {"spans": mask.bounds}
    if isinstance(mask, Offsets):
        return {"S": mask.offsets}
    values = [value for value in vars(mask).values() if isinstance(value, int)]
    return dict(zip(letters, values, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"adaptive_span", "relevance"}])
def test_the_number_of_pairs_is_what_the_formula_says(name):
    table = script("mask_table")
    (spec,) = (example.spec for example in table.EXAMPLES if example.name == name)
    shown = re.search(rf"\* \*\*Spec\*\* .*?`{name}:([^`]+)`", sections()[name])
    written = re.sub(r"\bscore=\w+|\w+=", "", shown[1]).split(",") if shown else []
    letters = [letter for letter in written if letter]
    formula = re.search(r"\* \*\*Pairs\*\* `([^`]+)`", sections()[name])[1]
    mask = parse_mask(spec)
    known = {"__builtins__": {}, "sum": sum, "range": range, "N": table.LENGTH} | arguments(mask, letters)
    assert eval(formula, known) == table.pairs(mask)


def anchors(page):
    """Return what GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def targets(page):
    """Where the links of a page lead, and its pictures."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)


def test_links_and_pictures_are_found():
    assert "docs/masks/window.png" in targets(ROOT / "README.md")
    assert "masks/window.png" in targets(ROOT / "docs" / "masks.md")


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in targets(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, run, workplace):
    """All blocks of a page in one place, one after the other, as a reader would."""
    namespace = {}
    for language, block in blocks(page.read_text(), "python", "bash"):
        if language == "python":
            exec(compile(block, page.name, "exec"), namespace)
        else:
            for command in commands(block):
                run_small(run, command)


def test_the_scripts_draw_every_picture_that_is_committed(tmp_path):
    script("draw_masks").main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "masks").iterdir()}
