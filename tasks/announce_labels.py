"""What Prefect shows of a week's label queue: an event, and an artifact with the link and the counts."""

from __future__ import annotations

import re
from typing import Any

from tasks.environment import apply_defaults
from tasks.labelling import QueuedWeek
from tasks.prefect_sinks import create_markdown_artifact, emit_event


def emit_labels_event(queued: QueuedWeek) -> None:
    """`touchstone.labels.sampled`, for a queue that is new."""
    if not queued.is_new:
        return
    apply_defaults()
    emit_event(
        event="touchstone.labels.sampled",
        resource={
            "prefect.resource.id": f"touchstone.labels.{queued.dataset}",
            "prefect.resource.name": f"labels of {queued.dataset}",
        },
        payload=event_payload(queued),
    )


def event_payload(queued: QueuedWeek) -> dict[str, Any]:
    """A whole, flat payload: a trigger that names a missing key creates no run. No text of an answer is in it."""
    return {
        "event": "touchstone.labels.sampled",
        "dataset": queued.dataset,
        "week": queued.week,
        "n": queued.n,
        "traffic": queued.traffic,
        "strata": len(queued.counts),
        "url": queued.url or "",
    }


def create_labels_artifact(queued: QueuedWeek) -> None:
    """The queue on the flow run's page, under one key per golden set."""
    apply_defaults()
    create_markdown_artifact(
        markdown=markdown(queued),
        key=re.sub(r"[^a-z0-9-]+", "-", f"labels-{queued.dataset}".lower()).strip("-"),
        description=in_words(queued),
    )


def in_words(queued: QueuedWeek) -> str:
    """Such as `50 of 812 answers of 2026-W48 wait for a label`."""
    if not queued.n:
        return f"nothing to label: no answer of {queued.week} can be used"
    state = "wait for a label" if queued.is_new else "were queued before"
    return f"{queued.n} of {queued.traffic} answers of {queued.week} {state}"


def markdown(queued: QueuedWeek) -> str:
    """The link, the counts of every stratum, and what was left out and why."""
    lines = [f"## Labels of {queued.dataset}, {queued.week}", "", in_words(queued), ""]
    if queued.n:
        file = f"labels-{queued.week}.csv"
        command = f"`touchstone labels export --dataset {queued.dataset} --week {queued.week} --out {file}`"
        where = f"[Label them in MLflow]({queued.url})" if queued.url else "Label them on MLflow's page Review"
        lines += [f"{where}, or as a file: {command}", ""]
    if queued.counts:
        lines += ["| stratum | queued | of |", "|---|---:|---:|"]
        lines += [f"| {_cell(name)} | {chosen} | {size} |" for name, (chosen, size) in queued.counts.items()]
    if queued.left_out:
        lines += ["", "Left out: " + ", ".join(f"{count} {why}" for why, count in queued.left_out.items()) + "."]
    lines += ["", *(f"{warning}." for warning in queued.warnings)] if queued.warnings else []
    return "\n".join(lines)


def _cell(text: str) -> str:
    """A segment is an app's own text: it must break no table, and become no link."""
    return f"`{re.sub(r'[`|]', ' ', text)}`"
