"""How much personal data the scrubber finds, what it takes for personal data wrongly, and how fast it reads.

python benchmarks/pii.py [--count 2000] [--seed 1] [--misses 0]

Identifiers are made by benchmarks/identifiers.py from the standards, and put into contexts of several kinds and
languages. Ordinary text is the shipped corpus, and what TOUCHSTONE_SHARED_DATA holds, cut into chunks of 1 KB.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from benchmarks.identifiers import CONTEXTS, KINDS
from touchstone.pii import find_pii, scrub

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("TOUCHSTONE_SHARED_DATA", "../shared/data"))
CHUNK = 1024
LIMITS = {"email": 0.99, "iban": 0.99, "ssn": 0.99, "ip": 0.99, "card": 0.99, "phone": 0.90}
MOST_WRONG = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="generated texts per kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--misses", type=int, default=0, help="print so many of each kind that were not found")
    arguments = parser.parse_args()
    print(f"generated identifiers, {arguments.count} a kind       recall   limit")
    for kind in KINDS:
        random = Random(f"{arguments.seed} {kind}")
        made = [missed(kind, random) for _ in range(arguments.count)]
        misses = [text for text in made if text]
        print(f"  {kind:<38} {1 - len(misses) / arguments.count:8.4f}   {LIMITS[kind]:.2f}")
        for text in misses[: arguments.misses]:
            print(f"      {text!r}")
    print(f"\nordinary text, {CHUNK} characters a chunk          chunks   hit (limit {MOST_WRONG:.0%})          MB/s")
    for name, texts in ordinary().items():
        chunks = [text[at : at + CHUNK] for text in texts for at in range(0, len(text), CHUNK)]
        began = time.process_time()
        found = [find_pii(chunk) for chunk in chunks]
        spent = time.process_time() - began
        kinds = dict(Counter(kind for one in found for kind in one))
        share, size = sum(map(bool, found)) / len(chunks), sum(len(chunk.encode()) for chunk in chunks) / 1e6
        print(f"  {name:<38} {len(chunks):8}   {share:.4f} {kinds}   {size / spent:.1f}")
        for chunk, one in zip(chunks, found, strict=True) if arguments.misses else ():
            if one:
                print(f"      {_marked(chunk)}")


def missed(kind: str, random: Random) -> str:
    """The text when the identifier was not found whole: no more than a port, a mask or an extension may be left."""
    context, value = random.choice(CONTEXTS), KINDS[kind](random)
    text = context.format(value)
    left = scrub(text)
    whole = _digits(left) <= _digits(context) + 5 if kind != "email" else "@" not in left
    return "" if kind in find_pii(text) and value not in left and whole else text


def ordinary() -> dict[str, list[str]]:
    """Texts by source. Those outside the project are read where they are."""
    found = {
        "support (shipped)": [path.read_text() for path in sorted((ROOT / "datasets/support/corpus").rglob("*.md"))]
    }
    for name in ("claude-docs", "scifact"):
        path = DATA / name / "corpus.jsonl"
        if path.exists():
            found[name] = list(_texts(path))
        else:
            print(f"skipped {name}: no {path}; set TOUCHSTONE_SHARED_DATA")
    return found


def _texts(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        yield json.loads(line)["text"]


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))


def _marked(chunk: str) -> str:
    """What was taken for personal data, with a little around it."""
    cleaned = scrub(chunk)
    at = next((at for at, (a, b) in enumerate(zip(chunk, cleaned, strict=False)) if a != b), 0)
    return repr(f"{chunk[max(0, at - 30) : at + 40]} -> {cleaned[at : at + 10]}")


if __name__ == "__main__":
    main()
