"""What CI reads of a gate: a JUnit file, GitHub annotations, and how the changed answers differ, word by word."""

from __future__ import annotations

import difflib
import html
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.output import err
from touchstone.gate_records import GateReport
from touchstone.pii import scrub
from touchstone.results import CaseResult

_MOST_DIFFS = 15
_MOST_ANNOTATIONS = 10
_MOST_WORDS = 120

Answers = Mapping[str, CaseResult]  # by case, of the first trial


def write_junit(path: Path, report: GateReport) -> None:
    """One test case for the verdict, each comparison, each hard check, and each case that got worse."""
    decision = report.decision
    suite = ET.Element("testsuite", name=report.gate_key)
    _case(suite, "touchstone.gate", report.headline, decision.verdict, decision.reason)
    for row in decision.comparisons:
        verdict = {"inferior": "fail", "undecided": "unmeasurable", "unmeasurable": "unmeasurable"}.get(row.verdict)
        _case(suite, "touchstone.gate.comparison", row.name, verdict or "pass", row.reason)
    for check in decision.checks:
        detail = "\n".join([check.detail, *check.cases])
        _case(suite, "touchstone.gate.check", check.name, check.verdict, check.detail, detail)
    for change in decision.regressions:
        said = f"champion: {change.champion_answer}\ncandidate: {change.candidate_answer}"
        moved = f"{change.metric} {change.champion:.3g} -> {change.candidate:.3g}"
        # A case that got worse is to be looked at; a gate that passes tolerates it, and so must CI.
        verdict = "fail" if decision.verdict == "fail" else "pass"
        _case(suite, f"touchstone.gate.case.{change.segment}", change.case_id, verdict, moved, said)
    found = list(suite.iter("testcase"))
    suite.set("tests", str(len(found)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in found)))
    suite.set("errors", str(sum(case.find("error") is not None for case in found)))
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def annotate_github(report: GateReport, candidate: Answers, champion: Answers) -> None:
    """Annotations on stderr, and the page with the changed answers in the step summary where GitHub gives one."""
    from tasks.announce_gate import markdown

    decision = report.decision
    level = "notice" if decision.verdict == "pass" else "error"
    _annotate(level, f"touchstone gate {report.headline}", decision.reason)
    if decision.verdict != "pass":
        for change in decision.regressions[:_MOST_ANNOTATIONS]:
            moved = f"{change.metric} {change.champion:.3g} -> {change.candidate:.3g}"
            _annotate("warning", f"worse: {change.case_id}", f"{moved}. {change.candidate_answer}")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"{markdown(report)}\n\n{behaviour_diff(report, candidate, champion)}\n")


def behaviour_diff(report: GateReport, candidate: Answers, champion: Answers) -> str:
    """The answers that changed, as Markdown: those that got worse first, then better, then merely other."""
    both = [case for case in candidate if case in champion]
    changed = [case for case in both if _text(candidate[case]) != _text(champion[case])]
    if not both:
        return ""
    decision = report.decision
    moved = [change.case_id for change in (*decision.regressions, *decision.improvements)]
    rank = {case: place for place, case in enumerate(dict.fromkeys(moved))}
    labels = {change.case_id: "worse" for change in decision.regressions}
    labels |= {change.case_id: "better" for change in decision.improvements if change.case_id not in labels}
    ordered = sorted(changed, key=lambda case: rank.get(case, len(rank)))
    lines = [f"### {len(changed)} of {len(both)} answers changed"]
    for case in ordered[:_MOST_DIFFS]:
        old, new = _text(champion[case]), _text(candidate[case])
        lines += [
            "",
            f"<details{' open' if labels.get(case) == 'worse' else ''}><summary><code>{html.escape(case)}</code> "
            f"{labels.get(case, 'other words')}: {html.escape(candidate[case].question[:200])}</summary>",
            "",
            f"<p>{word_diff(old, new)}</p>",
            "</details>",
        ]
    if len(changed) > _MOST_DIFFS:
        lines += ["", f"{len(changed) - _MOST_DIFFS} more; MLflow's comparison page shows them all."]
    return "\n".join(lines)


def word_diff(old: str, new: str) -> str:
    """HTML with what was taken out in <del> and what came in in <ins>; everything of a model is escaped."""
    before, after = old.split()[:_MOST_WORDS], new.split()[:_MOST_WORDS]
    parts = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, i, j, k, l in matcher.get_opcodes():  # noqa: E741 - as difflib names them
        if kind == "equal":
            parts.append(html.escape(" ".join(before[i:j])))
            continue
        if i < j:
            parts.append(f"<del>{html.escape(' '.join(before[i:j]))}</del>")
        if k < l:
            parts.append(f"<ins>{html.escape(' '.join(after[k:l]))}</ins>")
    return " ".join(parts)


def first_trials(results: Iterator[CaseResult] | Any) -> Answers:
    """Each case's first answer."""
    return {result.case_id: result for result in results if result.trial == 0 and result.answer}


def _text(result: CaseResult) -> str:
    return scrub(result.answer.text if result.answer else "")


def _annotate(level: str, title: str, message: str) -> None:
    """A workflow command: one line, with what would end it escaped."""
    title = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    err.print(f"::{level} title={title}::{_escaped(message)}", markup=False)


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _case(suite: ET.Element, group: str, name: str, verdict: str, message: str, text: str = "") -> None:
    case = ET.SubElement(suite, "testcase", name=name, classname=group)
    if verdict == "fail":
        ET.SubElement(case, "failure", message=_legal(message), type=verdict).text = _legal(text or message)
    elif verdict == "unmeasurable":
        ET.SubElement(case, "error", message=_legal(message), type=verdict).text = _legal(text or message)
    elif text:
        ET.SubElement(case, "system-out").text = _legal(text)


def _legal(text: str) -> str:
    """Without control characters, which XML cannot hold and a model may say."""
    return "".join(char for char in text if char >= " " or char in "\n\t")
