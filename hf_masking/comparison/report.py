"""Write a comparison as tables and pictures."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.density import MOST_TOKENS
from ..evaluation.timing import DISTURBED, Spread
from ..files import write_json
from ..machine import describe_machine
from ..pictures import colour_of, draw_figure, log_scale, plain, write_picture
from ..tables import Grid, write_markdown
from .results import Figure, MaskResult, results_by_mask, segments
from .speed import Speeds, Timings
from .trials import Trial

MEBI = 2**20
_NONE = "-"


@dataclass(frozen=True)
class Report:
    """The results of some masks; all are compared with the first one.

    speeds: of training, evaluation and decoding under each mask, of interleaved runs.
    break_even: break-even length of each mask; None if it is not faster than dense attention up to ``longest``.
    probe: the name of the probe whose questions each trial was asked, if any.
    labels: the name of each mask's rows where it is not the spec: masks by layer, the model's own window.
    description: what makes the comparison itself, for the JSON.
    """

    title: str
    context: int
    masks: Sequence[str]
    trials: Sequence[Trial]
    speeds: Speeds
    break_even: dict[str, int | None]
    longest: int
    probe: str | None = None
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
    def grids(self) -> list[Grid]:
        """Return all tables."""
        return [self.quality(), self.speed(), self.positions()]

    def quality(self) -> Grid:
        """Return the table of perplexity and memory."""
        first = self.results[0]
        columns: dict[str, Callable[[MaskResult], str]] = {
            "density": lambda mask: _number(mask.median("density"), "{:.1%}"),
            "perplexity\npatched": lambda mask: f"{mask.trials[0].patched:.2f}",
            "perplexity\nfine-tuned": lambda mask: _figure(mask.finetuned, "{:.2f}"),
            f"above\n{first.mask}": lambda mask: _NONE if mask is first else _figure(mask.excess(first), "{:+.2%}"),
            "peak\nMiB": lambda mask: _number(mask.median("peak_memory_bytes"), "{:,.0f}", MEBI),
            "cache\nMiB": lambda mask: _number(mask.median("cache_bytes"), "{:,.1f}", MEBI),
            "cache\n/ full": _share_of_the_cache,
        }
        return self._grid(columns | self._probed())

    def _probed(self) -> dict[str, Callable[[MaskResult], str]]:
        """Return the columns of right answers to the probe, if there is one."""
        if self.probe is None:
            return {}
        return {
            f"{self.probe}\npatched": lambda mask: _figure(mask.over_seeds("probe_patched"), "{:.1%}"),
            f"{self.probe}\nfine-tuned": lambda mask: _figure(mask.over_seeds("probe_finetuned"), "{:.1%}"),
        }

    def speed(self) -> Grid:
        """Return the table of the speed-ups over the first mask, the time per decoded token, the break-even length."""
        columns: dict[str, Callable[[MaskResult], str]] = {
            "training\nspeed-up": lambda mask: self._speed(self.speeds.training, mask),
            "evaluation\nspeed-up": lambda mask: self._speed(self.speeds.evaluation, mask),
            "decoding\nms/token": self._milliseconds,
            "break-\neven": self._break_even,
        }
        return self._grid(columns)

    def positions(self) -> Grid:
        """Return the table of the loss by position in the context."""
        columns: dict[str, Callable[[MaskResult], str]] = {
            f"loss at\n{part.start}-{part.stop - 1}": functools.partial(_loss, positions=part)
            for part in segments(self.context)
        }
        return self._grid(columns)

    def _speed_up(self, timings: Timings, mask: str) -> Spread | None:
        first = self.masks[0]
        return timings[mask].speed_up(timings[first]) if mask in timings and first in timings else None

    def _speed(self, timings: Timings, mask: MaskResult) -> str:
        """Return the speed-up over the first mask, and for this one tokens per second."""
        if mask.mask == self.masks[0] and mask.mask in timings:
            tokens = timings[mask.mask].per_second(1)
            return _NONE if tokens is None else tokens.text("{:,.0f}", " tokens/s")
        speed_up = self._speed_up(timings, mask.mask)
        return _NONE if speed_up is None else speed_up.text("{:.2f}", "x", quartiles=True)

    def _milliseconds(self, mask: MaskResult) -> str:
        timing = self.speeds.decoding.get(mask.mask)
        per_token = None if timing is None else timing.scaled(1e3)
        return _NONE if per_token is None else per_token.text("{:,.2f}")

    def _break_even(self, mask: MaskResult) -> str:
        if mask.mask not in self.break_even:
            return _NONE
        length = self.break_even[mask.mask]
        return f"> {self.longest:,}" if length is None else f"{length:,}"

    def _grid(self, columns: dict[str, Callable[[MaskResult], str]]) -> Grid:
        rows = []
        for mask in self.results:
            if mask.trials:
                rows.append([self.name(mask), *(cell(mask) for cell in columns.values())])
            else:
                rows.append([self.name(mask), "failed", *[""] * (len(columns) - 1)])
        return Grid(("mask", *columns), rows)

    def notes(self) -> list[str]:
        """Return what explains the marks of the tables, and one line per mask with a failed trial: its error."""
        marked = any(cell.endswith("*") for row in self.speed().rows for cell in row)
        failures = [f"{self.name(mask)} failed: {mask.error}" for mask in self.results if mask.error]
        return [DISTURBED, *failures] if marked else failures

    def write(self, folder: Path) -> list[Path]:
        """Write report.json, report.md and the pictures speed, recovery and positions; return what was written."""
        figures = folder / "report.json"
        write_json(figures, self.document())
        grids = [grid.markdown() for grid in self.grids]
        page = folder / "report.md"
        write_markdown(page, self.title, *grids, *self.notes(), self.legend())
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
            "speeds": {work: self._timings(timings) for work, timings in vars(self.speeds).items()},
            "break_even": self.break_even,
            "runs": dict(self.labels),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }

    def _timings(self, timings: Timings) -> dict[str, Any]:
        """Return the speed of each mask as JSON: tokens per second, the speed-up, and what they were computed from."""
        return {
            mask: {
                "tokens_per_second": _spread(timing.per_second(1)),
                "speed_up": _spread(self._speed_up(timings, mask)),
                "quiet_rounds": timing.quiet_rounds,
                "seconds_per_token": timing.seconds,
            }
            for mask, timing in timings.items()
        }

    def legend(self) -> str:
        """Return how to read the tables."""
        seeds = max(len(mask.trials) for mask in self.results)
        spread = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ", of one seed"
        probed = "" if self.probe is None else f"; {self.probe}: share of right answers to the probe"
        shortened = f"; density of adaptive masks: over the first {MOST_TOKENS:,} tokens"
        first = self.results[0].mask
        return (
            f"Fine-tuned{spread}{shortened if self.context > MOST_TOKENS else ''}; above {first}: relative excess in "
            "perplexity, paired by seed; cache: bytes held after one context, spare room included, also as a share of "
            "those of all keys and values; training, evaluation: median speed-up (and quartiles) over "
            f"{first}, whose tokens/s are given, before fine-tuning, paired by round of interleaved runs; decoding: "
            "one token, with one context in the cache; break-even: the number of tokens from which attention, forward "
            "and backward, is faster than dense causal attention (not measured for adaptive masks); loss: nats per "
            f"token after fine-tuning, by the number of tokens before the prediction{probed}."
        )

    def _draw_positions(self, axes: Any) -> None:
        """Plot the loss of each mask above the first one, by position in the context."""
        first, *others = self.measured
        for mask in others:
            losses = [(part, mask.loss(part), first.loss(part)) for part in segments(self.context, per_octave=2)]
            known = [
                (math.sqrt((part.start + 1) * part.stop), mine - theirs)
                for part, mine, theirs in losses
                if mine is not None and theirs is not None
            ]
            axes.plot(*zip(*known, strict=True), "-", label=self.name(mask), color=colour_of(mask.mask))
        axes.set(
            title=self._heading(f"Loss above {first.mask}, by position in the context"),
            xlabel="tokens read",
            ylabel=f"loss above {first.mask} (nats)",
        )
        log_scale(axes.xaxis, [part.stop for part in segments(self.context)])
        axes.grid(alpha=0.3)

    def _draw_speed(self, axes: Any) -> None:
        """Plot the perplexity after fine-tuning against the training speed-up, with the spread of both."""
        for mask in self.measured:
            speed_up = self._speed_up(self.speeds.training, mask.mask)
            if speed_up is not None:
                draw_figure(axes, speed_up, mask.finetuned, self.name(mask), colour_of(mask.mask))
        axes.set(
            title=self._heading("Perplexity after fine-tuning against training speed"),
            xlabel=f"training speed-up over {self.results[0].mask} (interquartile range; hollow: disturbed)",
            ylabel="perplexity",
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


def _spread(figure: Spread | None) -> dict[str, Any] | None:
    return None if figure is None else dataclasses.asdict(figure)


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
