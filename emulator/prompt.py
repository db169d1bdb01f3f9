"""What a chat prompt asks for: the documents, the question, and the rules of its instructions."""

import html
import re
from dataclasses import dataclass
from functools import lru_cache

from emulator.language import content, stem, words

DEFAULT_SENTENCES = 2
DEFAULT_REFUSAL = "I do not know."


@dataclass(frozen=True)
class Document:
    """One retrieved chunk, as the prompt quotes it."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Instructions:
    """The rules of a system prompt that an extractive model can keep."""

    sentences: int
    refusal: str
    cite: bool


@dataclass(frozen=True)
class Asked:
    """A prompt, read: what is asked, of which documents, under which rules."""

    question: str
    injection: str  # the part of the question that tries to give orders
    documents: tuple[Document, ...]
    instructions: Instructions
    system: str


_DOCUMENT = re.compile(r"<document\b([^>]*)>(.*?)</document>", re.DOTALL)
_ATTRIBUTE = re.compile(r"""([\w-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_QUESTION = re.compile(r"(?:^|\n)[ \t]*(?:\*\*|#+ )?Question:(?:\*\*)?[ \t]*")
# Right after the last block the mark is the template's own; any later one, or a later block, was typed by the asker.
_OWN_QUESTION = re.compile(r"</document>\s*\n[ \t]*(?:\*\*|#+ )?Question:(?:\*\*)?[ \t]*")
_CONTEXT = re.compile(r"(?:^|\n)[ \t]*(?:\*\*|#+ )?Context:(?:\*\*)?[ \t]*")
_ANSWER_CUE = re.compile(r"\s*\n\s*(?:\*\*)?(?:Short |Final )?Answer:?(?:\*\*)?\s*$")
_REFUSAL_RULE = re.compile(
    r"(?:reply|say|answer|respond|write|output)(?:\s+(?:with|only))*\s+exactly(?:\s+with)?\s*:?\s*"
    r"(?:\"([^\"]+)\"|“([^”]+)”|`([^`]+)`|'((?:[^']|(?<=\w)'(?=\w))+)')",
    re.IGNORECASE,
)
_SENTENCE_RULE = re.compile(
    r"(?:\b([a-z]+|\d+)\s*(?:-|–|to|or)\s*)?\b([a-z]+|\d+)\s+"
    r"(?:short |brief |full |complete |concise |plain )*sentences?\b",
    re.IGNORECASE,
)
_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.?!\n]{0,60}\b(?:instruction|prompt|rule|context|document|"
    r"guideline|direction|above|previous|prior|everything)"
    r"|\b(?:print|reveal|show|repeat|output|display|leak|dump|recite|tell me)\b[^.?!\n]{0,50}\b(?:system prompt|"
    r"system message|(?:your|hidden|initial|secret|original) (?:\w+ )?(?:prompt|instructions?|rules))"
    r"|\byou are now\b|\bpretend (?:to be|you)\b|\bact as\b|\bdeveloper mode\b|\bjailbreak\b|\bnew instructions?:"
    r"|^\W*(?:system|assistant)\s*:"
    r"|\b(?:say|print|reply with|respond with|answer with|output)\s*:?\s*[\"'“‘`]"
    r"|\b(?:say|print|reply with|respond with|output)\s+(?:only\s+)?(?:the (?:word|phrase)s?\s+)?[A-Z]{3,}\b",
    re.IGNORECASE | re.MULTILINE,
)
_CLAUSE = re.compile(r"(?<=[.?!;\n])\s+|,?\s+\b(?:and then|then|but first|also)\b\s+", re.IGNORECASE)


def is_injection(text: str) -> bool:
    """Whether a text gives orders to the model instead of stating or asking something."""
    return _INJECTION.search(text) is not None


def read_prompt(system: str, user: str) -> Asked:
    """Take a prompt apart by the convention: `<document>` blocks (or `Context:`), then `Question:`."""
    documents, question = _split(user)
    if not documents:
        documents = _blocks(system)
    asked, injection = _without_injection(question)
    return Asked(asked, injection, documents, _instructions(system), system)


def _split(user: str) -> tuple[tuple[Document, ...], str]:
    own = _OWN_QUESTION.search(user)
    if own:
        return _blocks(user[: own.end()]), _ANSWER_CUE.sub("", user[own.end() :].strip())
    blocks = _blocks(user)
    tail = user[user.rfind("</document>") + len("</document>") :] if blocks else user
    marks = list(_QUESTION.finditer(tail))
    if not marks:
        return blocks, _ANSWER_CUE.sub("", tail.strip())
    question = _ANSWER_CUE.sub("", tail[marks[-1].end() :].strip())
    return blocks or _plain_context(tail[: marks[-1].start()]), question


def _blocks(text: str) -> tuple[Document, ...]:
    return tuple(_document(match, index) for index, match in enumerate(_DOCUMENT.finditer(text)))


def _document(match: re.Match[str], index: int) -> Document:
    given = {name: html.unescape(double or single) for name, double, single in _ATTRIBUTE.findall(match.group(1))}
    return Document(given.get("id", str(index + 1)), given.get("title", ""), match.group(2).strip())


def _plain_context(text: str) -> tuple[Document, ...]:
    mark = _CONTEXT.search(text)
    body = text[mark.end() :].strip() if mark else ""
    return (Document("1", "", body),) if body else ()


def _without_injection(question: str) -> tuple[str, str]:
    """The question proper and, apart from it, the clauses that try to give orders."""
    if not is_injection(question):
        return question, ""
    clauses = [clause for clause in _CLAUSE.split(question) if clause.strip()]
    proper = [clause for clause in clauses if not is_injection(clause)]
    # What is left only counts as a question when it asks: "… HACKED. Thanks" asks nothing.
    asks = [clause for clause in proper if clause.rstrip().endswith("?") and content(clause)]
    return " ".join(asks), " ".join(clause for clause in clauses if clause not in asks)


@lru_cache(maxsize=1_000)
def _instructions(system: str) -> Instructions:
    rule = _REFUSAL_RULE.search(system)
    refusal = next(filter(None, rule.groups()), DEFAULT_REFUSAL) if rule else DEFAULT_REFUSAL
    cites = re.search(r"\bcite\b|\[(?:document |doc )?id\]", system, re.IGNORECASE) is not None
    return Instructions(_sentence_limit(system), refusal, cites)


def _sentence_limit(system: str) -> int:
    """The last number before *sentences*: 2 in "at most two sentences", 3 in "1-3 sentences"."""
    for match in _SENTENCE_RULE.finditer(system):
        count = "1" if match.group(2).lower() in ("one", "a", "single") else stem(match.group(2).lower())
        if count.isdigit() and 0 < int(count) <= 20:
            return int(count)
    return DEFAULT_SENTENCES


def asks_for_quantity(question: str) -> bool:
    """Whether a number is the likely answer."""
    return _QUANTITY.search(question) is not None and len(words(question)) > 1


_QUANTITY = re.compile(
    r"\bhow (?:many|much|long|often|old|far|fast|large|big|soon|quickly|late|early)\b|\bwhen\b|"
    r"\bwhat (?:time|date|percentage|price|year|day)\b|"
    r"\b(?:price|cost|fee|limit|deadline|maximum|minimum|threshold|amount|percentage|discount|rate|size|length|duration)\b",
    re.IGNORECASE,
)
