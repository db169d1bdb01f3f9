"""A release line in a real ledger, moved by the steps themselves: what tests of the gateway and of the app share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tasks.ledger import Ledger
from tasks.releases import append_release, read_release
from touchstone import release_steps as steps
from touchstone.bundle import Bundle
from touchstone.definition import Definition
from touchstone.ledger import EventKind, LedgerEvent, gate_subject
from touchstone.prompts import Prompt
from touchstone.release import Deployment
from touchstone.release_policy import ApprovalPolicy, CanaryPolicy, ReleasePolicy

POLICY = ReleasePolicy(canary=CanaryPolicy(shares=(0.25, 0.5)), approval=ApprovalPolicy(required=0))


def prompt_definition(name: str, version: str = "1.0.0", **fields: Any) -> Definition:
    """A bundle with a prompt only; another version is another content."""
    bundle = Bundle.model_validate(
        {"name": name, "model": "openai/extractive-2026-01-15", "prompt": f"support@{version}"} | fields
    )
    return Definition(bundle=bundle, prompt=Prompt(version=version, template=f"v{version}: {{question}}"))


class ReleaseLine:
    """Promotes and rolls back without gate and canary: those have their own tests."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def candidate(self, definition: Definition, **fields: Any) -> None:
        deployment = Deployment(
            definition=definition,
            fingerprint=definition.fingerprint,
            gate_key="gate-1",
            dataset="support",
            policy=POLICY,
            **fields,
        )
        self._step(EventKind.RELEASE_CANDIDATE, lambda state: steps.candidate(state, deployment, "ann", "passed"))

    def promote(self, definition: Definition, **fields: Any) -> None:
        """The definition serves all traffic."""
        self.candidate(definition, **fields)
        if read_release(self.ledger).champion is not None:
            self._step(EventKind.CANARY_STARTED, lambda state: steps.start_canary(state, "c-0", "pepper", "ann"))
            self._step(EventKind.CANARY_GRADUATED, lambda state: steps.graduate_canary(state, "not worse"))
        self._step(
            EventKind.RELEASE_PROMOTED, lambda state: steps.promote(state, "ann", "better", now=datetime.now(UTC))
        )

    def canary(self, definition: Definition, **fields: Any) -> None:
        """The definition is on its first share: a quarter."""
        self.candidate(definition, **fields)
        self._step(EventKind.CANARY_STARTED, lambda state: steps.start_canary(state, "c-1", "salt", "ann"))

    def widen(self) -> None:
        self._step(EventKind.CANARY_WIDENED, lambda state: steps.widen_canary(state, "no harm"))

    def hold(self) -> None:
        self._step(EventKind.CANARY_HELD, lambda state: steps.hold_canary(state, "time is over"))

    def roll_back(self) -> None:
        self._step(EventKind.RELEASE_ROLLED_BACK, lambda state: steps.roll_back(state, "ann", "worse"))

    def roll_back_canary(self) -> None:
        self._step(EventKind.RELEASE_ROLLED_BACK, lambda state: steps.roll_back_canary(state, "touchstone", "harm"))

    def check_parity(self, definition: Definition, verdict: str = "pass") -> LedgerEvent:
        """As the gate records that a fall-back was measured against the champion of now."""
        champion = read_release(self.ledger).champion
        payload = {
            "gate_key": "gate-2",
            "bundle": definition.bundle.name,
            "fingerprint": definition.fingerprint,
            "against": champion.deployment.fingerprint if champion else None,
            "verdict": verdict,
            "role": "fallback",
            "definition": definition.model_dump(mode="json"),
        }
        return self.ledger.append(EventKind.GATE_DECIDED, gate_subject(definition.bundle.name), payload)

    def _step(self, kind: EventKind, step: Any) -> None:
        state = read_release(self.ledger)
        append_release(self.ledger, state, kind, step(state))
