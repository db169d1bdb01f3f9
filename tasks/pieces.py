"""Documents to pieces: chunks with their provenance, as they are embedded and stored; suspicious ones apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tasks.embedding import Embedder
from tasks.sources import Document, digest_text
from touchstone.chunking import Chunk, split_markdown
from touchstone.index import QuarantinedChunk
from touchstone.injection import SCAN_RULES_VERSION, find_injection
from touchstone.pii import find_pii
from touchstone.retrieval_config import IngestScan, RetrievalConfig


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk with its document."""

    document: Document
    chunk: Chunk
    indexed_text: str  # what is embedded and searched for words: the title says what the text is about, once
    content_hash: str

    @property
    def chunk_id(self) -> str:
        return f"{self.document.id}#{self.chunk.ordinal}"


@dataclass
class Scanned:
    """Pieces that may be indexed, and what was found in all."""

    pieces: list[Piece] = field(default_factory=list)
    quarantined: list[QuarantinedChunk] = field(default_factory=list)
    suspicious: list[QuarantinedChunk] = field(default_factory=list)  # indexed all the same, by policy
    pii: Counter[str] = field(default_factory=Counter)  # chunks by kind


def cut(documents: Iterable[Document], config: RetrievalConfig, embedder: Embedder) -> Iterator[Piece]:
    """A chunk is never longer than the model reads: text behind that would be stored and never found."""
    for document in documents:
        size = config.chunk_size
        if embedder.max_tokens is not None:
            room = embedder.max_tokens - len(embedder.tokenize(document.title))
            size = min(size, max(room, embedder.max_tokens // 2))
        for chunk in split_markdown(document.text, embedder.tokenize, size, min(config.chunk_overlap, size // 2)):
            text = _indexed_text(document.title, chunk.text)
            yield Piece(document, chunk, text, digest_text(text))


def scan(pieces: Iterable[Piece], policy: IngestScan) -> Scanned:
    """Look for prompt injection and personal data, and keep out what the policy keeps out."""
    scanned = Scanned()
    for piece in pieces:
        injection = find_injection(piece.indexed_text) if policy.injection != "off" else ()
        personal = find_pii(piece.indexed_text) if policy.pii != "off" else {}
        scanned.pii.update(personal.keys())
        held = injection if policy.injection == "quarantine" else ()
        held += tuple(personal) if policy.pii == "quarantine" else ()
        found = QuarantinedChunk(chunk_id=piece.chunk_id, document_id=piece.document.id, rules=held or injection)
        if held and piece.document.id not in policy.allow:
            scanned.quarantined.append(found)
            continue
        if injection:
            scanned.suspicious.append(found)
        scanned.pieces.append(piece)
    return scanned


def scan_stamp(document: Document, policy: IngestScan) -> str:
    """Changes when a document must be scanned again: other rules, another policy, or it was allowed since."""
    return f"{SCAN_RULES_VERSION} {policy.injection} {policy.pii} {document.id in policy.allow}"


def _indexed_text(title: str, text: str) -> str:
    return text if text.lstrip("# ").startswith(title) else f"{title}\n{text}"
