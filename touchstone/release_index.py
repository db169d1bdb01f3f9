"""Which index version serves a released bundle, and whether the live pointer has followed the release.

A release names its retrieval config as it was. A re-index moves the live pointer within one table, and that is no
release; another chunking, embedding model or a word index is one, and the pointer has to follow it there.
"""

from __future__ import annotations

from collections.abc import Sequence

from touchstone.definition import Definition
from touchstone.index import IndexVersion
from touchstone.release import ReleaseState
from touchstone.retrieval_config import RetrievalConfig


def index_fits(index: IndexVersion, config: RetrievalConfig) -> bool:
    """Its chunks are cut and embedded as the config says, and can be searched as it says."""
    return index.fingerprint == config.index_fingerprint and (index.has_words or config.search == "semantic")


def serving_index(history: Sequence[IndexVersion], definition: Definition) -> IndexVersion | None:
    """The version that serves a bundle: of all that were live (`history`, in order) the newest that fits it.

    Before its config was ever live, the one that its gate measured; None without retrieval.
    """
    config = definition.retrieval
    if config is None:
        return None
    fitting = [index for index in history if index_fits(index, config)]
    return fitting[-1] if fitting else definition.index


def outstanding_config(state: ReleaseState) -> RetrievalConfig | None:
    """The retrieval config whose live pointer the champion depends on; None: it has none."""
    return state.champion.deployment.definition.retrieval if state.champion else None


def needs_move(state: ReleaseState, live: IndexVersion | None, moved_at: int) -> bool:
    """The champion came after the last move of its config's live pointer (event `moved_at`), which does not fit it.

    What moved the pointer later knew the release: it is not undone.
    """
    config = outstanding_config(state)
    if config is None or moved_at > state.served_since:
        return False
    return live is None or not index_fits(live, config)
