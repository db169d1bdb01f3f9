"""What CI reads: a JUnit file and GitHub annotations."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from cli.output import err
from touchstone.drift import MetricSpec
from touchstone.report import EvalReport
from touchstone.results import CaseResult


def write_junit(path: Path, report: EvalReport, results: Iterable[CaseResult], specs: Sequence[MetricSpec]) -> None:
    """One test case per golden case: failed checks are failures, typed failures are errors; the verdict comes first."""
    headline = next((spec.name for spec in specs if spec.kind == "pass_fail"), None)
    suite = ET.Element("testsuite", name=report.run_key)
    verdict = ET.SubElement(suite, "testcase", name="verdict", classname="touchstone", time=f"{report.wall_s:.3f}")
    if report.verdict == "unmeasurable":
        ET.SubElement(verdict, "error", message=report.reason, type=report.verdict)
    elif report.verdict == "drifted" and report.direction == "worse":
        ET.SubElement(verdict, "failure", message=report.reason, type=report.verdict)
    for result in results:
        _add_case(suite, result, headline)
    found = list(suite.iter("testcase"))
    suite.set("tests", str(len(found)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in found)))
    suite.set("errors", str(sum(case.find("error") is not None for case in found)))
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def annotate_github(report: EvalReport) -> None:
    """An annotation on the workflow run, and the verdict in its summary; nothing outside GitHub Actions."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    from tasks.announce import headline, markdown

    level = {"stable": "notice", "flagged": "warning"}.get(report.verdict, "error")
    if report.verdict == "drifted" and report.direction != "worse":
        level = "warning"
    err.print(f"::{level} title=touchstone {headline(report)}::{report.reason}", markup=False)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(markdown(report) + "\n")


def _add_case(suite: ET.Element, result: CaseResult, headline: str | None) -> None:
    name = result.case_id if result.trial == 0 else f"{result.case_id} (trial {result.trial})"
    case = ET.SubElement(suite, "testcase", name=name, classname=result.segment)
    for failure in result.failures[:1]:
        ET.SubElement(case, "error", message=failure.reason, type=failure.kind.value)
        return
    score = result.scores.get(headline) if headline else None
    if score is not None and score.value == 0:
        answer = result.answer.text if result.answer else ""
        ET.SubElement(case, "failure", message=score.explanation or f"{headline} failed").text = answer
