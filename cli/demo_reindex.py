"""The demo's second thread: documents change, the index follows; a ruined build reaches nobody."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from touchstone.index import BuildReport
    from touchstone.settings import Settings

_EDITED = (
    *("billing/plans-overview", "billing/refund-subscriptions", "billing/free-trials", "billing/payment-methods"),
    *("devices/mast", "devices/rain-gauge", "devices/wind-sensor", "setup/wifi-requirements"),
    *("setup/firmware-updates", "setup/led-codes", "data/api-keys", "account/two-factor"),
)
_DELETED = "data/public-map"
_ADDED = "billing/refund-vouchers"
_NEWS = "\n\nSince this week the help desk also answers on Sundays from 10:00 to 16:00.\n"
_VOUCHERS = (
    "# Refund vouchers\n\nA refund can be taken as a voucher instead of money: it is worth 110 % of the payment.\n"
)
QUESTION = "Can I take a refund as a voucher, and what is it worth?"


def own_corpus(settings: Settings) -> Path:
    """A copy of the help centre that may be edited, and a retrieval config on it; returns the config's path."""
    folder = settings.state / "demo"
    shutil.rmtree(folder / "corpus", ignore_errors=True)
    shutil.copytree(settings.root / "datasets" / "support" / "corpus", folder / "corpus")
    config = yaml.safe_load((settings.root / "retrieval_configs" / "support.yaml").read_text())
    config["source"]["path"] = "corpus"
    path = folder / "retrieval.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def reindex(config: Path) -> BuildReport:
    """The flow `reindex`, in this process."""
    from flows.reindex import ReindexRequest, run_as_flow

    return run_as_flow(ReindexRequest(config=str(config)))


def documents_change(settings: Settings, config: Path) -> list[str]:
    """Edit twelve documents, delete one, add one; then check freshness, re-index, ask. Returns what to print."""
    corpus = config.parent / "corpus"
    for name in _EDITED:
        with (corpus / f"{name}.md").open("a") as file:
            file.write(_NEWS)
    (corpus / f"{_DELETED}.md").unlink()
    (corpus / f"{_ADDED}.md").write_text(_VOUCHERS)

    breached = check_freshness(config)
    before, after = ask(settings, config), reindex(config)
    restored = check_freshness(config)
    return [
        f"freshness  {breached}",
        f"re-index   {describe(after)}",
        f"freshness  {restored}",
        f"           [dim]“{QUESTION}”[/] found {before} first, finds [bold]{ask(settings, config)}[/] now",
    ]


def ruined_build(config: Path) -> BuildReport:
    """A new version of the config with a cheaper embedding model, which finds less; the config is put back after."""
    good = config.read_text()
    fields = yaml.safe_load(good) | {"version": "1.1.0", "embedding_model": "hashing"}
    try:
        config.write_text(yaml.safe_dump(fields))
        return reindex(config)
    finally:
        config.write_text(good)


def describe(report: BuildReport) -> str:
    """One line of a build: what changed, what was embedded, what became of it."""
    from rich.markup import escape

    changes = report.changes
    word = "[green]promoted[/]" if report.promoted else "[red]NOT promoted[/]"
    reason, _, _ = report.reason.partition(":" if report.promoted else ": lower")
    return (
        f"{word}  {len(changes.added)} added, {len(changes.changed)} changed, {len(changes.deleted)} deleted: "
        f"{report.embedded_chunks} of {report.chunks} chunks embedded, {report.wall_s:.0f} s  [dim]{escape(reason)}[/]"
    )


def check_freshness(config: Path) -> str:
    """The flow `freshness`, in this process, as one line."""
    from rich.markup import escape

    from flows.freshness import freshness

    state = freshness(config=str(config), return_state=True)
    style = {"Ok": "green", "Flagged": "yellow"}.get(state.name or "", "red")
    level, _, reason = (state.message or "").partition(": ")
    return f"[{style}]{level}[/]  [dim]{escape(reason)}[/]"


def ask(settings: Settings, config: Path) -> str:
    """The document that the live index finds first."""
    from tasks.loading import load_retrieval_config
    from tasks.retrieval import LiveRetriever

    found, _ = load_retrieval_config(settings.root, str(config))
    chunks = LiveRetriever(settings, found).search(QUESTION).chunks
    return chunks[0].document_id if chunks else "nothing"
