"""One look at a bundle's vendor: one-token answers through the vendor adapter, what is listed, and the ledger."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tasks.ledger import Ledger
from tasks.loading import load_bundle, load_golden_set, read_jsonl
from tasks.vendor import Vendor
from tasks.vendor_endpoint import check_endpoint, price_of
from tasks.vendor_errors import RequestRefused
from tasks.vendor_library import litellm_module
from tasks.vendor_loop import wait_for
from touchstone.drift import DriftPolicy
from touchstone.errors import AnswerRefused, BadInput, CaseFailure, InvalidAnswer, LedgerConflict
from touchstone.ledger import EventKind, LedgerEvent, probe_subject
from touchstone.probe_records import (
    FEWEST_PROBES,
    Probe,
    ProbeReport,
    ProbeRun,
    ProbeState,
    VendorFacts,
    probe_fingerprint,
)
from touchstone.probes import Probed, decide_probe
from touchstone.prompts import GenerationParameters
from touchstone.results import Call
from touchstone.settings import Settings

_FROM_QUESTIONS = 32
_ONE_TOKEN = GenerationParameters(temperature=0.0, max_tokens=1)
_DEADLINE_S, _ATTEMPTS, _AT_ONCE = 30.0, 2, 8
_TRIES = 5  # to record, while others record first


@dataclass(frozen=True)
class ProbePlan:
    """What is probed, and by what."""

    about: Probed
    probes: tuple[Probe, ...]

    @property
    def subject(self) -> str:
        return probe_subject(self.about.bundle, self.about.fingerprint)


def plan_probe(settings: Settings, bundle: str, dataset: str) -> ProbePlan:
    """Read the bundle and the probes; nothing is called.

    The probes are <dataset>/probes.jsonl, or without one the first questions of its golden set, to be answered in a
    word. Raises BadInput, also for a bundle that is the user's own app: what stands behind it is not ours to probe.
    """
    found = load_bundle(settings.root, bundle)
    if found.model is None:
        raise BadInput(f"bundle {bundle}: field target: an app of your own has no vendor that could be probed")
    check_endpoint(found.endpoint)
    golden = load_golden_set(settings.root, dataset)
    file = golden.path / "probes.jsonl"
    if file.is_file():
        probes = _read_probes(file)
    else:
        probes = tuple(
            Probe(id=case.id, system="Answer with one word.", user=case.question)
            for case in golden.cases[:_FROM_QUESTIONS]
        )
    if len(probes) < FEWEST_PROBES:
        raise BadInput(f"{file}: {len(probes)} probes; at least {FEWEST_PROBES} are needed to tell a change from luck")
    about = Probed(found.name, found.endpoint, golden.name, probe_fingerprint(found.endpoint.model, probes))
    return ProbePlan(about, probes)


def ask(settings: Settings, plan: ProbePlan) -> ProbeRun:
    """Send every probe once, for one token each. What fails is counted; nothing is raised for it."""
    at, started = datetime.now(UTC), time.monotonic()
    found = wait_for(_ask_all(settings, plan))
    calls = found.calls
    costs = [call.cost_usd for call in calls if call.cost_usd is not None]
    return ProbeRun(
        run_key=f"probe-{at:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        at=at.isoformat(timespec="seconds"),
        tokens=found.tokens,
        failures=dict(found.failures),
        refused=found.refused,
        example=found.example,
        facts=VendorFacts(
            served_models=tuple(sorted({call.served_model for call in calls if call.served_model})),
            fingerprints=tuple(sorted({call.fingerprint for call in calls if call.fingerprint})),
            price=price_of(plan.about.endpoint),
            retires=listed_retirement(plan.about.endpoint.model),
        ),
        calls=len(calls),
        cost_usd=sum(costs) if len(costs) == len(calls) else None,
        wall_s=round(time.monotonic() - started, 3),
    )


def decide_and_record(
    settings: Settings, plan: ProbePlan, run: ProbeRun, policy: DriftPolicy, *, announce: bool, relearn: bool = False
) -> ProbeReport:
    """Decide on what the run before left, and append the decision with what the next one needs.

    With `relearn` what was left is forgotten: this run is the first of a new calibration.
    """
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        for attempt in range(1, _TRIES + 1):
            last = ledger.latest(EventKind.PROBE_CHECKED, plan.subject)
            state = None if relearn else _left_by(ledger, last)
            report, after = decide_probe(plan.about, run, state, policy, announce=announce)
            try:
                ledger.append(
                    EventKind.PROBE_CHECKED,
                    plan.subject,
                    _payload(report),
                    content=after.model_dump_json().encode(),
                    after=last.sequence if last else 0,
                )
            except LedgerConflict:
                if attempt == _TRIES:
                    raise
            else:
                return report
    raise AssertionError("unreachable: the last attempt returns or raises")


def listed_retirement(model: str) -> str | None:
    """ISO date at which LiteLLM's list says that the vendor retires the model."""
    listed = litellm_module().model_cost
    entry = listed.get(model) or listed.get(model.partition("/")[2]) or {}
    try:
        return datetime.fromisoformat(str(entry.get("deprecation_date"))).date().isoformat()
    except ValueError:
        return None


@dataclass
class _Answers:
    tokens: dict[str, str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    refused: str = ""
    example: str = ""
    calls: list[Call] = field(default_factory=list)


async def _ask_all(settings: Settings, plan: ProbePlan) -> _Answers:
    vendor = Vendor(
        concurrency=min(settings.concurrency, _AT_ONCE),
        deadline_s=min(settings.deadline_s, _DEADLINE_S),
        attempts=min(settings.attempts, _ATTEMPTS),
    )
    found = _Answers()

    async def one(probe: Probe) -> None:
        try:
            text, call = await vendor.complete(plan.about.endpoint, _messages(probe), _ONE_TOKEN, role="probe")
            found.calls.append(call)
            found.tokens[probe.id] = first_token(text, call)
        except CaseFailure as error:
            found.failures[error.kind.value] += 1
            if not found.example or found.example.startswith("circuit open"):  # which only says that others failed
                found.example = str(error)
            if isinstance(error, RequestRefused) and "(404)" in str(error):
                found.refused = str(error)

    await asyncio.gather(*(one(probe) for probe in plan.probes))
    return found


def first_token(text: str | None, call: Call) -> str:
    """The answer, which one token cut short as it should. Raises AnswerRefused or InvalidAnswer."""
    if call.finish_reason == "content_filter":
        raise AnswerRefused("the vendor's content filter withheld the answer")
    if call.finish_reason not in {"length", "stop"}:
        raise InvalidAnswer(f"finish_reason is {call.finish_reason!r}, not 'length' or 'stop'")
    words = (text or "").split()
    if not words:
        raise InvalidAnswer("the one token is empty: a model that thinks before it answers cannot be probed so")
    return words[0]


def _messages(probe: Probe) -> list[dict[str, str]]:
    system = [{"role": "system", "content": probe.system}] if probe.system else []
    return [*system, {"role": "user", "content": probe.user}]


def _read_probes(file: Path) -> tuple[Probe, ...]:
    lines: dict[str, int] = {}
    found: list[Probe] = []
    for line, probe in read_jsonl(file, Probe):
        if probe.id in lines:
            raise BadInput(f"{file}:{line}: field id: {probe.id!r} is the id of line {lines[probe.id]} too")
        lines[probe.id] = line
        found.append(probe)
    return tuple(found)


def _left_by(ledger: Ledger, last: LedgerEvent | None) -> ProbeState | None:
    if last is None:
        return None
    return ProbeState.model_validate_json(ledger.content(last))


def _payload(report: ProbeReport) -> dict[str, object]:
    """What a reader of the ledger wants to know; the state lies beside it."""
    kept = {
        *("bundle", "model", "probes", "run_key", "level", "transition", "reason", "n_probes", "n_answered"),
        *("n_calibration", "usual_share", "usual_share_before", "e_value", "change_point", "calls", "cost_usd"),
        "facts",
    }
    return report.model_dump(mode="json", include=kept)
