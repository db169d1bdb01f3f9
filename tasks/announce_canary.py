"""What Prefect shows of a canary: an artifact with its share, the evidence on its way to the limit, and past looks.

The events of a release are sent by the outbox, from the ledger; nothing is emitted here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.environment import apply_defaults
from tasks.prefect_sinks import create_markdown_artifact


def create_canary_artifact(looked: Mapping[str, Any], looks: Sequence[Mapping[str, Any]]) -> None:
    """The look on the flow run's page, under one key per canary."""
    apply_defaults()
    create_markdown_artifact(
        markdown=markdown(looked, looks),
        key=re.sub(r"[^a-z0-9-]+", "-", f"canary-{looked['canary_id']}".lower()).strip("-"),
        description=f"{looked['verdict']}: {looked['reason']}",
    )


def markdown(looked: Mapping[str, Any], looks: Sequence[Mapping[str, Any]]) -> str:
    """`looked` is a look's summary, `looks` the recorded ones, oldest first."""
    lines = [
        f"## {looked['verdict'].upper()}: {looked['bundle']} at {looked['share']:.0%} of traffic",
        "",
        _plain(looked["reason"]),
        "",
        f"{looked['n_canary']} canary requests judged beside {looked['n_champion']} of the champion.",
        "",
        *_evidence(looked),
        *_not_counted(looked),
        *_trend(looks),
    ]
    if looked["warnings"]:
        lines += ["", *(f"- {_plain(warning)}" for warning in looked["warnings"])]
    return "\n".join(lines)


def way(e_value: float, limit: float) -> float:
    """How far an e-value is on the way from 1 to its limit, on the log scale."""
    return math.log(max(e_value, 1e-300)) / math.log(limit)


def _evidence(looked: Mapping[str, Any]) -> list[str]:
    limit = looked["limit"]
    rows = [
        "| guardrail | n | canary - champion | not worse, of the way | worse, of the way |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in looked["e_values"].items():
        difference = "–" if found["difference"] is None else f"{found['difference']:+.3f}"
        good, bad = (_share(way(found[side], limit)) for side in ("promote", "rollback"))
        rows.append(f"| {name} | {found['n']} | {difference} | {good} | {bad} |")
    return [
        *rows,
        "",
        f"100 % of the way is an e-value of {limit:g}. Every guardrail has to show that it is not worse.",
    ]


def _not_counted(looked: Mapping[str, Any]) -> list[str]:
    parts = [f"{count} {_plain(reason)}" for reason, count in looked["left_out"].items()]
    lines = ["", f"Traces left out at this look: {', '.join(parts)}."] if parts else []
    if looked["unanswered"]:
        lines += ["", f"Without an answer: {', '.join(f'{n} {why}' for why, n in looked['unanswered'].items())}."]
    if looked["judge_failures"]:
        failed = ", ".join(f"{count} x {_plain(reason)}" for reason, count in looked["judge_failures"].items())
        lines += ["", f"Scores that could not be had: {failed}."]
    return lines


def _trend(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    if not looks:
        return []
    rows = [
        "",
        "| look | at (UTC) | share | judged | slowest, of the way | harm, of the way | verdict |",
        "|---:|---|---:|---:|---:|---:|---|",
    ]
    for look in looks:
        harm = way(look["harm"] * look["limit"], look["limit"])
        rows.append(
            f"| {look['look']} | {look['at'][11:16]} | {look['share']:.0%} | {look['n_canary']} "
            f"| {_share(look['progress'])} | {_share(harm)} | {look['verdict']} |"
        )
    return rows


def _share(share: float) -> str:
    return f"{min(max(share, 0.0), 9.99):.0%}"


def _plain(text: str) -> str:
    """What vendors and traces say is data: it must not become a link, an image or a row of a table."""
    return re.sub(r"[\[\]<>|`\n]", " ", text)
