"""touchstone gate"""

from __future__ import annotations

import getpass
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from touchstone.gate_records import Comparison, GateReport
    from touchstone.settings import Settings

_EXIT = {"pass": 0, "fail": 1, "unmeasurable": 3}


def gate(
    bundle: Annotated[str, typer.Option(help="The candidate: a name in bundles/, or a path.")] = "support",
    prompt: Annotated[
        str | None, typer.Option(help="Another than the bundle's: name@version, or mlflow:NAME@VERSION.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="A name in datasets/, or a folder with cases.jsonl.")] = "support",
    against: Annotated[str | None, typer.Option(help="Another bundle than the environment's champion.")] = None,
    policy: Annotated[str | None, typer.Option(help="Another policy file than the dataset's policy.yaml.")] = None,
    allow_several: Annotated[bool, typer.Option(help="Although several factors changed at once.")] = False,
    role: Annotated[str, typer.Option(help="`candidate`, or `fallback` for a parity check.")] = "candidate",
    by: Annotated[str | None, typer.Option(help="Who asks; default: GITHUB_ACTOR or the user's name.")] = None,
    repeats_max: Annotated[
        int | None, typer.Option(min=1, max=20, help="Trials per case that may be bought; default: the policy's.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(help="Spend cap in USD, of both runs together.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="GATE_KEY", help="Finish a gate; nothing is paid twice.")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN_KEY", help="A finished eval of the candidate.")] = None,
    against_run: Annotated[str | None, typer.Option(metavar="RUN_KEY", help="And one of the champion.")] = None,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="In the ledger; without it nothing follows from a pass.")
    ] = True,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit report for CI.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Annotations and step summary for GitHub Actions.")] = False,
    prefect: Annotated[
        bool | None, typer.Option("--prefect/--no-prefect", help="As a Prefect flow run; default: if one is set up.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """May this bundle replace the champion? Both answer the same golden cases at the same time.

    Exit 0 pass, 1 fail, 2 bad input, 3 unmeasurable, 4 over the spend cap.
    """
    from cli.output import exit_with, print_json
    from tasks.gate_plan import GateRequest
    from tasks.loading import load_settings
    from touchstone.errors import BadInput

    _check(role, max_cost, resume, run, against_run)
    settings = load_settings()
    try:
        request = GateRequest.model_validate(
            {
                "bundle": bundle,
                "prompt": prompt,
                "dataset": dataset,
                "policy": policy,
                "against": against,
                "allow_several": allow_several,
                "role": role,
                "by": by or os.environ.get("GITHUB_ACTOR") or getpass.getuser(),
                "max_repeats": repeats_max,
                "max_cost_usd": max_cost,
                "record": record,
            }
        )
    except ValueError as error:
        raise BadInput(str(error)) from None
    in_prefect = prefect if prefect is not None else bool(os.environ.get("PREFECT_API_URL"))
    report = _run(settings, request, resume, run, against_run, in_prefect)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report)
    _tell_ci(settings, report, junit, github)
    if not in_prefect and run is None:
        from cli.output import log
        from flows.gate import publish_side_cases

        publish_side_cases(settings, report, log)  # the verdict is out: this may take its seconds
    exit_with(exit_code(report))


def exit_code(report: GateReport) -> int:
    """0 pass, 1 fail, 3 unmeasurable, 4 when the spend cap is why."""
    verdict = report.decision.verdict.value
    return 4 if verdict == "unmeasurable" and report.decision.is_over_budget else _EXIT[verdict]


def _check(role: str, max_cost: float | None, resume: str | None, run: str | None, against_run: str | None) -> None:
    from touchstone.errors import BadInput

    if role not in {"candidate", "fallback"}:
        raise BadInput(f"--role {role}: it is `candidate` or `fallback`")
    if max_cost is not None and not 0 < max_cost < math.inf:
        raise BadInput(f"--max-cost {max_cost:g}: give a positive amount of USD")
    if against_run is not None and run is None:
        raise BadInput("--against-run needs --run RUN_KEY: a finished eval of the candidate")
    if resume is not None and run is not None:
        raise BadInput("--resume finishes a gate that runs evals; --run decides on evals that are finished: give one")


def _run(
    settings: Settings, request: Any, resume: str | None, run: str | None, against_run: str | None, in_prefect: bool
) -> GateReport:
    from cli.output import case_progress, log
    from flows.gate import conduct, conduct_on_runs, open_gate, run_as_flow

    if run is not None:
        return conduct_on_runs(settings, request, run, against_run, log)[1]
    if in_prefect:
        return run_as_flow(request, resume)
    plan = open_gate(settings, request, resume)
    log.info("gate %s (`--resume` it after an interruption; nothing is paid twice)", plan.gate_key)
    cases = len(plan.golden.cases) * len(plan.sides)
    with case_progress(cases, plan.record.deployed.bundle.name) as on_case:
        return conduct(plan, log, on_case=on_case)


def _tell_ci(settings: Settings, report: GateReport, junit: Path | None, github: bool) -> None:
    from cli.gate_reports import annotate_github, first_trials, write_junit
    from tasks.spool import existing_spool

    if junit is not None:
        write_junit(junit, report)
    if github or os.environ.get("GITHUB_ACTIONS") == "true":
        sides = [first_trials(existing_spool(settings.state, key).cases().values()) for key in report.run_keys]
        annotate_github(report, sides[0], sides[1] if len(sides) > 1 else {})


def _print(report: GateReport) -> None:
    from rich.markup import escape

    from cli.output import out
    from tasks.announce_gate import spent

    decision = report.decision
    style = {"pass": "green", "fail": "red"}.get(decision.verdict, "magenta")
    out.print(f"[bold {style}]{escape(report.headline)}[/]  {escape(decision.reason)}")
    if report.ended_early:
        out.print(f"ended early, the rest could change nothing: {escape(report.ended_early)}")
    if decision.comparisons:
        out.print(_table(report))
        if hidden := len(decision.comparisons) - len(_shown(report)):
            out.print(f"[dim]{hidden} segments hold[/dim]")
    for check in decision.checks:
        mark = {"pass": "[green]ok[/]  ", "fail": "[red]FAIL[/]"}.get(check.verdict, "[magenta]?[/]   ")
        out.print(f"  {mark} {escape(check.name)}: {escape(check.detail)}")
    for change in decision.regressions[:5]:
        moved = f"{change.metric} {change.champion:.3g} -> {change.candidate:.3g}"
        out.print(f"  worse: {escape(change.case_id)}  {moved}  [dim]{escape(change.candidate_answer[:120])}[/]")
    out.print(
        f"{decision.n_worse} cases worse, {decision.n_better} better; cost per case "
        f"{spent(decision.cost_per_case, 'USD')}; p95 {spent(decision.latency_p95_ms, 'ms')}"
    )
    if report.is_candidate:
        # A first release has nobody to be compared with on live traffic.
        then = "promote" if decision.is_first_release else "canary start"
        out.print(f"{escape(report.bundle)} is the candidate of {report.environment}: `touchstone {then}`")
    if report.mlflow_compare_url:
        out.print(f"MLflow: {report.mlflow_compare_url}")
    out.print(f"[dim]{report.gate_key}; runs {', '.join(report.run_keys)}[/dim]")


def _table(report: GateReport) -> Any:
    """All metrics over all cases, and the segments that stand in the way."""
    from rich.table import Table

    from tasks.announce_gate import needed

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("comparison", "champion", "candidate", "at worst", "margin", "n", "verdict", "needs"):
        words = name in {"comparison", "verdict", "needs"}
        table.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for row in _shown(report):
        style = "red" if row.verdict == "inferior" else "magenta" if row.stands_in_the_way else ""
        verdict = row.verdict.replace("_", " ")
        table.add_row(
            row.name,
            "–" if row.champion is None else f"{row.champion:.3f}",
            "–" if row.candidate is None else f"{row.candidate:.3f}",
            f"{row.bound:+.3f}",
            "–" if row.margin is None else f"{row.margin:g}",
            f"{row.n}/{row.of}",
            f"[{style}]{verdict}[/]" if style else verdict,
            needed(row) if report.decision.verdict == "unmeasurable" else "",
        )
    return table


def _shown(report: GateReport) -> list[Comparison]:
    from touchstone.gate_records import WHOLE

    return [row for row in report.decision.comparisons if row.segment == WHOLE or row.stands_in_the_way]
