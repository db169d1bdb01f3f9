"""What the terminal shows: tables for people, one JSON object for programs, exit codes for both."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:  # or every command would import scipy
    from touchstone.comparison import MetricChange
    from touchstone.policy import Policy
    from touchstone.report import EvalReport

STYLES = {
    "calibration": "dim",
    "measured": "dim",
    "stable": "green",
    "flagged": "yellow",
    "drifted": "red",
    "unmeasurable": "magenta",
}

# In a file or a pipe no table is cut at the 80 columns of a terminal that is not there.
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
out = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)
log = logging.getLogger("touchstone")  # plain lines on stderr, see cli.main


def print_json(data: Any) -> None:
    """One object on stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def exit_with(code: int) -> NoReturn:
    raise typer.Exit(code)


def exit_code(report: EvalReport, policy: Policy) -> int:
    """0 stable, 1 drifted for the worse (or at all, with `fail_on: change`), 3 unmeasurable, 4 budget."""
    if "budget" in report.failures:
        return 4
    if report.verdict == "unmeasurable":
        return 3
    fails = report.direction == "worse" or policy.fail_on == "change"
    return 1 if report.verdict == "drifted" and fails else 0


@contextmanager
def case_progress(total: int, title: str) -> Iterator[Any]:
    """Yields a callback per finished case: a bar on a terminal, a plain line per tenth elsewhere."""
    if err.is_terminal:
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[failed]}"),
        )
        with Progress(*columns, console=err, transient=True) as progress:
            bar = progress.add_task(title, total=total, failed="")
            failed = 0

            def advance(result: Any) -> None:
                nonlocal failed
                failed += bool(result.failures)
                progress.update(bar, advance=1, failed=f"{failed} failed" if failed else "")
                if progress.tasks[bar].completed > total:  # a gate buys more trials than it began with
                    progress.update(bar, total=progress.tasks[bar].completed)

            yield advance
        return
    count = 0

    def note(result: Any) -> None:
        nonlocal count
        count += 1
        if count == total or count % max(1, total // 10) == 0:
            more = f", {count - total} more trials" if count > total else ""
            err.print(f"{title}: {min(count, total)}/{total} cases{more}")

    yield note


@contextmanager
def count_progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (done, total): a bar on a terminal, a plain line per tenth elsewhere."""
    if err.is_terminal:
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=err, transient=True) as progress:
            bar = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(bar, completed=done, total=total)
        return
    tenths = 0

    def note(done: int, total: int) -> None:
        nonlocal tenths
        if 10 * done // total > tenths:
            tenths = 10 * done // total
            err.print(f"{title}: {done}/{total} {unit}")

    yield note


def print_report(report: EvalReport) -> None:
    """The verdict, the metrics with their denominators, and what they cost."""
    from touchstone.report import personal_data

    style = STYLES[report.verdict]
    direction = f", {report.direction}" if report.direction else ""
    provisional = " [dim](provisional baseline)[/dim]" if report.provisional else ""
    out.print(f"[bold {style}]{report.verdict.upper()}{direction}[/]{provisional}  {escape(report.reason)}")
    out.print(_metric_table(report))
    scored = f"{report.n_scored} of {report.n_cases} cases scored"
    failed = "".join(f"; {count} {kind}" for kind, count in report.failures.items())
    out.print(f"{scored}{failed}. {_spent(report)}")
    if found := personal_data(report):
        out.print(f"personal data in the answers, scrubbed before they were stored: {found}")
    for kind, example in report.failure_examples.items():
        out.print(f"  [dim]{kind}[/dim] {escape(example)}")
    if report.mlflow_url:
        out.print(f"MLflow: {report.mlflow_url}")
    out.print(f"[dim]run key {report.run_key}[/dim]")


def _metric_table(report: EvalReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("metric", "baseline", "now", "95 % interval", "n", "evidence", "level"):
        table.add_column(name, justify="left" if name in {"metric", "level"} else "right")
    from tasks.announce import strongest_stream

    for name, summary in report.metrics.items():
        stream = strongest_stream(report, name)
        table.add_row(
            name,
            f"{stream.mean_baseline:.3f}" if stream else "–",
            f"{summary.mean:.3f}",
            f"{summary.ci_low:.3f} – {summary.ci_high:.3f}",
            str(summary.n),
            f"{stream.adjusted:.2g}" if stream else "–",
            f"{stream.level} ({stream.direction})" if stream and stream.level != "stable" else "",
        )
    return table


def _spent(report: EvalReport) -> str:
    cost = "cost unknown (no price)" if report.cost_usd is None else f"{report.cost_usd:.4f} USD"
    latency = report.latency_ms
    spread = f", latency p50 {latency.p50:.0f} / p95 {latency.p95:.0f} ms" if latency.p50 is not None else ""
    cache = f", {report.cache_hit_share:.0%} of judge calls from cache" if report.cache_hit_share else ""
    return f"{report.calls} calls{cache}, {cost}, {report.wall_s:.1f} s{spread}"


def print_changes(a: EvalReport, b: EvalReport, changes: list[MetricChange], cases: int) -> None:
    """Metric by metric what moved between two runs, then the cases that moved most."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("metric", "A", "B", "B - A", "95 % interval", "n", "better", "worse"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for change in changes:
        clear = change.ci_low > 0 or change.ci_high < 0
        difference = f"{change.difference:+.3f}"
        table.add_row(
            change.metric,
            f"{change.mean_a:.3f}",
            f"{change.mean_b:.3f}",
            f"[bold]{difference}[/bold]" if clear else difference,
            f"{change.ci_low:+.3f} – {change.ci_high:+.3f}",
            str(change.n),
            str(len(change.better)),
            str(len(change.worse)),
        )
    out.print(f"A {a.run_key}\nB {b.run_key}\n")
    out.print(table)
    out.print(f"\n{_cost_line('A', a)}\n{_cost_line('B', b)}")
    if changes and cases:
        for label, ids in (("worse", changes[0].worse), ("better", changes[0].better)):
            if ids:
                more = f" … {len(ids) - cases} more" if len(ids) > cases else ""
                out.print(f"{changes[0].metric} {label}: {escape(', '.join(ids[:cases]))}{more}")


def _cost_line(label: str, report: EvalReport) -> str:
    return f"{label}: {report.verdict}; {_spent(report)}; served by {', '.join(report.served_models) or 'unknown'}"
