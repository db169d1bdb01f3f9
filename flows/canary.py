"""Watch the canary: a look every few minutes, until it has graduated, is held, or is rolled back."""

from __future__ import annotations

from contextlib import closing

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.verdicts import ended
from tasks.announce_canary import create_canary_artifact
from tasks.canaries import Looked, look, looks, start_canary
from tasks.environment import apply_defaults
from tasks.ledger import Ledger
from tasks.loading import load_settings
from tasks.releases import read_release
from touchstone.canary_look import CanaryVerdict
from touchstone.errors import LedgerConflict
from touchstone.settings import Settings

_STATES = {
    CanaryVerdict.WIDEN: "Widened",
    CanaryVerdict.GRADUATE: "Graduated",
    CanaryVerdict.HOLD: "Held",
    CanaryVerdict.ROLLBACK: "Rolled back",
    CanaryVerdict.CONTINUE: "Watching",
    CanaryVerdict.UNMEASURABLE: "Unmeasurable",
}


@flow(name="canary-watch", flow_run_name="canary look")
def canary_watch() -> State:
    """Look at the canary of this environment once: widen, graduate, hold, roll back, or go on watching.

    The flow run completes under the verdict's name; it fails when nothing could be measured, so that failure
    automations hear of it. Automations on what happened listen to touchstone.release.* of the outbox.
    """
    apply_defaults()
    settings, log = load_settings(), get_run_logger()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        try:
            looked = look(settings, ledger)
        except LedgerConflict as conflict:
            return Completed(name="Looked elsewhere", message=str(conflict))
        if looked is None:
            return Completed(name="No canary", message=f"no canary is running in {settings.environment}")
        log.info("%s: %s", looked.verdict, looked.reason)
        for warning in [*looked.warnings, *_deliver(settings, ledger)]:
            log.warning("%s", warning)
        create_canary_artifact(looked.summary(), looks(ledger, looked.canary.canary_id))
    return final_state(looked)


@flow(name="canary-start", flow_run_name="canary start")
def canary_start(by: str = "prefect") -> State:
    """Give the candidate its first share of live traffic.

    Args:
        by: Who starts it; recorded.
    """
    apply_defaults()
    settings, log = load_settings(), get_run_logger()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        release = read_release(ledger)
        if release.canary is not None:  # the event that starts this flow may come twice
            message = f"canary {release.canary.canary_id}, {release.canary.status}"
            return Completed(name="Running already", message=message)
        if release.champion is None:
            message = f"{settings.environment} has no champion yet: `touchstone promote` makes the first one"
            return Completed(name="First release", message=message)
        state = start_canary(settings, ledger, by)
        for warning in _deliver(settings, ledger):
            log.warning("%s", warning)
    canary = state.canary
    if canary is None:
        return Completed(name="Decided already", message="somebody ended the canary at once")
    return Completed(name="Started", message=f"canary {canary.canary_id} at {canary.share:.0%} of traffic")


def final_state(looked: Looked) -> State:
    """Failed when nobody could tell, completed under the verdict's name otherwise."""
    failed = looked.verdict is CanaryVerdict.UNMEASURABLE
    return ended(_STATES[looked.verdict], looked.reason, looked.summary(), failed=failed)


def _deliver(settings: Settings, ledger: Ledger) -> list[str]:
    from tasks.outbox import deliver

    return deliver(settings, ledger)
