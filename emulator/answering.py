"""One chat call answered: the alias resolved, the mode chosen, the reply measured in tokens."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from emulator.extractive import Extract, Ranking, answer, rank
from emulator.judge import UnreadablePayload, judge, schema_asked
from emulator.language import tokens
from emulator.prompt import Asked, read_prompt
from emulator.replay import Recording, Sample
from emulator.snapshots import chance, temperament
from emulator.wire import BadRequest, ChatRequest, Finish, Reply

Kind = Literal["judge", "replay", "extractive"]
_ALTERNATIVES = (" the", " a", " not", " is", ",", ".", " and", " of", " in", " to", " for", " that", " it", " we",
                 " you", " be", " on", " with", " no", " as")  # fmt: skip


@dataclass(frozen=True)
class _Draft:
    """An answer before it is cut to the token limit."""

    kind: Kind
    text: str
    confidence: float
    completion_tokens: int | None = None  # as recorded
    logprobs: Sequence[Mapping[str, Any]] | None = None  # as recorded


@dataclass
class Answerer:
    """Everything that stands behind the model names."""

    recording: Recording
    aliases: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    reveal_snapshot: bool = False

    def snapshot(self, name: str) -> str:
        """The snapshot that answers for a requested name now."""
        return self.aliases.get(name, name)

    def shown(self, name: str) -> str:
        """The model id that the answer carries: the requested name, so that a swap is silent."""
        return self.snapshot(name) if self.reveal_snapshot else name

    def answer(self, request: ChatRequest, body: str, nth: int) -> tuple[Kind, Reply]:
        """Answer one call; `body` identifies it and `nth` counts the answers it had before."""
        draft = self._draft(request, body, nth)
        text, count, finish = _cut(draft, request.max_tokens)
        logprobs = None
        if request.top_logprobs is not None:
            logprobs = draft.logprobs or _logprobs(text, draft.confidence, request.top_logprobs)
        shown = self.shown(request.model)
        return draft.kind, Reply(
            model=shown, text=text, finish=finish, completion_tokens=count,
            prompt_tokens=(len(request.system) + len(request.user)) // 4 + 8,
            fingerprint=fingerprint(shown), logprobs=logprobs, id=_reply_id(body, nth),
        )  # fmt: skip

    def _draft(self, request: ChatRequest, body: str, nth: int) -> _Draft:
        for prompt in (request.user, request.system):
            if (schema := schema_asked(prompt)) is not None:
                return _judged(schema, prompt)
        snapshot = self.snapshot(request.model)
        if self.recording.holds(snapshot):
            return _replayed(self._sample(snapshot, request))
        return self._extracted(snapshot, request, body, nth)

    def _sample(self, snapshot: str, request: ChatRequest) -> Sample:
        prompts = (request.user, f"{request.system}\n\n{request.user}")
        sample = self.recording.take(snapshot, prompts)
        if sample is None:
            message = f"no answer of {snapshot!r} to this prompt is recorded: {request.user[:160]!r}"
            raise BadRequest(message, status=404, code="prompt_not_recorded")
        return sample

    def _extracted(self, snapshot: str, request: ChatRequest, body: str, nth: int) -> _Draft:
        how = temperament(snapshot)
        asked, ranking = _ranked(request.system, request.user, how.trusts_documents)
        habit, draw = f"{self.seed}|{snapshot}|{asked.question}", f"{self.seed}|{body}|{nth}"
        extract: Extract = answer(asked, ranking, how, request.temperature, habit, draw)
        return _Draft("extractive", extract.text, extract.support)


@lru_cache(maxsize=4_000)
def _ranked(system: str, user: str, trusts_documents: bool) -> tuple[Asked, Ranking]:
    asked = read_prompt(system, user)
    return asked, rank(asked, trusts_documents)


@lru_cache(maxsize=4_000)
def _judged(schema: str, prompt: str) -> _Draft:
    try:
        return _Draft("judge", judge(schema, prompt), 0.95)
    except UnreadablePayload as error:
        raise BadRequest(str(error), "messages") from None


def _replayed(sample: Sample) -> _Draft:
    return _Draft("replay", sample.answer, 0.9, sample.completion_tokens, sample.logprobs)


def _cut(draft: _Draft, limit: int | None) -> tuple[str, int, Finish]:
    """Text, token count and finish reason under a limit; a recorded count is kept as the truth."""
    if draft.completion_tokens is not None:
        if limit is None or draft.completion_tokens <= limit:
            return draft.text, draft.completion_tokens, "stop"
        return draft.text[: int(len(draft.text) * limit / draft.completion_tokens)], limit, "length"
    pieces = tokens(draft.text)
    if limit is None or len(pieces) <= limit:
        return draft.text, len(pieces), "stop"
    return "".join(pieces[:limit]), limit, "length"


@lru_cache(maxsize=10_000)
def fingerprint(name: str) -> str:
    """OpenAI's system_fingerprint; it follows the name that is shown, so a silent swap does not move it."""
    return "fp_" + hashlib.blake2b(name.encode(), digest_size=5).hexdigest()


def _reply_id(body: str, nth: int) -> str:
    return f"{body}{nth:06x}"


def _logprobs(text: str, confidence: float, top: int) -> list[dict[str, Any]]:
    """Plausible log-probabilities: the better the support, the surer the tokens; the same on every run."""
    doubt = 0.02 + 0.6 * (1 - min(1.0, max(0.0, confidence)))
    return [_token(piece, doubt, top, place) for place, piece in enumerate(tokens(text))]


def _token(piece: str, doubt: float, top: int, place: int) -> dict[str, Any]:
    chosen = math.exp(-doubt * 2 * chance("logprob", piece, place))
    chosen = min(chosen, 0.9999)
    others = [other for other in _ALTERNATIVES if other != piece][: max(0, top - 1)]
    left, rows = 1 - chosen, [_row(piece, chosen)]
    for other in others:
        # Each alternative takes most of what is left and never more than the chosen token.
        taken = min(left * 0.6, chosen * 0.99)
        left -= taken
        rows.append(_row(other, taken))
    return {**rows[0], "top_logprobs": rows if top else []}


def _row(token: str, probability: float) -> dict[str, Any]:
    return {"token": token, "logprob": round(math.log(max(probability, 1e-9)), 6), "bytes": list(token.encode())}
