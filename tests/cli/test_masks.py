"""`hf-masking masks`: the catalogue."""

import json

from hf_masking.cli.masks import EXAMPLES
from hf_masking.spec import MASKS


def test_every_mask_is_listed_with_its_arguments(run):
    code, out, err = run("masks")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines() if line and line[0] != " "][: len(MASKS)] == list(MASKS)
    assert "\nblock_local:block_size,lookback=0\n" in out
    assert "  e.g. window:256: 12.11% of causal\n" in out and "  e.g. relevance: depends on the content\n" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_the_list_as_json(run):
    code, out, _ = run("masks", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and list(rows) == list(MASKS)
    assert rows["causal"]["density"] == 1 and rows["top_blocks"]["density"] is None


def test_every_mask_has_an_example():
    assert EXAMPLES.keys() == MASKS.keys()
