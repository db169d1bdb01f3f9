"""What the index benchmarks and their peers share: made-up documents, and vectors that cost next to nothing.

Needs numpy alone, because a peer imports it in an interpreter of its own.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PARTS = 5  # chunks of a document
DIMENSION = 384
CHUNK_SIZE = 64  # a part has 48 tokens or a few more, and starts with a heading: there it is cut

Floats = NDArray[np.float32]

_VOCABULARY = """about after again along among answer apply before begin better bottle branch bridge bring button camera
carry centre change charge choose clean clear close common cost cover cross damage date delay depart detail direct
double drive early effect engine enough enter equal escape event every expect extra factor family figure filter find
finish fluid folder follow force form front garden gentle goods ground guard handle heavy height hold house impact
inside island join keep label large later layer learn level light limit liquid list local lower main manual market
master matter meter middle mirror modern motion narrow near nearly notice number object office often open order other
outer packet panel paper part patch period phase pipe place plain planet plate point power press print proper pump
quiet raise random range rapid reach record reduce region repair report result return river round route sample scale
screen season second select send series share sheet shift short signal simple single small smooth solid source space
speed spring square stable stage start state steel step still store strong sudden summer supply switch system table
target test thick thin ticket timber total tower track travel under unit upper useful value valve vessel volume wall
watch water weight window winter wire wood yellow"""
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True)
class Change:
    """Which documents are edited, in one part each, and which disappear."""

    edited: frozenset[int]
    deleted: frozenset[int] = frozenset()


UNCHANGED = Change(frozenset())


def documents(count: int, change: Change = UNCHANGED) -> Iterator[tuple[str, str, str]]:
    """(id, title, text) of `count` documents as they are after a change; the same call gives the same texts."""
    for number in range(count):
        if number not in change.deleted:
            yield f"doc-{number:07}", f"Guide {number}", _text(number, edited=number in change.edited)


def write_jsonl(path: Path, count: int, change: Change = UNCHANGED) -> None:
    with path.open("w") as file:
        for identity, title, text in documents(count, change):
            file.write(json.dumps({"id": identity, "title": title, "text": text, "updated_at": "2026-01-01"}) + "\n")


def write_folder(folder: Path, count: int, change: Change = UNCHANGED) -> None:
    """One Markdown file per document; those of deleted documents are removed, unchanged ones are not touched."""
    folder.mkdir(exist_ok=True)
    for number in change.deleted:
        (folder / f"doc-{number:07}.md").unlink(missing_ok=True)
    for identity, title, text in documents(count, change):
        path, content = folder / f"{identity}.md", f"# {title}\n\n{text}"
        if not path.exists() or path.read_text() != content:
            path.write_text(content)


def parts(text: str) -> list[str]:
    """A document cut before each heading of the second level, as the peers cut it."""
    return [part.strip() for part in re.split(r"(?m)^(?=## )", text) if part.startswith("## ")]


def embed(texts: Sequence[str]) -> Floats:
    """A random unit row per text, always the same for the same text."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts]
    rows = np.empty((len(seeds), DIMENSION), dtype=np.float32)
    for row, seed in zip(rows, seeds, strict=True):
        np.random.Generator(np.random.SFC64(seed)).standard_normal(out=row, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _text(number: int, *, edited: bool) -> str:
    pick = random.Random(number)
    sections = []
    for part in range(PARTS):
        words = pick.choices(_WORDS, k=40)
        sentences = [" ".join(words[start : start + 10]).capitalize() + "." for start in range(0, 40, 10)]
        mark = " Edited." if edited and part == number % PARTS else ""
        sections.append(f"## Part {part}\n\n{' '.join(sentences)}{mark}")
    return "\n\n".join(sections)
