"""touchstone index list | rollback | search | cleanup"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.ledger import Ledger
    from touchstone.results import Retrieval
    from touchstone.retrieval_config import RetrievalConfig
    from touchstone.settings import Settings

app = typer.Typer(help="Versions of an index: what is live, what was, and the way back.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
ConfigName = Annotated[str, typer.Option(help="A name in retrieval_configs/, or a path.")]

_TEXT_SHOWN = 160


@app.command("list")
def list_versions(config: ConfigName = "support", as_json: AsJson = False) -> None:
    """Versions that were live and builds that were not promoted, the latest first."""
    from cli.output import out, print_json

    with _opened(config) as (_, found, ledger):
        rows = version_rows(ledger, found.name)
    if as_json:
        live = next((row["label"] for row in rows if row["live"]), None)
        print_json({"config": found.name, "live": live, "versions": rows})
    elif rows:
        _print_versions(rows)
    else:
        out.print(f"{found.name} has no index yet; `touchstone reindex --config {config}` builds one")


@app.command()
def rollback(
    config: ConfigName = "support",
    to: Annotated[str | None, typer.Option(help="Label of a version that was live; default: the one before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version live again; readers follow within a second, nothing is built.

    Without --to it is the version that was live before the current one; a second roll-back goes further back.
    """
    from cli.output import out, print_json
    from tasks.live_index import live_pointer, roll_back

    with _opened(config) as (settings, found, ledger):
        before = live_pointer(ledger, found.name)
        pointer = roll_back(ledger, settings.lance, found.name, to)
    rolled_back_from = before.index.label if before else None
    if as_json:
        answer = {"config": found.name, "live": pointer.index.label, "rolled_back_from": rolled_back_from}
        print_json(answer | {"promoted_at": pointer.promoted_at, "sequence": pointer.sequence})
        return
    out.print(f"[bold green]LIVE[/]  {pointer.index.label}  (before: {rolled_back_from})")


@app.command()
def search(
    question: str,
    config: ConfigName = "support",
    log: Annotated[bool, typer.Option("--log", help="Log it as production traffic, which freshness counts.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the live index finds for a question."""
    from cli.output import print_json
    from tasks.retrieval import LiveRetriever
    from tasks.retrieval_log import log_retrieval

    with _opened(config) as (settings, found, ledger):
        retriever = LiveRetriever(settings, found, ledger).current()
        retrieval = retriever.search(question)
        headings = retriever.headings(retrieval)
        if log:
            log_retrieval(settings.state / "retrievals", retrieval, config=found.name)
    if not as_json:
        _print_chunks(retrieval, headings)
        return
    chunks = [chunk.model_dump() | {"heading": headings.get(chunk.chunk_id, "")} for chunk in retrieval.chunks]
    print_json(retrieval.model_dump() | {"chunks": chunks, "config": found.name, "logged": log})


@app.command()
def cleanup(
    config: ConfigName = "support",
    keep: Annotated[int, typer.Option(min=1, help="Versions that were live last and can be rolled back to.")] = 3,
    older_than_hours: Annotated[
        float, typer.Option(min=0, help="Younger versions stay: an eval or a build may be using them.")
    ] = 24,
    as_json: AsJson = False,
) -> None:
    """Remove old versions of the config's tables from disk; what is live or retained is spared.

    Exit 3 when a table could not be cleaned, for example because a build is running.
    """
    from cli.output import exit_with, out, print_json
    from tasks.live_index import clean_up

    with _opened(config) as (settings, found, ledger):
        tables = clean_up(ledger, settings.lance, found.name, keep, timedelta(hours=older_than_hours))
    if as_json:
        print_json({"config": found.name, "tables": [vars(table) for table in tables]})
    for table in tables if not as_json else ():
        if table.skipped:
            out.print(f"[yellow]{table.table}: not cleaned: {table.skipped}[/]")
            continue
        held = f"; all since {table.oldest_tag} stay" if table.oldest_tag else ""
        out.print(f"{table.table}: {len(table.removed)} versions removed, {table.versions} left{held}")
    if not tables and not as_json:
        out.print(f"{found.name} was never live: nothing to clean")
    exit_with(3 if any(table.skipped for table in tables) else 0)


def version_rows(ledger: Ledger, config_name: str) -> list[dict[str, Any]]:
    """One row per version that was live, and per version that was only built; the latest event first."""
    from tasks.live_index import pointer_history
    from touchstone.ledger import EventKind, index_subject

    history = pointer_history(ledger, config_name)
    moves = {pointer.index.label: pointer for pointer in history}
    rows = [
        {
            "label": label,
            "live": label == history[-1].index.label,
            "promoted": True,
            "promoted_at": pointer.promoted_at,
            "sequence": pointer.sequence,
            "reason": pointer.reason,
            "build_key": pointer.build_key,
        }
        | pointer.index.model_dump(include={"built_at", "documents", "chunks"})
        for label, pointer in moves.items()
    ]
    builds: dict[str, dict[str, Any]] = {}
    for event in ledger.events(EventKind.INDEX_BUILT, index_subject(config_name)):
        label = event.payload["index_version"]
        if label in moves:
            continue
        builds[label or event.payload["build_key"]] = {
            "label": label,  # None: it stopped before there was a version
            "live": False,
            "promoted": False,
            "promoted_at": None,
            "sequence": event.sequence,
            "reason": event.payload["reason"],
            "build_key": event.payload["build_key"],
            "built_at": event.at,
            "documents": event.payload.get("documents"),
            "chunks": event.payload.get("chunks"),
        }
    return sorted([*rows, *builds.values()], key=lambda row: row["sequence"], reverse=True)


@contextmanager
def _opened(config: str) -> Iterator[tuple[Settings, RetrievalConfig, Ledger]]:
    from tasks.ledger import Ledger
    from tasks.loading import load_retrieval_config, load_settings

    settings = load_settings()
    found, _ = load_retrieval_config(settings.root, config, needs_source=False)
    ledger = Ledger(settings.ledger, settings.environment)
    try:
        yield settings, found, ledger
    finally:
        ledger.close()


def _print_versions(rows: list[dict[str, Any]]) -> None:
    """Two lines each: in a table the labels, which `--to` wants, would be cut."""
    from rich.markup import escape

    from cli.output import out

    for row in rows:
        state = "[bold green]live[/]" if row["live"] else "was live" if row["promoted"] else "[dim]not promoted[/]"
        promoted = f", promoted {_minute(row['promoted_at'])}" if row["promoted"] else ""
        out.print(f"{escape(row['label'] or 'no version')}  {state}  built {_minute(row['built_at'])}{promoted}")
        counts = "" if row["chunks"] is None else f"{row['documents']} documents, {row['chunks']} chunks: "
        out.print(f"    {counts}{row['reason']}", markup=False)


def _minute(moment: str) -> str:
    """To the minute, in UTC as it is stored."""
    return moment[:16].replace("T", " ")


def _print_chunks(retrieval: Retrieval, headings: dict[str, str]) -> None:
    from rich.markup import escape

    from cli.output import out

    out.print(f"[dim]{retrieval.index_version}, {retrieval.search} search, {retrieval.latency_ms:.0f} ms[/]")
    for chunk in retrieval.chunks:
        heading = headings.get(chunk.chunk_id) or chunk.title
        text = " ".join(chunk.text.split())
        text = text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]} …"
        out.print(f"{chunk.rank}. {chunk.score:.3f}  [bold]{escape(chunk.document_id)}[/]  {escape(heading)}")
        out.print(f"   [dim]{escape(text)}[/]")
    if not retrieval.chunks:
        out.print("nothing found")
