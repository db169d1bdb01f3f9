"""touchstone labels sample | export | import | calibrate | status"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tasks.judge_calibration import JudgeReport
    from tasks.label_import import Imported
    from tasks.labelling import QueuedWeek
    from touchstone.calibration import Share

app = typer.Typer(help="What people say of live answers, and whether the judge agrees.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Dataset = Annotated[str, typer.Option(help="A name in datasets/, or a folder with cases.jsonl.")]
WeekName = Annotated[str | None, typer.Option("--week", help="ISO week, as 2026-W48. Default: the last that is over.")]


@app.command()
def sample(dataset: Dataset = "support", week: WeekName = None, as_json: AsJson = False) -> None:
    """Queue a stratified sample of a week's live answers in MLflow. A week is queued once."""
    from cli.output import print_json
    from tasks.labelling import sample_week
    from tasks.loading import load_golden_set, load_settings
    from touchstone.label_sampling import Week

    settings = load_settings()
    chosen = Week.parse(week) if week else Week.before(datetime.now(UTC))
    queued = sample_week(settings, load_golden_set(settings.root, dataset), chosen)
    if as_json:
        print_json(asdict(queued))
    else:
        _print_queued(queued)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="A new .csv or .jsonl file.")],
    dataset: Dataset = "support",
    week: WeekName = None,
    as_json: AsJson = False,
) -> None:
    """Write a week's queue as a file to fill in: a row per answer and question. Judges' scores are not in it."""
    from cli.output import out as terminal
    from cli.output import print_json
    from tasks.labelling import export_week
    from tasks.loading import load_golden_set, load_settings
    from touchstone.label_sampling import Week

    settings = load_settings()
    chosen = Week.parse(week) if week else Week.before(datetime.now(UTC))
    rows = export_week(settings, load_golden_set(settings.root, dataset), chosen, out)
    if as_json:
        print_json({"week": chosen.name, "rows": rows, "file": str(out)})
        return
    terminal.print(
        f"{rows} rows in {out}: fill in `value` and `by`, then `touchstone labels import {out}`", markup=False
    )


@app.command("import")
def import_(
    file: Annotated[Path | None, typer.Argument(help="A filled-in .csv or .jsonl file.")] = None,
    from_mlflow: Annotated[bool, typer.Option("--from-mlflow", help="What people said on MLflow's pages.")] = False,
    dataset: Dataset = "support",
    week: Annotated[str | None, typer.Option(help="With --from-mlflow: of this week's queue only.")] = None,
    by: Annotated[str, typer.Option(help="Who filled in the rows that name nobody.")] = "",
    mlflow: Annotated[bool, typer.Option(help="Without it traces are not looked up, and not written to.")] = True,
    as_json: AsJson = False,
) -> None:
    """Take labels into labels.jsonl of the golden set. One bad row, and nothing is written."""
    from cli.output import print_json
    from tasks.label_import import import_file, import_from_mlflow
    from tasks.loading import load_golden_set, load_settings
    from touchstone.errors import BadInput
    from touchstone.label_sampling import Week

    if (file is None) != from_mlflow:
        raise BadInput("give either a FILE, or --from-mlflow")
    settings = load_settings()
    golden = load_golden_set(settings.root, dataset)
    if file is None:
        imported = import_from_mlflow(settings, golden, Week.parse(week) if week else None)
    else:
        imported = import_file(settings, golden, file, by=by, use_mlflow=mlflow)
    if as_json:
        print_json(asdict(imported))
    else:
        _print_imported(imported)


@app.command()
def calibrate(
    dataset: Dataset = "support",
    metric: Annotated[str | None, typer.Option(help="This label only. Default: every one that was asked for.")] = None,
    bundle: Annotated[str, typer.Option(help="Whose judge: a name in bundles/, or a path.")] = "support",
    policy: Annotated[
        str | None, typer.Option(help="Whose scorers. Default: policy-judged.yaml, if there is one.")
    ] = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Do not use scores that lie on the traces.")] = False,
    as_json: AsJson = False,
) -> None:
    """Does the judge agree with people? Scores the labelled answers, and compares.

    Exit 0 calibrated, 1 not calibrated, 2 bad input, 3 too few labels or nothing to tell.
    """
    from cli.output import exit_with, print_json
    from tasks.judge_calibration import calibrate_judge
    from tasks.loading import load_settings

    reports = calibrate_judge(load_settings(), dataset, metric=metric, bundle=bundle, policy=policy, rescore=rescore)
    if as_json:
        print_json({"dataset": dataset, "bundle": bundle, "metrics": [asdict(report) for report in reports]})
    else:
        for report in reports:
            _print_calibration(report)
    verdicts = {report.calibration.verdict for report in reports}
    exit_with(1 if "not calibrated" in verdicts else 0 if verdicts == {"calibrated"} else 3)


@app.command()
def status(dataset: Dataset = "support", as_json: AsJson = False) -> None:
    """How many labels there are, what is missing to calibrate, and how far people are with each week's queue."""
    from cli.output import out, print_json
    from tasks.label_status import label_status
    from tasks.loading import load_golden_set, load_settings

    settings = load_settings()
    found = label_status(settings, load_golden_set(settings.root, dataset))
    if as_json:
        print_json(asdict(found))
        return
    for metric, standing in found.metrics.items():
        people = f"{standing.labels} labels by {standing.people} people"
        out.print(f"{metric}: {standing.answers} of {found.wanted} answers labelled ({people})", markup=False)
    for queue in found.queues:
        done = f"{queue.complete} done, {queue.declined} declined"
        out.print(f"{queue.name}: {queue.pending} to do, {done}", markup=False)
    if not found.queues:
        out.print(found.no_queues or "no queue yet; `touchstone labels sample` makes one", markup=False)


def _print_queued(queued: QueuedWeek) -> None:
    from rich.table import Table

    from cli.output import log, out
    from tasks.announce_labels import in_words

    out.print(in_words(queued), markup=False)
    if queued.counts:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("stratum", "queued", "of"):
            table.add_column(name, justify="left" if name == "stratum" else "right")
        for name, (chosen, size) in queued.counts.items():
            table.add_row(name, str(chosen), str(size))
        out.print(table, markup=False)
    if queued.left_out:
        out.print("left out: " + ", ".join(f"{count} {why}" for why, count in queued.left_out.items()), markup=False)
    if queued.n:
        out.print(f"MLflow: {queued.url or 'page Review of the experiment of live traffic'}", markup=False)
    for warning in queued.warnings:
        log.warning("%s", warning)


def _print_imported(imported: Imported) -> None:
    from cli.output import log, out

    by_metric = ", ".join(f"{metric} {count}" for metric, count in imported.by_metric.items())
    empty = f", {imported.empty} rows are not filled in" if imported.empty else ""
    changed = f"{imported.added} new, {imported.replaced} replaced, {imported.unchanged} as they were{empty}"
    out.print(f"{changed}; {imported.total} labels of {imported.dataset} ({by_metric or 'none'})", markup=False)
    for why, count in imported.left_out.items():
        log.warning("left out: %d %s", count, why)
    for warning in imported.warnings:
        log.warning("%s", warning)


def _print_calibration(report: JudgeReport) -> None:
    from rich.markup import escape

    from cli.output import out

    result = report.calibration
    style = {"calibrated": "green", "not calibrated": "red"}.get(result.verdict, "yellow")
    out.print(f"[bold {style}]{result.verdict.upper()}[/]  {result.metric} (judge: {result.judge_metric})")
    out.print(f"  {escape(result.reason)}")
    out.print(f"  agreement {_share(result.agreement)}")
    out.print(f"  passes what people pass {_share(result.true_pass_rate)}")
    out.print(f"  fails what people fail {_share(result.true_fail_rate)}")
    kappa = "undefined"
    if result.kappa is not None and result.kappa_low is not None:
        kappa = f"{round(result.kappa, 3) + 0.0:.3f}, at least {round(result.kappa_low, 3) + 0.0:.3f}"  # no -0.000
    out.print(f"  kappa {kappa}")
    ties = f", {result.ties} dropped because people tied" if result.ties else ""
    out.print(f"  {result.n} of {result.n_labelled} labelled answers judged{ties}; {_weighting(report)}")
    spent = f"{report.recorded} recorded scores, {report.judged_now} judged now for {report.spent_usd:.4f} USD"
    out.print(f"  [dim]{spent}[/dim]")
    for why, count in report.failures.items():
        out.print(f"  {count} without a score: {escape(why)}")


def _share(share: Share) -> str:
    return "–" if share.value is None else f"{share.value:.3f}, at least {share.low:.3f} (n {share.n})"


def _weighting(report: JudgeReport) -> str:
    result = report.calibration
    if not result.weighted:
        return "unweighted: not every label has a weight"
    return f"weighted to the traffic, worth {result.agreement.effective_n:.0f} labels"
