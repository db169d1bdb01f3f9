"""Text that tries to give a language model orders: rules with names, and nothing learnt.

Rules find payloads that announce themselves: overrides, forged turns, hidden text, addresses to the model, calls for
data to be sent away. An order that reads like ordinary prose is not found, and is not claimed to be
(docs/validation.md has the measured shares): retrieved text stays data, whatever is found here.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote

from touchstone.injection_rules import NEEDED, PHRASES, RUN_TOGETHER, SCAN_RULES_VERSION, SHAPES, VOCABULARY

__all__ = ["SCAN_RULES_VERSION", "find_injection"]

_GAP = r"\b[^.!?]{0,40}?\b"
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{24,}={0,2}")
_TAGS = re.compile("[\U000e0000-\U000e007f]")  # invisible doubles of ASCII: models read them, people do not see them
_TAG_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007f]+")  # the flags of Scotland, Wales and England
_BIDI_OVERRIDES = "\u202d\u202e"
_LOOKALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТХҮаеѕіјкмнорстхуһԁԛԝѵүΑΒΕΖΗΙΚΜΝΟΡΤΥΧαορνικτυχεıɡɑᴀʙᴄᴅᴇɢʜɪᴊᴋʟᴍɴᴏᴘʀᴛᴜᴠᴡʏᴢ",
    "ABESIJKMHOPCTXYaesijkmhopctxyhdqwvyABEZHIKMNOPTYXaopviktuxeigaabcdeghijklmnoprtuvwyz",
)
_DIGIT_LETTERS = str.maketrans("013457@$", "oieastas")
_DIGIT_IN_WORD = re.compile(r"(?<=[a-z])[013457@$]{1,2}(?=[a-z])")
_LETTER_DIGIT = re.compile(r"[013457@$]{1,2}(?=[a-z])|(?<=[a-z])[013457@$]{1,2}")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_MARKS = re.compile(r"[^\w.!?,:;@'。！？]+|_+")
_NOT_LETTERS = re.compile(r"[\W_]+")


def find_injection(text: str) -> tuple[str, ...]:
    """Names of the rules that match, in order; none for text that looks innocent.

    Case, accents, compatibility and look-alike letters, invisible characters, HTML entities, per cent codes, markup
    between words and instructions in base64 make no difference. Linear in the length of the text.
    """
    found = set(_hidden_characters(text))
    for plain in _readings(text):
        found |= _shapes(plain)
        words = f" {' '.join(_MARKS.sub(' ', plain).split())} "
        found |= _phrases(words)
        together = _NOT_LETTERS.sub("", words)
        found |= {name for name, pattern in _RUN_TOGETHER if pattern.search(together)}
    return tuple(sorted(found))


def _compiled(phrase: str) -> re.Pattern[str]:
    for name, words in VOCABULARY.items():  # a word may be made of words that come later
        phrase = phrase.replace(f"{{{name}}}", words)
    phrase = phrase.replace("(", "(?:")  # nothing is captured
    return re.compile(r"\b" + _GAP.join(phrase.split(" ... ")) + r"(?!\w)")


_RULES = tuple((name, NEEDED[name].split("|"), tuple(map(_compiled, phrases))) for name, phrases in PHRASES.items())
_RUN_TOGETHER = tuple((name, re.compile(pattern)) for name, pattern in RUN_TOGETHER.items())
_SHAPES = tuple((name, needed, re.compile(pattern, re.MULTILINE)) for name, needed, pattern in SHAPES)


def _phrases(words: str) -> set[str]:
    return {
        name
        for name, needed, patterns in _RULES
        if any(word in words for word in needed) and any(pattern.search(words) for pattern in patterns)
    }


def _shapes(plain: str) -> set[str]:
    return {
        name for name, needed, pattern in _SHAPES if any(word in plain for word in needed) and pattern.search(plain)
    }


def _readings(text: str) -> Iterator[str]:
    """The text as a model may read it; every reading is another one, the plain one is first."""
    plain = _plain(text)
    yield plain
    if not text.isascii():
        latin = _plain(text.translate(_LOOKALIKES))
        if latin != plain:
            yield latin
    if len(_DIGIT_IN_WORD.findall(plain)) >= 3:
        yield _LETTER_DIGIT.sub(lambda match: match[0].translate(_DIGIT_LETTERS), plain)
    unescaped = unquote(html.unescape(text))
    if unescaped != text:
        yield _plain(unescaped)
    smuggled = "".join(chr(ord(letter) - 0xE0000) for letter in _TAGS.findall(text))
    yield from (_plain(found) for found in (smuggled, *_from_base64(text)) if found)


def _plain(text: str) -> str:
    """Lower case, without accents and without characters that nobody sees."""
    if not text.isascii():
        text = _NOT_ASCII.sub(lambda match: _visible(match[0]), unicodedata.normalize("NFKD", text))
        text = unicodedata.normalize("NFC", text)
    return text.casefold()


def _visible(text: str) -> str:
    return "".join(letter for letter in text if unicodedata.category(letter) not in ("Mn", "Cf"))


def _from_base64(text: str) -> Iterator[str]:
    for match in _BASE64.finditer(text):
        blob = match[0].rstrip("=")
        try:
            decoded = base64.b64decode(blob + "=" * (-len(blob) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
        if " " in decoded and decoded.isprintable():
            yield decoded


def _hidden_characters(text: str) -> set[str]:
    if text.isascii():
        return set()
    overridden = any(letter in text for letter in _BIDI_OVERRIDES)
    return {"hidden_characters"} if overridden or _TAGS.search(_TAG_FLAG.sub("", text)) else set()
