"""Write a comparison as tables and pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.density import MOST_TOKENS
from ..files import write_json
from ..machine import describe_machine
from ..pictures import colour_of, log_scale, plain, write_picture
from ..tables import Grid, write_markdown
from .results import Figure, MaskResult, results_by_mask, segments
from .trials import Trial

MEBI = 2**20
_POINTS = 16  # of a line of losses by position
_NONE = "-"


@dataclass(frozen=True)
class Report:
    """The results of some masks; all are compared with the first one.

    eval_speeds: tokens per second of evaluation under each mask, of interleaved runs.
    pays_from: break-even length of each mask; None if it is not faster than dense attention up to ``longest``.
    labels: the name of each mask's rows where it is not the spec: masks by layer, the model's own window.
    description: what makes the comparison itself, for the JSON.
    """

    title: str
    context: int
    masks: Sequence[str]
    trials: Sequence[Trial]
    eval_speeds: Mapping[str, float | None]
    pays_from: dict[str, int | None]
    longest: int
    labels: Mapping[str, str] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def results(self) -> list[MaskResult]:
        return results_by_mask(self.masks, self.trials)

    def name(self, mask: MaskResult) -> str:
        return self.labels.get(mask.mask, mask.mask)

    @property
    def measured(self) -> list[MaskResult]:
        return [mask for mask in self.results if mask.trials]

    @property
    def parts(self) -> list[range]:
        return segments(self.context)

    def quality(self) -> Grid:
        """Return the table of perplexity, speed and memory."""
        columns: dict[str, Callable[[MaskResult], str]] = {
            "density": lambda mask: _number(mask.median("density"), "{:.1%}"),
            "perplexity\npatched": lambda mask: f"{mask.trials[0].patched:.2f}",
            "perplexity\nfine-tuned": lambda mask: _figure(mask.finetuned, "{:.2f}"),
            "tokens/s\ntraining": lambda mask: _number(mask.median("train_tokens_per_second"), "{:,.0f}"),
            "tokens/s\neval": lambda mask: _number(self.eval_speeds.get(mask.mask), "{:,.0f}"),
            "peak\nMiB": lambda mask: _number(mask.median("peak_memory_bytes"), "{:,.0f}", MEBI),
        }
        return self._grid(columns)

    def details(self) -> Grid:
        """Return the table of the excess perplexity, the loss by position, the cache and the break-even length."""
        first = self.results[0]
        columns: dict[str, Callable[[MaskResult], str]] = {
            f"above\n{first.mask}": lambda mask: _NONE if mask is first else _figure(mask.excess(first), "{:+.2%}"),
        }
        for part in self.parts:
            columns[f"loss at\n{part.start}-{part.stop - 1}"] = functools.partial(_loss, positions=part)
        columns["cache\n/ full"] = _share_of_the_cache
        columns["pays\nfrom"] = self._pays_from
        return self._grid(columns)

    def _pays_from(self, mask: MaskResult) -> str:
        if mask.mask not in self.pays_from:
            return _NONE
        length = self.pays_from[mask.mask]
        return f"> {self.longest:,}" if length is None else f"{length:,}"

    def _grid(self, columns: dict[str, Callable[[MaskResult], str]]) -> Grid:
        rows = []
        for mask in self.results:
            if mask.trials:
                rows.append([self.name(mask), *(cell(mask) for cell in columns.values())])
            else:
                rows.append([self.name(mask), "failed", *[""] * (len(columns) - 1)])
        return Grid(("mask", *columns), rows)

    def failures(self) -> list[str]:
        """Return one line per mask with a failed trial: its error."""
        return [f"{self.name(mask)} failed: {mask.error}" for mask in self.results if mask.error]

    def write(self, folder: Path) -> list[Path]:
        """Write report.json, report.md and the pictures speed, recovery and positions; return what was written."""
        figures = folder / "report.json"
        write_json(figures, self.document())
        grids = self.quality().markdown(), self.details().markdown()
        page = folder / "report.md"
        write_markdown(page, self.title, *grids, *self.failures(), self.legend())
        written = [figures, page]
        written += write_picture(folder / "speed.png", (8, 4), self._draw_speed, direct=True)
        written += write_picture(folder / "recovery.png", (8, 4), self._draw_recovery, direct=True)
        if len(self.measured) > 1:
            return written + write_picture(folder / "positions.png", (8, 4), self._draw_positions, direct=True)
        # A single mask has nothing to be compared with, and a picture of an earlier comparison would mislead.
        for kind in ("png", "svg"):
            (folder / f"positions.{kind}").unlink(missing_ok=True)
        return written

    def document(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            **self.description,
            "machine": describe_machine(),
            "seconds": sum(trial.seconds or 0 for trial in self.trials),  # those of earlier runs included
            "eval_tokens_per_second": dict(self.eval_speeds),
            "pays_from": self.pays_from,
            "runs": dict(self.labels),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }

    def legend(self) -> str:
        """Return how to read the tables."""
        seeds = max(len(mask.trials) for mask in self.results)
        spread = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ", of one seed"
        shortened = f"; density of adaptive masks: over the first {MOST_TOKENS:,} tokens"
        return (
            f"Fine-tuned{spread}{shortened if self.context > MOST_TOKENS else ''}; above {self.results[0].mask}: "
            "relative excess in perplexity, paired by seed; loss: nats per token after fine-tuning, by the number of "
            "tokens before the prediction; cache: bytes held after one context, spare room included, over those of "
            "all keys and values; pays from: break-even length, the number of tokens from which attention, forward "
            "and backward, is faster than dense causal attention (not measured for adaptive masks)."
        )

    def _draw_positions(self, axes: Any) -> None:
        """Plot the loss of each mask above the first one, by position in the context."""
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
            axes.plot(*zip(*known, strict=True), "-", label=self.name(mask), color=colour_of(mask.mask))
        axes.set(
            title=self._heading(f"Loss above {first.mask}, by position in the context"),
            xlabel="tokens read",
            ylabel=f"loss above {first.mask} (nats)",
        )
        axes.grid(alpha=0.3)

    def _draw_speed(self, axes: Any) -> None:
        """Plot the perplexity after fine-tuning against training speed."""
        for mask in self.measured:
            figure, speed = mask.finetuned, mask.median("train_tokens_per_second")
            axes.errorbar(speed, figure.mean, yerr=figure.deviation, color=colour_of(mask.mask), label="_bar")
            axes.plot([speed], [figure.mean], "o", markersize=8, label=self.name(mask), color=colour_of(mask.mask))
        axes.set(
            title=self._heading("Perplexity after fine-tuning and speed of training"),
            xlabel="training, tokens/s",
            ylabel="perplexity (lower is better)",
        )
        axes.margins(0.2)
        log_scale(axes.yaxis)
        axes.grid(alpha=0.3)

    def _draw_recovery(self, axes: Any) -> None:
        """Plot the perplexity against steps of fine-tuning, with a band of one standard deviation over seeds."""
        for mask in self.measured:
            steps, figures = list(mask.recovery), list(mask.recovery.values())
            color = colour_of(mask.mask)
            low = [figure.mean - (figure.deviation or 0) for figure in figures]
            high = [figure.mean + (figure.deviation or 0) for figure in figures]
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(
                steps, [figure.mean for figure in figures], "-o", markersize=3, label=self.name(mask), color=color
            )
        axes.set(
            title=self._heading("Recovery of perplexity during fine-tuning"),
            xlabel="steps of fine-tuning",
            ylabel="perplexity",
        )
        log_scale(axes.yaxis)
        axes.grid(alpha=0.3)

    def _heading(self, what: str) -> str:
        """Return the title of a picture: what it shows, and over how many seeds."""
        seeds = max(len(mask.trials) for mask in self.results)
        return plain(f"{what}\ncontext of {self.context:,} tokens, {seeds} {'seed' if seeds == 1 else 'seeds'}")


def progress(trial: Trial, number: int, total: int) -> str:
    """Return one line about a finished trial."""
    head = f"{number}/{total} {trial.mask}, seed {trial.seed}"
    if trial.error:
        return f"{head}: failed: {trial.error}"
    return (
        f"{head}: perplexity {trial.patched:.2f}, after fine-tuning {trial.finetuned:.2f} ({trial.seconds or 0:.0f} s)"
    )


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return _NONE if value is None else form.format(value / unit)


def _figure(figure: Figure | None, form: str) -> str:
    if figure is None:
        return _NONE
    spread = "" if figure.deviation is None else f" ± {form.format(figure.deviation).lstrip('+')}"
    return form.format(figure.mean) + spread


def _loss(mask: MaskResult, positions: range) -> str:
    return _number(mask.loss(positions), "{:.3f}")


def _share_of_the_cache(mask: MaskResult) -> str:
    held, full = mask.median("cache_bytes"), mask.median("full_cache_bytes")
    return _NONE if held is None or not full else f"{held / full:.0%}"
