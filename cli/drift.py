"""touchstone drift calibrate | status | queries"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from touchstone.query_drift import QueryDriftDecision
    from touchstone.retrieval_config import QueryDriftPolicy

app = typer.Typer(help="Frozen baselines, what was decided against them, and what users ask now.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command()
def calibrate(
    bundle: Annotated[str, typer.Option(help="A name in bundles/, or a path.")] = "support",
    dataset: Annotated[str, typer.Option(help="A name in datasets/, or a folder with cases.jsonl.")] = "support",
    policy: Annotated[str | None, typer.Option(help="Another policy file than the dataset's policy.yaml.")] = None,
    runs: Annotated[int, typer.Option(min=1, max=100, help="How many runs to make.")] = 20,
    from_runs: Annotated[
        list[str] | None, typer.Option("--from", help="Freeze these runs instead (repeat it).")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Trials per case.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N cases only.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=1024)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the vendor as it is now and freeze it as the baseline that later runs are compared with."""
    from cli.output import case_progress, out, print_json
    from flows.golden_eval import calibrate_from, calibrate_runs
    from tasks.loading import load_golden_set, load_settings
    from tasks.plan import EvalRequest

    settings = load_settings()
    if from_runs:
        baseline = calibrate_from(settings, from_runs)
    else:
        request = EvalRequest(
            bundle=bundle, dataset=dataset, policy=policy, repeats=repeats, limit=limit, concurrency=concurrency
        )
        golden = load_golden_set(settings.root, dataset, policy)
        total = runs * repeats * len(golden.cases[:limit])
        with case_progress(total, "calibration") as on_case:
            baseline = asyncio.run(calibrate_runs(settings, request, runs, on_case))
    if as_json:
        print_json({"id": baseline.id, "provisional": baseline.provisional, "run_keys": list(baseline.run_keys)})
        return
    kind = "provisional baseline" if baseline.provisional else "baseline"
    out.print(f"{kind} {baseline.id} frozen from {len(baseline.run_keys)} runs")


@app.command()
def status(as_json: AsJson = False) -> None:
    """The last decision of every bundle on every golden set."""
    from cli.output import STYLES, out, print_json
    from tasks.ledger import Ledger
    from tasks.loading import load_settings
    from touchstone.ledger import EventKind

    settings = load_settings()
    ledger = Ledger(settings.ledger, settings.environment)
    events = ledger.events()
    ledger.close()
    frozen = {event.subject: event for event in events if event.kind is EventKind.BASELINE_FROZEN}
    decided = {event.subject: event for event in events if event.kind is EventKind.EVAL_DECIDED}
    rows = []
    for subject, baseline in frozen.items():
        last = decided.get(subject)
        rows.append(
            {"subject": subject, "baseline": baseline.payload, "at": baseline.at} | (last.payload if last else {})
        )
    if as_json:
        print_json({"subjects": rows})
        return
    for row in rows:
        verdict = row.get("verdict", "baseline only")
        kind = "provisional" if row["baseline"]["provisional"] else f"{len(row['baseline']['run_keys'])} runs"
        out.print(f"[{STYLES.get(verdict, 'dim')}]{verdict}[/]  {row['subject']}  (baseline: {kind})")
        if row.get("reason"):
            out.print(f"    {row['reason']}", markup=False)
    if not rows:
        out.print("no baseline yet; `touchstone eval run` makes a provisional one")


@app.command()
def queries(
    config: Annotated[str, typer.Option(help="A name in retrieval_configs/, or a path.")] = "support",
    prefect: Annotated[
        bool | None, typer.Option("--prefect/--no-prefect", help="As a Prefect flow run; default: if one is set up.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Did production queries move away from those of the days before?

    Exit 0 stable or flagged, 1 drifted, 2 bad input, 3 too few queries to tell.
    """
    from cli.output import exit_with, print_json
    from flows.query_drift import conduct, run_as_flow
    from tasks.loading import load_retrieval_config, load_settings
    from touchstone.drift_records import Verdict

    settings = load_settings()
    loaded, _ = load_retrieval_config(settings.root, config)
    in_prefect = prefect if prefect is not None else bool(os.environ.get("PREFECT_API_URL"))
    decision = run_as_flow(config) if in_prefect else conduct(settings, loaded)
    if as_json:
        print_json(_query_object(decision, loaded.name))
    else:
        _print_queries(decision, loaded.query_drift)
    exit_with({Verdict.DRIFTED: 1, Verdict.UNMEASURABLE: 3}.get(decision.verdict, 0))


def _query_object(decision: QueryDriftDecision, config: str) -> dict[str, Any]:
    """The decision with its headline figures on top."""
    shift = decision.shift
    figures = {
        "config": config,
        "n": decision.windows.n,
        "reference_n": decision.windows.reference_n,
        "centroid_cosine": shift.centroid_cosine if shift else None,
        "psi": shift.psi if shift else None,
        "psi_projection": shift.largest.name if shift else None,
        "spread_ratio": shift.spread_ratio if shift else None,
    }
    return figures | decision.model_dump(mode="json")


def _print_queries(decision: QueryDriftDecision, policy: QueryDriftPolicy) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cli.output import STYLES, out

    verdict = decision.verdict.value
    out.print(f"[bold {STYLES[verdict]}]{verdict.upper()}[/]  {escape(decision.reason)}")
    if decision.shift is None:
        return
    shift = decision.shift
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("figure", "now", "as computed", "flag", "act"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    cosine = "–" if shift.centroid_cosine is None else f"{shift.centroid_cosine:.3f}"
    limits = (f"< {policy.centroid_flag:g}", f"< {policy.centroid_act:g}")
    table.add_row("cosine of the centroids", cosine, f"{shift.centroid_cosine_raw:.3f}", *limits)
    for line in shift.projections:
        limits = (f"> {policy.psi_flag:g}", f"> {policy.psi_act:g}")
        table.add_row(f"PSI, {line.name}", f"{line.corrected:.3f}", f"{line.psi:.3f}", *limits)
    ratio = "–" if shift.spread_ratio is None else f"{shift.spread_ratio:.3f}"
    table.add_row("spread, of the reference's", ratio, "", "", "")
    out.print(table)
    out.print("[dim]now: without what sampling alone explains[/dim]")
    if decision.window_verdict.value != "stable":
        for example in decision.examples:
            out.print(f"  least like the reference: {escape(example.text)} ({example.similarity:.2f})")
