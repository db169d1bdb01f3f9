"""The strict contract on a vendor's answer: what breaks it is a typed failure, never a score."""

from __future__ import annotations

import re

from touchstone.errors import AnswerRefused, InvalidAnswer

_END = re.compile(r"[.!?:;)\]}\"'`*|…。！？」]$")
_PIECE = re.compile(r"[A-Za-z]+|\d{1,3}|[^\sA-Za-z\d]")


def check_answer(
    text: str | None,
    *,
    requested_model: str,
    served_model: str | None,
    finish_reason: str | None,
    output_tokens: int | None,
    allow_unpinned: bool,
    max_tokens: int,
) -> str:
    """The text, when it is a whole answer of the pinned model; else raise AnswerRefused or InvalidAnswer.

    `output_tokens` are the visible ones that the vendor billed (without hidden reasoning); None: not told.
    """
    if not served_model:
        raise InvalidAnswer("the answer does not say which model gave it")
    if not allow_unpinned and _bare(served_model) != _bare(requested_model):
        raise InvalidAnswer(f"asked {requested_model}, answered by {served_model}: the pin does not hold")
    if finish_reason == "content_filter":
        raise AnswerRefused("the vendor's content filter withheld the answer")
    if finish_reason == "length":
        raise InvalidAnswer(f"cut at max_tokens = {max_tokens}; raise it in the prompt's parameters")
    if finish_reason != "stop":
        raise InvalidAnswer(f"finish_reason is {finish_reason!r}, not 'stop'")
    if not text or not text.strip():
        raise InvalidAnswer("the answer is empty")
    if output_tokens is None:
        raise InvalidAnswer("the answer comes without usage, so neither its cost nor its completeness is known")
    if _is_cut(text, output_tokens):
        raise InvalidAnswer(
            f"{output_tokens} tokens were billed but about {plausible_tokens(text)} delivered: the answer was cut"
        )
    return text


def _is_cut(text: str, output_tokens: int) -> bool:
    """More was billed than delivered; a text without an end needs less of a gap to be called cut.

    On 4,000 recorded GPT-3.5 and GPT-4 answers it calls none cut, and of their first halves (8 tokens or more) all
    but one.
    """
    if output_tokens <= 1.4 * len(text.split()) + 3:
        return False  # every word is at least a token: spare counting them closely
    delivered = plausible_tokens(text)
    open_ended = _END.search(text.rstrip()) is None
    return output_tokens > 1.6 * delivered + 6 or (open_ended and output_tokens > 1.4 * delivered + 3)


def plausible_tokens(text: str) -> int:
    """About how many tokens a text has, whatever the vocabulary: words, digit triples and marks.

    Long words count once per six letters, letters outside ASCII 1.5 each. Recorded GPT-3.5 and GPT-4 answers were
    billed 0.9 to 1.4 times this.
    """
    ascii_pieces = sum(1 + (len(piece) - 1) // 6 for piece in _PIECE.findall(text) if piece.isascii())
    other = sum(1 for character in text if not character.isascii() and not character.isspace())
    return ascii_pieces + round(1.5 * other) + text.count("\n")


def _bare(model: str) -> str:
    return model.rsplit("/", 1)[-1].casefold()
