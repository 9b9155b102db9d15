"""A comparison as tables and pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.density import MOST_TOKENS
from ..training.comparison import Trial
from ..training.summary import Figure, Summary, segments
from . import tables

MEBI = 2**20
_POINTS = 16  # of a line of losses by position
_NONE = "-"


@dataclass(frozen=True)
class Report:
    """What is known of some masks; the first one is what the others are compared with.

    pays_from: by mask, the length from which on it is faster than dense attention; None up to ``longest``.
    runs: by mask, what its rows are called where that is not its spec: masks by layer, a window of the model's own.
    """

    title: str
    context: int
    summaries: Sequence[Summary]
    pays_from: dict[str, int | None]
    longest: int
    runs: Mapping[str, str] = field(default_factory=dict)

    def name(self, mask: Summary) -> str:
        return self.runs.get(mask.mask, mask.mask)

    @property
    def measured(self) -> list[Summary]:
        return [mask for mask in self.summaries if mask.trials]

    @property
    def parts(self) -> list[range]:
        return segments(self.context)

    def quality(self) -> tables.Grid:
        """Perplexity, speed and memory."""
        columns: dict[str, Callable[[Summary], str]] = {
            "density": lambda mask: _number(mask.median("density"), "{:.1%}"),
            "perplexity\npatched": lambda mask: f"{mask.trials[0].patched:.2f}",
            "perplexity\nfine-tuned": lambda mask: _figure(mask.finetuned, "{:.2f}"),
            "tokens/s\ntraining": lambda mask: _number(mask.median("train_tokens_per_second"), "{:,.0f}"),
            "tokens/s\neval": lambda mask: _number(mask.median("eval_tokens_per_second"), "{:,.0f}"),
            "peak\nMiB": lambda mask: _number(mask.median("peak_memory_bytes"), "{:,.0f}", MEBI),
        }
        return self._grid(columns)

    def details(self) -> tables.Grid:
        """What is lost against the first mask, the loss by position, the cache, and the length from which it pays."""
        first = self.summaries[0]
        columns: dict[str, Callable[[Summary], str]] = {
            f"above\n{first.mask}": lambda mask: _NONE if mask is first else _figure(mask.excess(first), "{:+.2%}"),
        }
        for part in self.parts:
            columns[f"loss at\n{part.start}-{part.stop - 1}"] = functools.partial(_loss, positions=part)
        columns["cache\nof full"] = _share_of_the_cache
        columns["pays\nfrom"] = self._pays_from
        return self._grid(columns)

    def _pays_from(self, mask: Summary) -> str:
        if mask.mask not in self.pays_from:
            return _NONE
        length = self.pays_from[mask.mask]
        return f"> {self.longest:,}" if length is None else f"{length:,}"

    def _grid(self, columns: dict[str, Callable[[Summary], str]]) -> tables.Grid:
        rows = []
        for mask in self.summaries:
            if mask.trials:
                rows.append([self.name(mask), *(cell(mask) for cell in columns.values())])
            else:
                rows.append([self.name(mask), "failed", *[""] * (len(columns) - 1)])
        return tables.Grid(("mask", *columns), rows)

    def failures(self) -> list[str]:
        """What stopped the masks of which a trial failed, a line for each."""
        return [f"{self.name(mask)} failed: {mask.error}" for mask in self.summaries if mask.error]

    def write(self, folder: Path) -> None:
        """report.md, and the pictures speed.png, recovery.png and positions.png."""
        grids = self.quality().markdown(), self.details().markdown()
        tables.write_markdown(folder / "report.md", self.title, *grids, *self.failures(), self.legend())
        tables.write_picture(folder / "speed.png", (8, 4), self._draw_speed)
        tables.write_picture(folder / "recovery.png", (8, 4), self._draw_recovery)
        if len(self.measured) > 1:
            tables.write_picture(folder / "positions.png", (8, 4), self._draw_positions)
        else:
            # There is nothing to compare; a picture of an earlier comparison would be another's.
            (folder / "positions.png").unlink(missing_ok=True)

    def legend(self) -> str:
        """How to read the tables."""
        seeds = max(len(mask.trials) for mask in self.summaries)
        spread = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ", of one seed"
        shortened = f"; density: of masks that look at the content, of {MOST_TOKENS:,} tokens"
        return (
            f"Fine-tuned{spread}{shortened if self.context > MOST_TOKENS else ''}; above {self.summaries[0].mask}: "
            "perplexity, paired by seed; loss: nats a token after fine-tuning, by the number of tokens read before; "
            "cache: bytes that it holds after a context, its spare room included, over those of all keys and values; "
            "pays from: tokens from which on attention, forward and backward, is faster than dense causal attention "
            "(not looked for where the content decides)."
        )

    def _draw_positions(self, axes: Any) -> None:
        """How much loss a mask costs at each place of a context."""
        first, *others = self.measured
        width = max(1, self.context // _POINTS)
        places = [range(start, min(start + width, self.context)) for start in range(0, self.context, width)]
        for mask in others:
            losses = [(mask.loss(place), first.loss(place)) for place in places]
            known = [
                (place.start, mine - theirs)
                for place, (mine, theirs) in zip(places, losses, strict=True)
                if mine is not None and theirs is not None
            ]
            axes.plot([place for place, _ in known], [loss for _, loss in known], "-", label=self.name(mask))
        axes.set(title=tables.plain(self.title), xlabel="tokens read", ylabel=f"loss above {first.mask}, nats")
        axes.grid(alpha=0.3)

    def _draw_speed(self, axes: Any) -> None:
        """Perplexity after fine-tuning against training speed."""
        for mask in self.measured:
            figure = mask.finetuned
            axes.errorbar(
                mask.median("train_tokens_per_second"), figure.mean, yerr=figure.deviation, fmt="o", markersize=9,
                label=self.name(mask),
            )  # fmt: skip
        axes.set(
            title=tables.plain(self.title),
            xlabel="tokens/s, training",
            ylabel="perplexity, fine-tuned (lower is better)",
        )
        axes.margins(0.2)
        _by_ratio(axes)

    def _draw_recovery(self, axes: Any) -> None:
        """Perplexity against steps of fine-tuning."""
        for mask in self.measured:
            points = mask.recovery
            axes.errorbar(
                list(points), [figure.mean for figure in points.values()],
                yerr=[figure.deviation or 0 for figure in points.values()], fmt="-o", markersize=4,
                label=self.name(mask),
            )  # fmt: skip
        axes.set(title=tables.plain(self.title), xlabel="steps of fine-tuning", ylabel="perplexity")
        _by_ratio(axes)


def progress(trial: Trial, number: int, total: int) -> str:
    head = f"{number}/{total} {trial.mask}, seed {trial.seed}"
    if trial.error:
        return f"{head}: failed: {trial.error}"
    return (
        f"{head}: perplexity {trial.patched:.2f}, after fine-tuning {trial.finetuned:.2f} ({trial.seconds or 0:.0f} s)"
    )


def _by_ratio(axes: Any) -> None:
    """Perplexities from close to the best one to many times it, each told from its neighbours."""
    axes.set_yscale("log")
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which("{x:g}")
    axes.grid(alpha=0.3, which="both")


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return _NONE if value is None else form.format(value / unit)


def _figure(figure: Figure | None, form: str) -> str:
    if figure is None:
        return _NONE
    spread = "" if figure.deviation is None else f" ± {form.format(figure.deviation).lstrip('+')}"
    return form.format(figure.mean) + spread


def _loss(mask: Summary, positions: range) -> str:
    return _number(mask.loss(positions), "{:.3f}")


def _share_of_the_cache(mask: Summary) -> str:
    held, full = mask.median("cache_bytes"), mask.median("full_cache_bytes")
    return _NONE if held is None or not full else f"{held / full:.0%}"
