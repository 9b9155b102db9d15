"""Record and judge an experiment: its rows as JSON, a picture, and expectations beside results.

python scripts/experiments/lab.py    # rewrites the tables of docs/experiments.md from the JSON
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_masking.evaluation.loading import silence_libraries
from hf_masking.files import write_json, written_aside
from hf_masking.machine import describe_machine
from hf_masking.pictures import write_picture
from hf_masking.tables import Grid

Row = dict[str, Any]
DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Claim:
    """An expectation from before the run, the result, and whether the expectation holds."""

    expected: str
    measured: str
    holds: bool


def run(
    script: str,
    measure: Callable[[], Iterable[Row]],
    judge: Callable[[list[Row]], list[Claim]],
    draw: Callable[[Any, list[Row]], None],
) -> None:
    """Measure, judge and draw, and write all of it to docs/experiments; ``--judge`` skips the measuring.

    Parameters:
        script: the experiment's ``__file__``; the JSON and the picture have its name.
        measure: gives the rows of the table, which all have the same keys.
    """
    silence_libraries()
    name = Path(script).stem
    path = DOCS / "experiments" / f"{name}.json"
    if "--judge" in sys.argv:
        kept = json.loads(path.read_text())
    else:
        started, rows = time.perf_counter(), []
        for row in measure():
            rows.append(row)
            print({key: _cell(value) for key, value in row.items()}, flush=True)
        kept = {
            "command": f"python scripts/experiments/{name}.py",
            "machine": describe_machine(),
            "seconds": time.perf_counter() - started,
            "rows": rows,
        }
    claims = judge(kept["rows"])
    path.parent.mkdir(exist_ok=True)
    write_json(path, kept | {"claims": [asdict(claim) for claim in claims]})
    write_picture(path.with_suffix(".png"), (8, 4), lambda axes: draw(axes, kept["rows"]), direct=True)
    for claim in claims:
        print(_sentence(asdict(claim)))


def gains(rows: list[Row], better: str, worse: str, figure: str) -> tuple[float, float]:
    """Return by how many per cent one mask's figure is lower than another's, paired by seed, and the standard error."""
    by_seed = {mask: {row["seed"]: row[figure] for row in rows if row["mask"] == mask} for mask in (better, worse)}
    each = [100 * (1 - by_seed[better][seed] / value) for seed, value in by_seed[worse].items()]
    return statistics.fmean(each), statistics.stdev(each) / len(each) ** 0.5


def lower(gain: float, error: float) -> str:
    """Return a gain and its error as text."""
    return f"{abs(gain):.2f}% ± {error:.2f}% {'lower' if gain >= 0 else 'higher'}"


def section(path: Path) -> str:
    """Return the section of a run for docs/experiments.md: its verdicts, table and command."""
    kept = json.loads(path.read_text())
    table = Grid(list(kept["rows"][0]), [[_cell(value) for value in row.values()] for row in kept["rows"]])
    minutes = kept["seconds"] / 60
    verdicts = "\n".join(f"* {_sentence(claim)}" for claim in kept["claims"])
    picture = f"![{path.stem}]({path.parent.name}/{path.stem}.png)"
    return f"{verdicts}\n\n{table.markdown()}\n\n`{kept['command']}`, {minutes:.0f} minutes.\n\n{picture}"


def tables(page: str) -> str:
    """Return the page with each section between its marks rewritten from the JSON."""
    for path in sorted((DOCS / "experiments").glob("*.json")):
        mark = path.stem
        before, after = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        text = f"{before}{section(path)}\n{after}".replace("\\", r"\\")
        page = re.sub(f"{before}.*?{after}", text, page, flags=re.DOTALL)
    return page


def _sentence(claim: Row) -> str:
    return (
        f"Expected: {claim['expected']}. Measured: {claim['measured']}. **{'Holds' if claim['holds'] else 'Fails'}.**"
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


if __name__ == "__main__":
    PAGE = DOCS / "experiments.md"
    new = tables(PAGE.read_text())
    with written_aside(PAGE) as aside:
        aside.write_text(new)
