"""What the vendor says of itself, compared with what it said before: a signal at once, without statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Literal

from touchstone.bundle import Endpoint, Price
from touchstone.probe_records import ProbeRun, Signal, VendorFacts

RETIRES_SOON_DAYS = 30


def known_facts(facts: Sequence[VendorFacts]) -> VendorFacts:
    """Of several runs: every name that was seen, and what was listed at the last."""
    models = {name for one in facts for name in one.served_models}
    prints = {name for one in facts for name in one.fingerprints}
    last = facts[-1]
    return last.model_copy(update={"served_models": tuple(sorted(models)), "fingerprints": tuple(sorted(prints))})


def find_signals(
    run: ProbeRun, before: VendorFacts | None, standing: Sequence[Signal], endpoint: Endpoint, today: date
) -> tuple[Signal, ...]:
    """Everything that is not as it was. `before` None: this is the first run; `standing`: the last run's signals."""
    return tuple(
        signal
        for found in (
            _refusal(run, standing),
            _models(run, before, standing, endpoint),
            _fingerprints(run, before, standing),
            _price(run.facts.price, before),
            _retirement(run.facts.retires, before, today),
        )
        for signal in found
    )


def _refusal(run: ProbeRun, standing: Sequence[Signal]) -> Iterator[Signal]:
    if run.refused and not run.tokens:
        yield Signal(what="refused", level="detected", value="404", reason=f"the model is gone: {run.refused}")
    elif not run.tokens:
        yield from _still("refused", standing)


def _models(
    run: ProbeRun, before: VendorFacts | None, standing: Sequence[Signal], endpoint: Endpoint
) -> Iterator[Signal]:
    """A pinned model must answer under its own name; another one is compared with what answered before."""
    served = set(run.facts.served_models)
    if not served:  # nobody answered: what was said last stands
        yield from _still("pin", standing)
        yield from _still("served_model", standing)
    elif not endpoint.allow_unpinned:
        for name in sorted(name for name in served if _bare(name) != _bare(endpoint.model)):
            yield _moved("pin", name, f"asked {endpoint.model}, answered by {name}: the pin does not hold", "detected")
    elif before and before.served_models:
        for name in sorted(served - set(before.served_models)):
            reason = f"the vendor now answers as {name} (before: {', '.join(before.served_models)})"
            yield _moved("served_model", name, reason, "detected")


def _fingerprints(run: ProbeRun, before: VendorFacts | None, standing: Sequence[Signal]) -> Iterator[Signal]:
    now = set(run.facts.fingerprints)
    if not now:
        yield from _still("fingerprint", standing)
    elif before and before.fingerprints:
        for name in sorted(now - set(before.fingerprints)):
            known = ", ".join(before.fingerprints)
            yield _moved("fingerprint", name, f"new system fingerprint {name} (before: {known})")


def _price(now: Price | None, before: VendorFacts | None) -> Iterator[Signal]:
    if before is not None and now != before.price:
        yield _moved("price", _usd(now), f"the price is {_usd(now)} (before: {_usd(before.price)})")


def _retirement(retires: str | None, before: VendorFacts | None, today: date) -> Iterator[Signal]:
    """Soon, past, or another date than before."""
    if retires is None:
        return
    days = (date.fromisoformat(retires) - today).days
    if days < 0:
        yield _moved("retirement", f"{retires} past", f"the model was to be retired on {retires}; pin another one")
    elif days <= RETIRES_SOON_DAYS:
        yield _moved("retirement", f"{retires} soon", f"the model retires on {retires}; pin another one before")
    elif before is not None and before.retires != retires:
        known = before.retires or "none was listed"
        yield _moved("retirement", retires, f"the model now retires on {retires} (before: {known})")


def _still(what: str, standing: Sequence[Signal]) -> Iterator[Signal]:
    yield from (signal for signal in standing if signal.what == what)


def _moved(
    what: Literal["pin", "served_model", "fingerprint", "price", "retirement"],
    value: str,
    reason: str,
    level: Literal["flagged", "detected"] = "flagged",
) -> Signal:
    return Signal(what=what, level=level, value=value, reason=reason)


def _usd(price: Price | None) -> str:
    if price is None:
        return "unknown"
    return f"{price.input_per_million:g} / {price.output_per_million:g} USD per million tokens"


def _bare(model: str) -> str:
    return model.rsplit("/", 1)[-1].casefold()
