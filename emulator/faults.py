"""Faults on order: which call fails how, decided by a seed so that every run is the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

from emulator.snapshots import chance
from emulator.wire import Reply

# Parameters of each kind and their defaults; None means that it must be given.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "latency": {"median_ms": 500.0, "sigma": 0.5},
    "rate_limit": {"retry_after_s": 1.0},
    "server_error": {"status": 500},
    "timeout": {},
    "disconnect": {},
    "deprecated": {},
    "malformed_json": {},
    "empty_choices": {},
    "null_content": {},
    "cut": {},
    "length": {},
    "content_filter": {},
    "wrong_model": {"model": None},
    "fingerprint": {"value": "fp_changed"},
    "drip": {"interval_s": 0.05, "chunk_bytes": 8},
    "missing_vector": {},
    "shuffled_vectors": {},
    "ragged_vectors": {},
    "nan_vector": {},
    "zero_vector": {},
}
# Of one stage only the first fault that strikes counts; faults of different stages add up.
STAGES: Mapping[str, frozenset[str]] = {
    "delay": frozenset({"latency"}),
    "refusal": frozenset({"rate_limit", "server_error", "timeout", "disconnect", "deprecated"}),
    "content": frozenset({"empty_choices", "null_content", "cut", "length", "content_filter"}),
    "vectors": frozenset({"missing_vector", "shuffled_vectors", "ragged_vectors", "nan_vector", "zero_vector"}),
    "model": frozenset({"wrong_model"}),
    "fingerprint": frozenset({"fingerprint"}),
    "delivery": frozenset({"malformed_json", "drip"}),
}
_COMMON = {"kind", "share", "models", "times"}


class BadFault(ValueError):
    """A fault list that cannot be used; the message names the entry and the field."""


@dataclass(frozen=True)
class Fault:
    """One kind of trouble: how often, for whom, and its parameters."""

    kind: str
    share: float = 1.0
    models: tuple[str, ...] | None = None
    times: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def strikes(self, seed: int, body: str, attempt: int, names: Sequence[str]) -> bool:
        """Whether this attempt (from 0) at this body fails; a retry is a new draw."""
        if self.models is not None and not set(names) & set(self.models):
            return False
        if self.times is not None and attempt >= self.times:
            return False
        return self.share >= 1.0 or chance(seed, self.kind, body, attempt) < self.share

    def as_json(self) -> dict[str, Any]:
        """The fault as it would be put again."""
        optional = {"models": self.models, "times": self.times}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"kind": self.kind, "share": self.share, **given, **self.parameters}


def struck(faults: Sequence[Fault], seed: int, body: str, attempt: int, names: Sequence[str]) -> dict[str, Fault]:
    """The faults that strike one attempt, by stage."""
    found: dict[str, Fault] = {}
    for stage, kinds in STAGES.items():
        for fault in faults:
            if fault.kind in kinds and fault.strikes(seed, body, attempt, names):
                found[stage] = fault
                break
    return found


def delay_s(fault: Fault, seed: int, body: str, attempt: int) -> float:
    """A lognormal delay with the fault's median, drawn by the seed."""
    draw = min(max(chance(seed, "delay", body, attempt), 1e-9), 1 - 1e-9)
    spread = math.exp(fault.parameters["sigma"] * NormalDist().inv_cdf(draw))
    return fault.parameters["median_ms"] / 1000 * spread


def read_faults(data: object) -> tuple[Fault, ...]:
    """Validate a JSON list of faults; an unknown kind or field is refused by name."""
    if not isinstance(data, list):
        raise BadFault('faults must be a JSON list such as [{"kind": "rate_limit", "share": 0.1}]')
    return tuple(_read(entry, f"faults[{index}]") for index, entry in enumerate(data))


def _read(entry: object, where: str) -> Fault:
    if not isinstance(entry, dict):
        raise BadFault(f"{where} must be an object, not {entry!r:.60}")
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadFault(f"{where}.kind: unknown kind {kind!r}; known: {', '.join(KINDS)}")
    known = KINDS[kind]
    for name in entry:
        if name not in _COMMON and name not in known:
            fields = ", ".join(sorted(_COMMON | set(known)))
            raise BadFault(f"{where}.{name}: unknown field of {kind!r}; known: {fields}")
    parameters = {name: _parameter(entry, name, default, where) for name, default in known.items()}
    share = _number(entry.get("share", 1.0), f"{where}.share", 0, 1)
    times = entry.get("times")
    if times is not None and (not isinstance(times, int) or isinstance(times, bool) or times < 1):
        raise BadFault(f"{where}.times must be a whole number >= 1, not {times!r}")
    return Fault(kind, share, _models(entry.get("models"), where), times, parameters)


def _parameter(entry: Mapping[str, Any], name: str, default: Any, where: str) -> Any:
    value = entry.get(name, default)
    if name in ("model", "value"):
        if not isinstance(value, str) or not value:
            raise BadFault(f"{where}.{name} must be a non-empty string")
        return value
    if name in ("status", "chunk_bytes"):
        lowest, highest = (500, 599) if name == "status" else (1, 1_000_000)
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise BadFault(f"{where}.{name} must be a whole number from {lowest} to {highest}, not {value!r}")
        return value
    return _number(value, f"{where}.{name}", 0, 86_400_000)


def _number(value: object, where: str, lowest: float, highest: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= highest:
        raise BadFault(f"{where} must be a number from {lowest:g} to {highest:g}, not {value!r}")
    return float(value)


def _models(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise BadFault(f"{where}.models must be a list of model names")
    return tuple(value)


def damage(reply: Reply, found: Mapping[str, Fault]) -> Reply:
    """The reply as the content and metadata faults leave it."""
    if content := found.get("content"):
        reply = _damaged_content(reply, content.kind)
    if model := found.get("model"):
        reply = replace(reply, model=model.parameters["model"])
    if fingerprint := found.get("fingerprint"):
        reply = replace(reply, fingerprint=fingerprint.parameters["value"])
    return reply


def _damaged_content(reply: Reply, kind: str) -> Reply:
    if kind == "empty_choices":
        return replace(reply, no_choices=True, completion_tokens=0)
    if kind == "null_content":
        return replace(reply, text=None, logprobs=None, completion_tokens=0)
    if kind == "content_filter":
        return replace(reply, text=None, logprobs=None, completion_tokens=0, finish="content_filter")
    text, rows = reply.text or "", reply.logprobs
    return replace(
        reply,
        text=text[: len(text) // 2],
        # A cut answer was generated, and is billed, whole: that is how a client can tell.
        completion_tokens=reply.completion_tokens if kind == "cut" else reply.completion_tokens // 2,
        logprobs=rows[: len(rows) // 2] if rows is not None else None,
        finish="length" if kind == "length" else "stop",
    )
