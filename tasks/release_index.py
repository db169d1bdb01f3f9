"""The live index follows the release: moved after the release event, and by the next command after a crash.

The release event decides what is served; the pointer is brought after it. A process that is killed between the two
leaves a champion whose index is not live yet, which `follow_release` sees and completes, as often as it is called.
"""

from __future__ import annotations

from tasks.index_retention import TagOwner, tag_version
from tasks.ledger import Ledger
from tasks.live_index import LivePointer, live_pointer, pointer_history, promote, roll_back
from touchstone.definition import Definition
from touchstone.errors import BadInput, LedgerConflict, Unmeasurable
from touchstone.index import IndexVersion
from touchstone.release import ReleaseState
from touchstone.release_index import index_fits, needs_move, outstanding_config, serving_index
from touchstone.settings import Settings


def index_for(ledger: Ledger, definition: Definition) -> IndexVersion | None:
    """The index version that serves a released bundle now, whatever is live for others; None without retrieval."""
    if definition.retrieval is None:
        return None
    return serving_index([move.index for move in pointer_history(ledger, definition.retrieval.name)], definition)


def check_index(settings: Settings, ledger: Ledger, definition: Definition) -> None:
    """Before a promotion: raise Unmeasurable when the index that must become live is gone. Keeps it from clean-ups."""
    if definition.retrieval is None or definition.index is None:
        return
    live = live_pointer(ledger, definition.retrieval.name)
    if live is not None and index_fits(live.index, definition.retrieval):
        return
    target = index_for(ledger, definition) or definition.index
    tag_version(settings.lance, TagOwner(ledger.environment, definition.retrieval.name), target)


def follow_release(settings: Settings, ledger: Ledger, state: ReleaseState) -> str | None:
    """Make the champion's index live where it is not; the label that the pointer was moved to, None: it was right.

    Raises Unmeasurable when it cannot be: the release stands, and the pointer is as it was.
    """
    if not is_behind(ledger, state):
        return None
    try:
        return _move(settings, ledger, state).index.label
    except (BadInput, LedgerConflict, Unmeasurable) as error:
        if not is_behind(ledger, state):
            return None  # somebody else has completed it meanwhile
        raise _left(error) from None


def is_behind(ledger: Ledger, state: ReleaseState) -> bool:
    """The champion's index is not live yet: the process that released it died before, or could not move the pointer."""
    config = outstanding_config(state)
    live = live_pointer(ledger, config.name) if config else None
    return needs_move(state, live.index if live else None, live.sequence if live else 0)


def _move(settings: Settings, ledger: Ledger, state: ReleaseState) -> LivePointer:
    assert state.champion is not None  # is_behind() has asked
    definition = state.champion.deployment.definition
    target = index_for(ledger, definition)
    if target is None:
        raise BadInput(f"{state.champion.deployment.name} was released without an index; run `touchstone reindex`")
    history = pointer_history(ledger, target.config_name)
    if target.label in {move.index.label for move in history}:
        return roll_back(ledger, settings.lance, target.config_name, to=target.label)
    reason = f"released with {state.champion.deployment.name} (event {state.served_since})"
    return promote(ledger, settings.lance, target, after=history[-1].sequence if history else 0, reason=reason)


def _left(error: Exception) -> Unmeasurable:
    return Unmeasurable(
        f"the release stands, but its index is not live yet: {error}. `touchstone rollback --repair` tries it again"
    )
