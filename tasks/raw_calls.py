"""Raw vendor texts in a run's calls.jsonl: kept while a resume may need them, and no longer."""

from __future__ import annotations

import json
import os
from collections.abc import Collection

from tasks.spool import Spool

_CALLS = "calls.jsonl"


def forget_raw_texts(spool: Spool, finished: Collection[tuple[str, int]]) -> None:
    """Take the texts of the calls of these (case id, trial) out of the spool; the calls' records stay, for the costs.

    A resume scores the rest of a run on what the vendor really said, so that its verdict is that of a run that was
    never broken off. A case that is finished without a failure is never run again: its result, scrubbed, is all that is
    needed of it. Hold the spool's lock; on a full disk everything stays as it was.
    """
    path = spool.folder / _CALLS
    if not finished or not path.exists():
        return
    spool.close()  # its descriptor would go on writing to the old file
    keys = {f"{case_id}/{trial}" for case_id, trial in finished}
    fresh = spool.folder / f".{_CALLS}.{os.getpid()}"
    try:
        with (
            path.open("rb") as old,
            os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as new,
        ):
            for line in old:
                new.write(_without_text(line, keys))
            new.flush()
            os.fsync(new.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _without_text(line: bytes, keys: Collection[str]) -> bytes:
    try:
        call = json.loads(line)
        if call["key"].rsplit(":", 2)[0] not in keys or call.pop("text", None) is None:
            return line
    except (ValueError, TypeError, KeyError):
        return b""  # torn by a crash: the call is made again, and what is left of its text is of no use
    return json.dumps(call, separators=(",", ":")).encode() + b"\n"
