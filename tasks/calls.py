"""The calls of one case: each is paid for once, however often the run is resumed."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.embedding import Floats
from tasks.spool import FinishedCall, Spool
from tasks.vendor import Vendor, check_call
from touchstone.bundle import Endpoint
from touchstone.cost import Budget
from touchstone.errors import CaseFailure
from touchstone.privacy import holds_personal_data
from touchstone.prompts import GenerationParameters
from touchstone.results import Call


class ResponseCache:
    """Answers of earlier runs by their full request and endpoint. Never for the model under drift watch."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=OFF")  # a lost entry costs one call, not the truth
        self._database.execute("CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, finished TEXT NOT NULL)")

    def get(self, key: str) -> FinishedCall | None:
        with self._lock:
            row = self._database.execute("SELECT finished FROM responses WHERE key = ?", (key,)).fetchone()
        return FinishedCall.model_validate_json(row[0]) if row else None

    def put(self, finished: FinishedCall) -> None:
        """Keep an answer for later runs; one that holds personal data or a secret is asked for again instead."""
        is_vectors = finished.call is not None and finished.call.role == "embedding"
        if not is_vectors and holds_personal_data(finished.text or ""):
            return
        row = (finished.key, finished.model_dump_json(exclude_defaults=True))
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO responses VALUES (?, ?)", row)

    def forget(self, key: str) -> None:
        with self._lock:
            self._database.execute("DELETE FROM responses WHERE key = ?", (key,))

    def close(self) -> None:
        self._database.close()


class CaseCalls:
    """Makes the calls of one trial of one case, and remembers them for its record."""

    def __init__(
        self,
        case_key: str,
        vendor: Vendor,
        spool: Spool,
        finished: Mapping[str, FinishedCall],
        cache: ResponseCache | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self._case_key = case_key
        self._vendor = vendor
        self._spool = spool
        self._finished = finished
        self._cache = cache
        self._asked: Counter[str] = Counter()

    @property
    def budget(self) -> Budget:
        return self._vendor.budget

    async def complete(
        self,
        endpoint: Endpoint,
        messages: Sequence[Mapping[str, str]],
        parameters: GenerationParameters,
        *,
        role: str,
        prompt_version: str | None = None,
        response_format: Mapping[str, str] | None = None,
        accept: Callable[[str], Any] = str,
        cached: bool = False,
    ) -> Any:
        """What `accept` makes of an answer that keeps the contract.

        `accept` raises a CaseFailure for a text that is no good; such a call is paid, but never reused by
        `--retry-failures`. With `cached` the answer may come from an earlier run.
        """
        request = {
            "endpoint": [endpoint.model, endpoint.api_base],
            "messages": list(messages),
            "parameters": parameters.model_dump(exclude_none=True),
            "response_format": response_format,
        }

        async def make() -> tuple[str | None, Call]:
            return await self._vendor.complete(
                endpoint,
                messages,
                parameters,
                role=role,
                prompt_version=prompt_version,
                response_format=response_format,
            )

        def check(text: str | None, call: Call) -> Any:
            return accept(check_call(text, call, endpoint, parameters))

        return await self.once(request, make, check, cached=cached)

    async def embed(self, endpoint: Endpoint, texts: Sequence[str], *, cached: bool = False) -> Floats:
        """One unit row per text from a vendor's embedding model, under the run's limits and spend cap."""
        request = {"endpoint": [endpoint.model, endpoint.api_base], "input": list(texts)}

        async def make() -> tuple[str, Call]:
            rows, call = await self._vendor.embed(endpoint, texts)
            return base64.b64encode(rows.astype("<f4").tobytes()).decode(), call

        def rows_of(text: str | None, call: Call) -> Floats:
            return np.frombuffer(base64.b64decode(text or ""), dtype="<f4").reshape(len(texts), -1)

        return await self.once(request, make, rows_of, cached=cached)

    async def once(
        self,
        request: Mapping[str, Any],
        make: Callable[[], Awaitable[tuple[str | None, Call]]],
        check: Callable[[str | None, Call], Any],
        *,
        cached: bool = False,
    ) -> Any:
        """Make a call, unless it was already made for this case, or (with `cached`) for another run."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        occurrence = self._asked[digest]
        self._asked[digest] += 1
        key = f"{self._case_key}:{occurrence}:{digest[:32]}"
        cache_key = f"{occurrence}:{digest}"
        finished = self._finished.get(key) or self._from_cache(cache_key, cached)
        if finished is None or finished.call is None:
            text, call = await make()
            finished = FinishedCall(key=key, text=text, call=call)
            self._spool.append_call(finished)
        text, call = finished.text, finished.call
        assert call is not None  # a finished call has its record
        self.calls.append(call)
        try:
            value = check(text, call)
        except CaseFailure:
            self._spool.append_call(FinishedCall(key=key, bad=True))
            if cached and self._cache:
                self._cache.forget(cache_key)
            raise
        if cached and self._cache and not call.cached:
            stored = call.model_copy(update={"cached": True, "cost_usd": 0.0})
            self._cache.put(FinishedCall(key=cache_key, text=text, call=stored))
        return value

    def _from_cache(self, key: str, cached: bool) -> FinishedCall | None:
        return self._cache.get(key) if cached and self._cache else None
