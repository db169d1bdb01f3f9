"""The drift chart: the score of every run with its interval, the evidence beneath it, and where it changed."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.plan import EvalManifest
from tasks.spool import Spool, run_folder
from touchstone.drift import DriftPolicy
from touchstone.report import EvalReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_RUNS = 60
_MOST_TICKS = 9
# Okabe and Ito's palette: distinct to colour-blind readers; each verdict has a shape of its own besides.
_INK, _MUTED, _BAND = "#222222", "#6b6b6b", "#56b4e9"
_VERDICTS = {
    "stable": ("o", "#0072b2"),
    "flagged": ("^", "#e69f00"),
    "drifted": ("s", "#d55e00"),
    "unmeasurable": ("X", "#8c8c8c"),
}
_E_FLOOR, _E_CEILING = 1e-6, 1e9


@dataclass(frozen=True)
class RunPoint:
    """One run of the chart. `e_value`: its strongest stream's share of the limit, 1 acts; None: none was computed."""

    run_key: str
    at: datetime
    mean: float
    ci_low: float
    ci_high: float
    e_value: float | None
    verdict: str


@dataclass(frozen=True)
class Band:
    """Where runs lie while nothing changes: the baseline's mean, and the width of a run's own interval around it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class EvidenceLevels:
    """Where e-values raise a flag and where they act."""

    flag: float = DriftPolicy().flag_at
    act: float = 1.0


def chart_points(
    state: Path, bundle_name: str, bundle_fingerprint: str, dataset_name: str, upto_run_key: str
) -> list[RunPoint]:
    """The last runs of this bundle on this golden set up to a run, from the spool, oldest first."""
    same = []
    for folder in (state / "runs").glob(f"{bundle_name}-{dataset_name}-*"):
        manifest = _readable(Spool(folder), "manifest.json")
        found = [manifest.get(name) for name in ("bundle_name", "bundle_fingerprint", "dataset_name")]
        if found == [bundle_name, bundle_fingerprint, dataset_name]:
            same.append((manifest["created_at"], manifest["run_key"]))
    same.sort()
    last = next((at for at, key in same if key == upto_run_key), None)
    chosen = [(at, key) for at, key in same if last is None or at <= last][-_MOST_RUNS:]
    points = (_point(Spool(run_folder(state, key)), datetime.fromisoformat(at)) for at, key in chosen)
    return [point for point in points if point is not None]


def chart_png(state: Path, manifest: EvalManifest, report: EvalReport) -> bytes | None:
    """The chart of a run and those before it; None while there is nothing to draw."""
    found = manifest.bundle_name, manifest.bundle_fingerprint, manifest.dataset_name
    history = chart_points(state, *found, report.run_key)
    if not history:
        return None
    figure = drift_chart(history, report, baseline_band(report, history), f"{found[0]} on {found[2]}")
    target = io.BytesIO()
    figure.savefig(target, format="png", pil_kwargs={"compress_level": 1})
    return target.getvalue()


def baseline_band(report: EvalReport, history: Sequence[RunPoint]) -> Band | None:
    """The headline's baseline mean, as wide as a run's interval is on average; None before there is a baseline."""
    name = headline(report)
    streams = report.decision.streams if report.decision else ()
    mean = next((stream.mean_baseline for stream in streams if (stream.metric, stream.segment) == (name, "all")), None)
    if name is None or mean is None or not history:
        return None
    half = sum(point.ci_high - point.ci_low for point in history) / len(history) / 2
    return Band(mean, mean - half, mean + half)


def headline(report: EvalReport) -> str | None:
    """The metric that is charted: the policy's first."""
    return next(iter(report.metrics), None)


def drift_chart(
    history: Sequence[RunPoint],
    report: EvalReport,
    baseline: Band | None,
    title: str = "",
    levels: EvidenceLevels | None = None,
) -> Figure:
    """Scores above, evidence on a log axis below, one column for each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.8), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 1, height_ratios=(5, 3), hspace=0.12, left=0.095, right=0.875, top=0.815, bottom=0.115
    )
    scores = figure.add_subplot(grid[0])
    evidence = figure.add_subplot(grid[1], sharex=scores)
    _heading(figure, report, title)
    _draw_scores(scores, history, baseline, headline(report) or "score")
    _draw_evidence(evidence, history, levels or EvidenceLevels())
    _mark_change(scores, evidence, history, report.change_point)
    _label_runs(evidence, history)
    _legend(figure, history)
    return figure


def _point(spool: Spool, at: datetime) -> RunPoint | None:
    """None for a run that is not finished, or has no score at all."""
    report = _readable(spool, "report.json")
    headline_summary = next(iter(report.get("metrics", {}).values()), None)
    if headline_summary is None:
        return None
    streams = (report.get("decision") or {}).get("streams") or ()
    return RunPoint(
        run_key=report["run_key"],
        at=at,
        mean=headline_summary["mean"],
        ci_low=headline_summary["ci_low"],
        ci_high=headline_summary["ci_high"],
        e_value=max((stream["adjusted"] for stream in streams), default=None),
        verdict=report["verdict"],
    )


def _readable(spool: Spool, name: str) -> dict[str, Any]:
    """Empty for a file that is missing or broken: another run's chart must not fail on it."""
    try:
        return spool.read_json(name) if spool.has(name) else {}
    except ValueError:
        return {}


def _heading(figure: Figure, report: EvalReport, title: str) -> None:
    direction = f", {report.direction}" if report.direction else ""
    provisional = " (provisional baseline)" if report.provisional else ""
    _, colour = _VERDICTS.get(report.verdict, ("o", _INK))
    figure.text(0.02, 0.955, title, fontsize=13, fontweight="bold", color=_INK, va="center")
    verdict = f"{report.verdict}{direction}{provisional}"
    figure.text(0.98, 0.955, verdict, fontsize=12, fontweight="bold", color=colour, va="center", ha="right")
    reason = textwrap.shorten(report.reason, 240, placeholder=" …")
    figure.text(0.02, 0.925, textwrap.fill(reason, 125), fontsize=9, color=_MUTED, va="top", linespacing=1.3)


def _draw_scores(axes: Axes, history: Sequence[RunPoint], baseline: Band | None, name: str) -> None:
    if baseline:
        axes.axhspan(baseline.low, baseline.high, color=_BAND, alpha=0.16, linewidth=0)
        axes.axhline(baseline.mean, color=_BAND, linewidth=1.2)
        _margin(axes, baseline.mean, f"baseline\n{baseline.mean:.3f}", "#2b7bb0")
    xs = range(len(history))
    axes.plot(xs, [point.mean for point in history], color=_MUTED, linewidth=1, zorder=2)
    for x, point in zip(xs, history, strict=True):
        colour = _style(point)[1]
        axes.vlines(x, point.ci_low, point.ci_high, color=colour, linewidth=1.4, alpha=0.75, zorder=3)
        _draw_run(axes, x, point.mean, history)
    axes.set_ylabel(f"{name}\nmean, 95 % interval", fontsize=9, color=_INK)
    axes.margins(y=0.12)
    if history:
        _label_last(axes, len(history) - 1, history[-1].mean)
    axes.tick_params(labelbottom=False)
    _tidy(axes)


def _draw_evidence(axes: Axes, history: Sequence[RunPoint], levels: EvidenceLevels) -> None:
    measured = [(x, _clip(point.e_value)) for x, point in enumerate(history) if point.e_value is not None]
    low = min([value for _, value in measured] + [levels.flag / 10]) / 2
    high = max([value for _, value in measured] + [levels.act * 10]) * 2
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.axhspan(levels.act, high, color=_VERDICTS["drifted"][1], alpha=0.09, linewidth=0)
    axes.axhspan(levels.flag, levels.act, color=_VERDICTS["flagged"][1], alpha=0.10, linewidth=0)
    for level, name, verdict in ((levels.act, "act", "drifted"), (levels.flag, "flag", "flagged")):
        axes.axhline(level, color=_VERDICTS[verdict][1], linewidth=1.1, linestyle=(0, (5, 3)))
        _margin(axes, level, f"{name} {level:g}", _VERDICTS[verdict][1], "bottom" if name == "act" else "top")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # plain text: mathtext doubles the time to draw
    axes.plot([x for x, _ in measured], [value for _, value in measured], color=_INK, linewidth=1.2, zorder=3)
    for x, value in measured:
        _draw_run(axes, x, value, history)
    if not measured:
        axes.text(
            0.5, 0.25, "no evidence was computed", transform=axes.transAxes, ha="center", fontsize=9, color=_MUTED
        )
    axes.set_ylabel("evidence of change\nstrongest, as share of limit", fontsize=9, color=_INK)
    _tidy(axes)


def _mark_change(scores: Axes, evidence: Axes, history: Sequence[RunPoint], change_point: str | None) -> None:
    x = next((x for x, point in enumerate(history) if point.run_key == change_point), None)
    if x is None:
        return
    for axes in (scores, evidence):
        axes.axvline(x - 0.5, color=_INK, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1)
    is_late = x > len(history) / 2
    scores.annotate(
        f"changed at\n{history[x].at:%d %b %H:%M}",
        (x - 0.5, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if is_late else 6, 0),
        textcoords="offset points",
        ha="right" if is_late else "left",
        va="bottom",
        fontsize=8.5,
        color=_INK,
    )


def _label_runs(axes: Axes, history: Sequence[RunPoint]) -> None:
    """As many dates as fit, the last run's always; the day only where one differs."""
    count = len(history)
    step = max(1, -(-count // _MOST_TICKS))
    shown = sorted(range(count - 1, -1, -step))
    form = "%H:%M" if len({history[x].at.date() for x in shown}) == 1 else "%d %b\n%H:%M"
    axes.set_xticks(shown, [f"{history[x].at:{form}}" for x in shown], fontsize=8.5)
    # On the right there is room for the last run's number.
    axes.set_xlim(-max(0.6, 0.02 * count), max(count - 1, 0) + max(0.6, 0.065 * count))
    days = f"{history[0].at:%d %B %Y}, UTC" if count and form == "%H:%M" else "UTC"
    axes.set_xlabel(f"run started ({days})", fontsize=9, color=_INK)


def _legend(figure: Figure, history: Sequence[RunPoint]) -> None:
    from matplotlib.lines import Line2D

    present = [verdict for verdict in _VERDICTS if any(point.verdict == verdict for point in history)]
    if len(present) > 1:
        handles: list[Any] = [
            Line2D([], [], marker=_VERDICTS[name][0], color=_VERDICTS[name][1], linestyle="", markersize=7, label=name)
            for name in present
        ]
        figure.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.086, 0.815),
            ncols=len(handles),
            frameon=False,
            fontsize=8.5,
            handletextpad=0.1,
            columnspacing=1.2,
        )


def _draw_run(axes: Axes, x: int, y: float, history: Sequence[RunPoint]) -> None:
    marker, colour = _style(history[x])
    size = 8 if len(history) <= 15 else 6.5 if len(history) <= 30 else 5.5
    axes.plot(x, y, marker, color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.6, zorder=4)


def _style(point: RunPoint) -> tuple[str, str]:
    return _VERDICTS.get(point.verdict, ("o", _INK))


def _label_last(axes: Axes, x: int, mean: float) -> None:
    axes.annotate(
        f"{mean:.3f}", (x, mean), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9, color=_INK
    )


def _margin(axes: Axes, y: float, text: str, colour: str, va: Literal["bottom", "center", "top"] = "center") -> None:
    """A label for a line, in the margin where no point can cover it."""
    axes.annotate(
        text,
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va=va,
        fontsize=9,
        color=colour,
        annotation_clip=False,
    )


def _tidy(axes: Axes) -> None:
    axes.yaxis.set_label_coords(-0.073, 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors=_MUTED, labelsize=8.5)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def _clip(e_value: float | None) -> float:
    return min(max(e_value or 0.0, _E_FLOOR), _E_CEILING)
