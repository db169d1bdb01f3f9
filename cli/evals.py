"""touchstone eval run | estimate | show | compare"""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Run golden sets and look at what they found.", no_args_is_help=True)

Bundle = Annotated[str, typer.Option(help="A name in bundles/, or a path.")]
Dataset = Annotated[str, typer.Option(help="A name in datasets/, or a folder with cases.jsonl.")]
PolicyFile = Annotated[str | None, typer.Option(help="Another policy file than the dataset's policy.yaml.")]
Repeats = Annotated[int, typer.Option(min=1, max=100, help="Trials per case.")]
Limit = Annotated[int | None, typer.Option(min=1, help="The first N cases only.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command()
def run(
    bundle: Bundle = "support",
    dataset: Dataset = "support",
    policy: PolicyFile = None,
    repeats: Repeats = 1,
    limit: Limit = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=1024, help="Vendor calls in flight at once.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Spend cap in USD; wins over the policy's.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN_KEY", help="Finish a run; nothing is paid twice.")] = None,
    retry_failures: Annotated[bool, typer.Option(help="With --resume: run the failed cases again.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit report for CI.")] = None,
    prefect: Annotated[
        bool | None, typer.Option(help="As a Prefect flow run; default: when PREFECT_API_URL is set.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a golden set on a bundle and say: stable, drifted or unmeasurable."""
    from cli.output import case_progress, exit_code, exit_with, log, print_json, print_report
    from cli.reports import annotate_github, write_junit
    from tasks.loading import load_settings
    from tasks.plan import EvalRequest
    from tasks.spool import existing_spool
    from touchstone.errors import BadInput

    if retry_failures and resume is None:
        raise BadInput("--retry-failures needs --resume RUN_KEY: which run's failures?")
    settings = load_settings()
    if max_cost is not None and not 0 < max_cost < math.inf:
        raise BadInput(f"--max-cost {max_cost:g}: give a positive amount of USD")
    request = EvalRequest(
        bundle=bundle,
        dataset=dataset,
        policy=policy,
        repeats=repeats,
        limit=limit,
        concurrency=concurrency,
        max_cost_usd=max_cost,
    )
    in_prefect = prefect if prefect is not None else bool(os.environ.get("PREFECT_API_URL"))
    if in_prefect:
        from flows.golden_eval import run_as_flow

        spool = existing_spool(settings.state, asyncio.run(run_as_flow(request, resume, retry_failures)))
        report, policy_used = _report(spool), _policy(spool)
    else:
        from flows.golden_eval import conduct, plan_run, publish

        plan = plan_run(settings, request, resume, retry_failures)
        log.info("run key %s (`--resume` it after an interruption; nothing is paid twice)", plan.run_key)
        with case_progress(len(plan.units), plan.manifest.bundle_name) as on_case:
            report = asyncio.run(conduct(plan, on_case=on_case))
        report = publish(settings, report, log)
        spool = existing_spool(settings.state, plan.run_key)
        policy_used = plan.golden.policy
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_report(report)
    if junit is not None:
        write_junit(junit, report, spool.cases().values(), policy_used.metrics)
    annotate_github(report)
    if not in_prefect:
        from flows.golden_eval import publish_cases

        publish_cases(settings, report, log)  # the verdict is out: this may take its seconds
    exit_with(exit_code(report, policy_used))


@app.command()
def estimate(
    bundle: Bundle = "support",
    dataset: Dataset = "support",
    policy: PolicyFile = None,
    repeats: Repeats = 1,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """How many calls a run makes and what it costs, before it starts."""
    from cli.output import out, print_json
    from tasks.estimate import estimate as estimate_plan
    from tasks.loading import load_settings
    from tasks.plan import EvalRequest, plan_eval

    request = EvalRequest(bundle=bundle, dataset=dataset, policy=policy, repeats=repeats, limit=limit)
    found = estimate_plan(plan_eval(load_settings(), request))
    if as_json:
        print_json(found.as_json())
        return
    out.print(
        f"{found.cases} cases x {found.repeats}: {found.generation_calls} generation calls, "
        f"{found.judge_calls} judge calls"
        + (f", {found.embedding_calls} embedding calls" if found.embedding_calls else "")
    )
    out.print(
        f"expected {_usd(found.expected_cost_usd)}, at most {_usd(found.worst_cost_usd)}; "
        f"cap {_usd(found.cap_usd, 'none')} ({found.basis})"
    )


@app.command()
def show(
    run_key: Annotated[str | None, typer.Argument(help="Empty: list the last runs.")] = None,
    as_json: AsJson = False,
) -> None:
    """A run's report, or the list of the last runs."""
    from cli.output import print_json, print_report
    from tasks.loading import load_settings
    from tasks.spool import existing_spool

    settings = load_settings()
    if run_key is None:
        _list_runs(settings, as_json)
        return
    report = _report(existing_spool(settings.state, run_key))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_report(report)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run key of the run before.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Run key of the run after.")],
    cases: Annotated[int, typer.Option(min=0, help="How many flipped cases to name.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Two runs side by side, paired by case."""
    from dataclasses import asdict

    from cli.output import print_changes, print_json
    from tasks.loading import load_settings
    from tasks.spool import existing_spool
    from touchstone.comparison import compare as compare_runs

    settings = load_settings()
    spools = [existing_spool(settings.state, key) for key in (a, b)]
    results_a, results_b = (list(spool.cases().values()) for spool in spools)
    changes = compare_runs(results_a, results_b, _policy(spools[1]).metrics)
    if as_json:
        print_json({"a": a, "b": b, "metrics": [asdict(change) for change in changes]})
    else:
        print_changes(_report(spools[0]), _report(spools[1]), changes, cases)


def _report(spool: Any) -> Any:
    from touchstone.errors import BadInput
    from touchstone.report import EvalReport

    if not spool.has("report.json"):
        raise BadInput(f"run {spool.run_key} is not finished; `touchstone eval run --resume {spool.run_key}`")
    return EvalReport.model_validate(spool.read_json("report.json") | _published(spool))


def _published(spool: Any) -> dict[str, Any]:
    if not spool.has("published.json"):
        return {}
    published = spool.read_json("published.json")
    return {f"mlflow_{name}": published[name] for name in ("run_id", "url", "compare_url")}


def _policy(spool: Any) -> Any:
    """The policy of a run, as its golden set has it now."""
    from tasks.loading import load_golden_set, load_settings
    from tasks.plan import EvalManifest

    request = EvalManifest.model_validate(spool.read_json("manifest.json")).request
    return load_golden_set(load_settings().root, request.dataset, request.policy).policy


def _list_runs(settings: Any, as_json: bool) -> None:
    from rich.table import Table

    from cli.output import STYLES, out, print_json
    from tasks.spool import Spool, run_folders

    rows = []
    for folder in run_folders(settings.state)[-20:]:
        spool = Spool(folder)
        report = spool.read_json("report.json") if spool.has("report.json") else {}
        verdict = report.get("verdict", "unfinished")
        if report and spool.read_json("manifest.json").get("purpose") == "calibration":
            verdict = "calibration"
        rows.append(
            {
                "run_key": folder.name,
                "verdict": verdict,
                "direction": report.get("direction"),
                "metrics": {name: found["mean"] for name, found in report.get("metrics", {}).items()},
                "published": spool.has("published.json"),
            }
        )
    if as_json:
        print_json({"runs": rows})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run key", "verdict", "headline", "in MLflow"):
        table.add_column(name)
    for row in rows:
        name, mean = next(iter(row["metrics"].items()), ("", None))
        style = STYLES.get(row["verdict"], "dim")
        direction = f", {row['direction']}" if row["direction"] else ""
        table.add_row(
            row["run_key"],
            f"[{style}]{row['verdict']}{direction}[/]",
            f"{name} {mean:.3f}" if mean is not None else "",
            "yes" if row["published"] else "no",
        )
    out.print(table if rows else "no runs yet; `touchstone eval run` makes one")


def _usd(value: float | None, unknown: str = "unknown (no price)") -> str:
    return unknown if value is None else f"{value:.4f} USD"
