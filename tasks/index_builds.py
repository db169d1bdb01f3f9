"""What became of index builds: a folder each (report, data docs), and an event in the ledger that nobody can lose."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path

from tasks.ledger import Ledger
from touchstone.index import BuildReport
from touchstone.ledger import EventKind, index_subject
from touchstone.privacy import clean

REPORT = "report.json"


def new_build_key(config_name: str) -> str:
    return f"{config_name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def build_folder(state: Path, build_key: str) -> Path:
    """Where a build's report and data docs are."""
    return state / "builds" / build_key


def record_build(ledger: Ledger, state: Path, report: BuildReport) -> None:
    """Write the report down; the ledger keeps the numbers, and the whole report as its content."""
    report = report.model_copy(update={"reason": clean(report.reason)})
    folder = build_folder(state, report.build_key)
    folder.mkdir(parents=True, exist_ok=True)
    body = report.model_dump_json(indent=1)
    part = folder / f"{REPORT}.part"
    part.write_text(body)
    part.replace(folder / REPORT)
    payload = {
        "build_key": report.build_key,
        "promoted": report.promoted,
        "outcome": report.outcome.value,
        "reason": report.reason,
        "index_version": report.index.label if report.index else None,
        "documents": report.documents,
        "chunks": report.chunks,
        "embedded_chunks": report.embedded_chunks,
    }
    ledger.append(EventKind.INDEX_BUILT, index_subject(report.config_name), payload, content=body.encode())


def read_build(folder: Path) -> BuildReport:
    return BuildReport.model_validate(json.loads((folder / REPORT).read_text()))


def build_folders(state: Path) -> list[Path]:
    """Folders of finished builds, oldest first."""
    return sorted(
        (path.parent for path in (state / "builds").glob(f"*/{REPORT}")), key=lambda path: path.stat().st_mtime
    )
