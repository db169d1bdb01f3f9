"""touchstone drift calibrate | status"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

app = typer.Typer(help="Frozen baselines and what was decided against them.", no_args_is_help=True)

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
