"""What Prefect shows of query drift: events on transitions, and an artifact with the figures, a chart and examples."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tasks.environment import apply_defaults
from tasks.prefect_sinks import create_markdown_artifact, emit_event
from touchstone.ledger import LedgerEvent
from touchstone.query_drift import QueryDriftDecision
from touchstone.query_shift import QueryShift
from touchstone.retrieval_config import QueryDriftPolicy, RetrievalConfig

MOST_POINTS = 60
# Okabe and Ito's palette, as in tasks/chart.py; each verdict has a shape of its own besides.
_INK, _MUTED = "#222222", "#6b6b6b"
_VERDICTS = {"stable": ("o", "#0072b2"), "flagged": ("^", "#e69f00"), "drifted": ("s", "#d55e00")}


def emit_query_event(decision: QueryDriftDecision, config: RetrievalConfig) -> None:
    """`touchstone.queries.flagged`, `.drifted` or `.recovered`, only when the level changes."""
    if decision.transition is None:
        return
    apply_defaults()
    emit_event(
        event=f"touchstone.queries.{decision.transition}",
        resource={
            "prefect.resource.id": f"touchstone.index.{config.name}",
            "prefect.resource.name": f"index of {config.name}",
            "touchstone.retrieval_config": config.name,
        },
        payload=event_payload(decision, config),
    )


def event_payload(decision: QueryDriftDecision, config: RetrievalConfig) -> dict[str, Any]:
    """A whole, flat payload: a trigger that names a missing key creates no run. Queries are not quoted in it."""
    shift = decision.shift
    return {
        "event": f"touchstone.queries.{decision.transition}",
        "config": config.name,
        "config_version": config.version,
        "verdict": decision.verdict.value,
        "window_verdict": decision.window_verdict.value,
        "reason": decision.reason,
        "window_start": decision.windows.start.isoformat(),
        "window_end": decision.windows.end.isoformat(),
        "reference_start": decision.windows.reference_start.isoformat(),
        "reference_end": decision.windows.reference_end.isoformat(),
        "n": decision.windows.n,
        "reference_n": decision.windows.reference_n,
        "centroid_cosine": shift.centroid_cosine if shift else None,
        "psi": shift.psi if shift else None,
        "psi_projection": shift.largest.name if shift else None,
        "spread_ratio": shift.spread_ratio if shift else None,
    }


def create_query_artifact(decision: QueryDriftDecision, config: RetrievalConfig, chart: bytes | None = None) -> None:
    """The level and its figures on the flow run's page, under one key per retrieval config."""
    apply_defaults()
    create_markdown_artifact(
        markdown=markdown(decision, config, chart),
        key=_key(f"query-drift-{config.name}"),
        description=f"{decision.verdict}: {decision.reason}",
    )


def markdown(decision: QueryDriftDecision, config: RetrievalConfig, chart: bytes | None = None) -> str:
    """The level, why, the figures, how they went, and what is asked now that was not asked before."""
    policy, windows = config.query_drift, decision.windows
    lines = [f"## {decision.verdict.upper()}: queries of {config.name}", "", decision.reason, ""]
    lines += _figures(decision.shift, policy) if decision.shift else []
    lines += [
        f"Newest window {windows.start:%Y-%m-%d %H:%M} to {windows.end:%Y-%m-%d %H:%M} UTC, {windows.n} queries; "
        f"reference {windows.reference_start:%Y-%m-%d %H:%M} to {windows.reference_end:%Y-%m-%d %H:%M}, "
        f"{windows.reference_n} queries."
    ]
    if chart is not None:
        lines += [
            "",
            f"![PSI and centroid, window by window](data:image/png;base64,{base64.b64encode(chart).decode()})",
        ]
    if decision.examples:
        lines += ["", "Queries that are least like the reference:", ""]
        lines += [f"- {_as_code(example.text)} (nearest: {example.similarity:.2f})" for example in decision.examples]
    return "\n".join(lines)


def query_chart(checks: Sequence[LedgerEvent], policy: QueryDriftPolicy) -> bytes | None:
    """PSI above, centroid cosine below, one column for each measured check; None when there is none."""
    measured = [check.payload for check in checks if check.payload["psi"] is not None]
    if not measured:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    psi, cosine = figure.subplots(2, 1, sharex=True)
    _draw(psi, measured, "psi", "largest PSI\nwithout chance", policy.psi_flag, policy.psi_act)
    label = "cosine of centroids\nwithout chance"
    _draw(cosine, measured, "centroid_cosine", label, policy.centroid_flag, policy.centroid_act)
    ends = [datetime.fromisoformat(check["window_end"]) for check in measured]
    shown = range(len(ends) - 1, -1, -max(1, -(-len(ends) // 10)))
    cosine.set_xticks(list(shown), [f"{ends[x]:%d %b}" for x in shown], fontsize=8.5)
    cosine.set_xlabel("end of the newest window, UTC", fontsize=9, color=_INK)
    target = io.BytesIO()
    figure.savefig(target, format="png", pil_kwargs={"compress_level": 1})
    return target.getvalue()


def _draw(axes: Any, checks: Sequence[dict[str, Any]], key: str, label: str, flag: float, act: float) -> None:
    points = [(x, check[key], check["window_verdict"]) for x, check in enumerate(checks) if check[key] is not None]
    axes.plot([x for x, _, _ in points], [value for _, value, _ in points], color=_MUTED, linewidth=1)
    for x, value, verdict in points:
        marker, colour = _VERDICTS[verdict]
        axes.plot(x, value, marker, color=colour, markersize=6.5, markeredgecolor="white", markeredgewidth=0.6)
    for limit, name, verdict in ((flag, "flag", "flagged"), (act, "act", "drifted")):
        axes.axhline(limit, color=_VERDICTS[verdict][1], linewidth=1.1, linestyle=(0, (5, 3)))
        axes.annotate(
            f"{name} {limit:g}",
            (1.0, limit),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_VERDICTS[verdict][1],
            annotation_clip=False,
        )
    axes.set_ylabel(label, fontsize=9, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_MUTED, labelsize=8.5)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(y=0.15)


def _figures(shift: QueryShift, policy: QueryDriftPolicy) -> list[str]:
    cosine = "–" if shift.centroid_cosine is None else f"{shift.centroid_cosine:.3f}"
    ratio = "–" if shift.spread_ratio is None else f"{shift.spread_ratio:.3f}"
    rows = [
        "| figure | now | as computed | flag | act |",
        "|---|---:|---:|---:|---:|",
        f"| cosine of the centroids | {cosine} | {shift.centroid_cosine_raw:.3f} | < {policy.centroid_flag:g} "
        f"| < {policy.centroid_act:g} |",
        f"| spread, of the reference's | {ratio} | | | |",
    ]
    limits = f"> {policy.psi_flag:g} | > {policy.psi_act:g}"
    rows += [f"| PSI, {line.name} | {line.corrected:.3f} | {line.psi:.3f} | {limits} |" for line in shift.projections]
    return [*rows, "", "*now*: without what sampling alone explains.", ""]


def _as_code(text: str) -> str:
    """A query is data: it must not become a link or an image on the page."""
    return f"`{text.replace('`', chr(39))}`"


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
