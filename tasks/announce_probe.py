"""What Prefect shows of a probe run: an artifact each time, an event when the level changes."""

from __future__ import annotations

import re
from typing import Any

from tasks.environment import apply_defaults
from tasks.prefect_sinks import create_markdown_artifact, emit_event
from touchstone.probe_records import ProbeReport


def emit_probe_event(report: ProbeReport) -> None:
    """`touchstone.probe.flagged`, `.detected` or `.recovered`, where the run announces something."""
    if report.transition is None:
        return
    apply_defaults()
    emit_event(
        event=f"touchstone.probe.{report.transition}",
        resource={
            "prefect.resource.id": f"touchstone.probe.{report.bundle}",
            "prefect.resource.name": f"probes of {report.bundle}",
            "touchstone.bundle": report.bundle,
        },
        payload=event_payload(report),
    )


def event_payload(report: ProbeReport) -> dict[str, Any]:
    """Whole and flat: a trigger that names a missing key creates no run, and says so nowhere."""
    whole = report.summary()
    facts = whole.pop("facts")
    signals = [signal["what"] for signal in whole.pop("signals")]
    return {"event": f"touchstone.probe.{report.transition}", "signals": signals, **whole, **facts}


def create_probe_artifact(report: ProbeReport) -> None:
    """The probe run on the flow run's page, under one key per bundle."""
    apply_defaults()
    create_markdown_artifact(
        markdown=markdown(report),
        key=re.sub(r"[^a-z0-9-]+", "-", f"probe-{report.bundle}".lower()).strip("-"),
        description=f"{report.level}: {report.reason}",
    )


def markdown(report: ProbeReport) -> str:
    """The level, its numbers, and the probes that are answered differently."""
    facts = report.facts
    price = facts.price and f"{facts.price.input_per_million:g} / {facts.price.output_per_million:g} USD per million"
    cost = "unknown (no price)" if report.cost_usd is None else f"{report.cost_usd:.6f} USD"
    rows = {
        "answers": f"{report.n_answered} of {report.n_probes} probes",
        "usual token": _share(report.usual_share),
        "usual token in calibration": _share(report.usual_share_before),
        "evidence (acts at 1)": "–" if report.e_value is None else f"{report.e_value:.2g}",
        "found within a day": _share(report.minimum_detectable_effect),
        "calibration": f"{report.n_calibration} of {report.n_needed} runs",
        "returned model": ", ".join(facts.served_models) or "–",
        "system fingerprint": ", ".join(facts.fingerprints) or "–",
        "price": price or "unknown",
        "retires": facts.retires or "no date is listed",
        "calls, cost": f"{report.calls}, {cost}",
    }
    lines = [f"## {report.level.upper()}: {report.model} as `{report.bundle}` calls it", "", report.reason, ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    if report.changed:
        lines += ["", "| probe | usual | now |", "|---|---|---|"]
        lines += [f"| {_code(id)} | {_code(usual)} | {_code(now)} |" for id, usual, now in report.changed]
    return "\n".join([*lines, "", f"`touchstone probe --bundle {report.bundle}`"])


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _code(text: str) -> str:
    """What a vendor wrote is data: no table cell, link or image may be made by it."""
    return f"`{text.replace('`', chr(39)).replace('|', '¦')[:60]}`"
