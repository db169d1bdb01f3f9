"""What tests of canaries share: an environment with a champion and a candidate, and traces as an app sends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import Any

from tasks.ledger import Ledger
from tasks.loading import load_prompt, load_settings
from tasks.releases import append_release, read_release
from tasks.tracking_address import connected
from tasks.tracking_spans import send_traces
from tasks.tracking_traffic import LiveAnswer, build_trace
from tasks.traffic import experiment_name
from tests.conftest import Project
from touchstone import release_steps as steps
from touchstone.bundle import Bundle
from touchstone.definition import Definition
from touchstone.ledger import EventKind
from touchstone.prompts import Prompt
from touchstone.release import Deployment, ReleaseState
from touchstone.release_policy import ReleasePolicy
from touchstone.results import Failure, FailureKind, Retrieval, RetrievedChunk

Sent = tuple[Any, list[Any]]  # a trace and its spans
GOOD, BAD = "The refund takes five days. GOOD", "I have no idea."
RULE = {"name": "good", "kind": "regex", "pattern": "GOOD"}
FAST = {"margin": 0.2, "scorers": [RULE], "minimum_requests": 10, "minimum_minutes": 1, "baseline_block": 2}


class LiveTraffic:
    """A project with a champion and a candidate, and the requests that its production answered."""

    def __init__(self, project: Project, api_base: str, **canary_policy: Any) -> None:
        self.project, self.settings = project, load_settings()
        self.policy = ReleasePolicy.model_validate({"canary": FAST | canary_policy})
        self.champion, self.candidate = (self._deployment(name, api_base) for name in ("old", "new"))
        self._sent = 0
        with connected(self.settings) as client:
            name = experiment_name(self.settings.environment)
            self.experiment_id = client.create_experiment(name, str(project.state / "mlartifacts"))
        with self.ledger() as ledger:
            first = read_release(ledger)
            payload = {"deployment": self.champion.model_dump(mode="json"), "by": "ada", "reason": "first"}
            append_release(ledger, first, EventKind.RELEASE_PROMOTED, payload)
            state = read_release(ledger)
            payload = steps.candidate(state, self.candidate, "gate", "passed")
            append_release(ledger, state, EventKind.RELEASE_CANDIDATE, payload)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        with closing(Ledger(self.settings.ledger, self.settings.environment)) as ledger:
            yield ledger

    @property
    def state(self) -> ReleaseState:
        with self.ledger() as ledger:
            return read_release(ledger)

    def begin(self) -> datetime:
        """Start the canary without asking the vendor; when it got its share."""
        with self.ledger() as ledger:
            state = read_release(ledger)
            payload = steps.start_canary(state, "new-canary", "salt", "ada")
            append_release(ledger, state, EventKind.CANARY_STARTED, payload)
        return self.share_since

    @property
    def share_since(self) -> datetime:
        canary = self.state.canary
        assert canary is not None
        return datetime.fromisoformat(canary.share_since)

    def serve(
        self,
        since: datetime,
        count: int,
        *,
        minutes: float = 2,
        canary: str = GOOD,
        champion: str = GOOD,
        ratio: int = 2,
        failing: bool = False,
        **tags: Any,
    ) -> datetime:
        """`count` canary requests spread over `minutes`, `ratio` champion requests beside each; when they end."""
        traces = []
        for number in range(count * (1 + ratio)):
            at = since + timedelta(minutes=minutes) * (number + 0.5) / (count * (1 + ratio))
            if number % (1 + ratio):
                traces.append(self.trace(at, "champion", champion, **tags))
            else:
                traces.append(self.trace(at, "canary", canary, state="ERROR" if failing else "OK", **tags))
        self.send(traces)
        return since + timedelta(minutes=minutes)

    def trace(
        self, at: datetime, sent_to: str, answer: str, *, state: str = "OK", **tags: Any
    ) -> tuple[Any, list[Any]]:
        """One request, as the support app sends it; then a tag is changed, or left away where it is None."""
        from mlflow.entities import TraceState

        failure = Failure(kind=FailureKind.VENDOR_ERROR, reason="the model is gone") if state == "ERROR" else None
        self._sent += 1
        deployment = self.candidate if sent_to == "canary" else self.champion
        question = f"How long does refund {self._sent} take?"
        live = LiveAnswer(
            request_id=f"request-{self._sent}",
            environment=self.settings.environment,
            bundle=deployment.name,
            fingerprint=deployment.fingerprint,
            arm=sent_to,
            question=question,
            started_at=at.timestamp(),
            seconds=0.5,
            answer=answer or None,
            failure=failure,
            retrieval=_retrieval(question),
            canary_id="new-canary",
        )
        info, spans = build_trace(self.experiment_id, live)
        for name, value in tags.items():
            info.tags.pop(f"touchstone.{name}", None)
            if value is not None:
                info.tags[f"touchstone.{name}"] = str(value)
        info.state = TraceState(state)
        return info, [] if state == "IN_PROGRESS" else spans

    def send(self, traces: list[tuple[Any, list[Any]]]) -> None:
        """Into MLflow's store, in one transaction: an app's own calls take 50 ms each."""
        from mlflow.tracing.client import TracingClient

        with connected(self.settings) as client:
            send_traces(TracingClient(client.tracking_uri).store, self.experiment_id, traces)

    def assess(self, name: str, value: Any, trace_id: str) -> None:
        """A user's word on an answer, as an app logs it."""
        from mlflow.entities import AssessmentSource, Feedback
        from mlflow.tracing.client import TracingClient

        with connected(self.settings) as client:
            feedback = Feedback(name=name, value=value, source=AssessmentSource("HUMAN", "user"))
            TracingClient(client.tracking_uri).log_assessment(trace_id, feedback)

    def kinds(self) -> list[str]:
        with self.ledger() as ledger:
            return [event.kind.value for event in ledger.events()]

    def _deployment(self, name: str, api_base: str) -> Deployment:
        bundle = Bundle.model_validate(
            {
                "name": name,
                "model": "openai/extractive-2026-01-15",
                "api_base": api_base,
                "prompt": {"user": f"{name}: {{question}}"},
                "judge": {
                    "model": "openai/judge-2026-01-15",
                    "api_base": api_base,
                    "price": {"input_per_million": 1, "output_per_million": 2},
                },
            }
        )
        prompt = Prompt(version="1.0.0", template=f"{name}: {{question}}")
        judge_prompt = load_prompt(self.project.root, "judge@1.0.0", {"payload"}, {"schema"})
        definition = Definition(bundle=bundle, prompt=prompt, judge_prompt=judge_prompt)
        return Deployment(
            definition=definition,
            fingerprint=definition.fingerprint,
            gate_key=f"gate-{name}",
            dataset="support",
            policy=self.policy,
        )


def _retrieval(question: str) -> Retrieval:
    chunk = RetrievedChunk(
        chunk_id="refunds#0", document_id="refunds", text="The refund takes five days. GOOD", rank=1, score=0.9
    )
    return Retrieval(
        query=question, chunks=(chunk,), latency_ms=3, embedding_model="hashing", index_version="t@1", search="semantic"
    )
