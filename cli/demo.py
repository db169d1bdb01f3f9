"""touchstone demo: the whole loop on the embedded default, against the emulated vendor."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from touchstone.report import EvalReport
    from touchstone.settings import Settings

PINNED, SWAPPED = "extractive-2026-01-15", "extractive-2026-01-15-lite"
CALIBRATION_RUNS = 20
_STORES = ("MLFLOW_TRACKING_URI", "LEDGER_URL", "LANCE_URI")
_MLFLOW_UI, _PREFECT_UI = "http://127.0.0.1:5000", "http://127.0.0.1:4200"


def demo() -> None:
    """Index, baseline, quiet days; releases; documents change, the index follows; then the vendor silently changes."""
    from cli.demo_reindex import own_corpus
    from cli.demo_servers import emulated_vendor
    from cli.output import exit_with, out

    started = time.monotonic()
    home = Path(os.environ.get("TOUCHSTONE_HOME", ".touchstone")).absolute()
    outside = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", *(f"TOUCHSTONE_{name}" for name in _STORES))
    for name in outside:
        os.environ.pop(name, None)  # the embedded default, whatever this shell is used for otherwise
    os.environ["PREFECT_HOME"] = str(home / "prefect")
    os.environ["TOUCHSTONE_ENVIRONMENT"] = "demo"
    os.environ["TOUCHSTONE_MLFLOW_UI_URL"] = _MLFLOW_UI
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # a drifted run is an error to Prefect, not to a demo
    # LiteLLM drops its idle logging task whenever another event loop calls it, and the demo has several.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    from tasks.loading import load_settings

    settings = load_settings()
    out.print(
        "[bold]Touchstone demo[/] — emulated vendor, real Prefect, MLflow, LanceDB; nothing leaves this machine\n"
    )
    with emulated_vendor() as address:
        retrieval = own_corpus(settings)
        bundle = _bundle_at(settings, retrieval, address, "support")
        reports = asyncio.run(_days(settings, retrieval, bundle, address))
    out.print()
    _print_days(reports)
    _print_next_steps(settings, home, reports, time.monotonic() - started)
    verdicts = [report.verdict for report in reports]
    exit_with(0 if verdicts[:3] == ["stable"] * 3 and verdicts[-1] == "drifted" else 1)


async def _days(settings: Settings, retrieval: Path, bundle: Path, address: str) -> list[EvalReport]:
    from cli import demo_reindex, demo_release
    from cli.output import out
    from flows.golden_eval import calibrate_runs, run_as_flow
    from tasks.plan import EvalRequest
    from tasks.spool import existing_spool
    from touchstone.report import EvalReport

    request = EvalRequest(bundle=str(bundle), dataset="support")
    first = await asyncio.to_thread(demo_reindex.reindex, retrieval)
    out.print(f"re-index   {demo_reindex.describe(first)}")
    started = time.monotonic()
    baseline = await calibrate_runs(settings, request, CALIBRATION_RUNS)
    out.print(
        f"baseline   {len(baseline.run_keys)} runs of the golden set frozen in {time.monotonic() - started:.0f} s"
    )
    reports = []
    for day in range(1, 6):
        if day == 2:
            steps = demo_release.releases(
                settings, partial(_bundle_at, settings, retrieval, address), reports[0].run_key
            )
            while line := await asyncio.to_thread(next, steps, None):
                out.print(line)
        if day == 3:
            for line in await asyncio.to_thread(demo_reindex.documents_change, settings, retrieval):
                out.print(line)
        if day == 4:
            ruined = await asyncio.to_thread(demo_reindex.ruined_build, retrieval)
            out.print(f"re-index   {demo_reindex.describe(ruined)}")
            _swap(address)
            out.print(f"[bold]           the vendor now serves {SWAPPED} under the same name, and says nothing[/]")
        key = await run_as_flow(request, None, False)
        report = EvalReport.model_validate(existing_spool(settings.state, key).read_json("report.json"))
        reports.append(report)
        out.print(f"day {day}      {_line(report)}")
    return reports


def _bundle_at(settings: Settings, retrieval: Path, address: str, name: str) -> Path:
    """A bundle, pointed at this demo's documents and vendor, whose address is in no fingerprint."""
    bundle = yaml.safe_load((settings.root / "bundles" / f"{name}.yaml").read_text())
    bundle["retrieval"] = str(retrieval)
    bundle["api_base"] = bundle["judge"]["api_base"] = f"{address}/v1"
    path = settings.state / "demo" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(bundle))
    return path


def _swap(address: str) -> None:
    body = json.dumps({PINNED: SWAPPED}).encode()
    request = urllib.request.Request(f"{address}/control/aliases", data=body, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass


def _line(report: EvalReport) -> str:
    from rich.markup import escape

    from cli.output import STYLES

    name, summary = next(iter(report.metrics.items()))
    direction = f", {report.direction}" if report.direction else ""
    verdict = f"[{STYLES[report.verdict]}]{report.verdict}{direction}[/]"
    return f"{verdict}  {name} {summary.mean:.3f}  [dim]{escape(report.reason)}[/]"


def _print_days(reports: list[EvalReport]) -> None:
    from rich.table import Table

    from cli.output import STYLES, out
    from tasks.announce import strongest_stream

    metric = next(iter(reports[0].metrics))
    days = {report.run_key: f"day {day}" for day, report in enumerate(reports, start=1)}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("day", "verdict", metric, "evidence (act at 1)", "change point", "calls", "cost"):
        table.add_column(name)
    for day, report in enumerate(reports, start=1):
        stream = strongest_stream(report, metric)
        table.add_row(
            str(day),
            f"[{STYLES[report.verdict]}]{report.verdict}[/]",
            f"{report.metrics[metric].mean:.3f}",
            f"{stream.adjusted:.2g}" if stream else "",
            days.get(report.change_point or "", ""),
            str(report.calls),
            f"{report.cost_usd:.4f} USD" if report.cost_usd is not None else "unknown",
        )
    out.print(table)


def _print_next_steps(settings: Settings, home: Path, reports: list[EvalReport], seconds: float) -> None:
    from cli.output import out
    from tasks.tracking import ui_command

    shown = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    out.print(f"\n{seconds:.0f} s. Look at it:")
    out.print(f"  {_PREFECT_UI}  PREFECT_HOME=$PWD/{shown}/prefect .venv/bin/prefect server start")
    out.print(f"  {_MLFLOW_UI}  {ui_command(settings)}")
    out.print(f"  here                   .venv/bin/touchstone eval compare {reports[1].run_key} {reports[4].run_key}")
