"""Verification of an exported ledger: which changes it finds, and how many records a second it verifies.

The export is written by the real ledger on SQLite. Every bit of its evidence is flipped (>= 1 Mbit), every line is
deleted, doubled and moved to every other place, alone and together with its payload, and the log is cut after an
anchor. The limit of undetected changes is 0; of the speed, 100,000 records a second on one core.

How a flip is judged: `Chain.follow` takes lines in order and keeps a state, so the state before line i is the same
whether a later bit was flipped or not. It is kept once per line; for each flip the whole rest of the two files, with
the flip, is followed from there, to the end, where `conclude` compares it with the signed checkpoints. That is the full
verification without repeating the part in front of the flip. Flips in checkpoints and contents are judged by the
whole of `verify_export`, as is a random sample of all flips from files on disk; both must agree.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from tasks.audit_export import export_ledger, verify_folder
from tasks.checkpoints import make_checkpoint
from tasks.ledger import Ledger
from tasks.ledger_keys import rotate
from tasks.signing import new_key, verify_signature
from touchstone.audit import Chain, Export, conclude, read_checkpoints, verify_export
from touchstone.checkpoint import Checkpoint, SignedCheckpoint, Tampered
from touchstone.ledger import GENESIS, EventKind, Leaf, content_digest, encode_payload
from touchstone.merkle import Frontier
from touchstone.settings import Settings

SPEED_LIMIT = 100_000
Files = dict[str, bytes]  # records, payloads, checkpoints, and each content by its digest


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=180, help="of the attacked export")
    arguments.add_argument("--sample", type=int, default=2000, help="flips that are verified from disk as well")
    arguments.add_argument("--records", type=int, default=200_000, help="whose verification is timed")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder, anchors = write_export(root, options.events, random.Random(options.seed))
        files = read_files(folder)
        bits = 8 * sum(map(len, files.values()))
        print(
            f"export: {options.events} events and more, {bits / 1e6:.2f} Mbit of evidence, {len(anchors)} checkpoints"
        )
        missed = flip_every_bit(files)
        missed += flip_on_disk(folder, files, options.sample, random.Random(options.seed))
        missed += change_lines(files)
        missed += cut_after_anchors(files, anchors)
    print(f"undetected: {missed} (limit 0)")
    measure_speed(options.records)


def write_export(root: Path, events: int, draw: random.Random) -> tuple[Path, list[SignedCheckpoint]]:
    """A ledger with decisions, contents, an erasure and a rotation of keys; its folder and its checkpoints."""
    settings, anchors = Settings(root=root), []
    with closing(Ledger(settings.ledger, "default")) as ledger:
        for number in range(events):
            payload = decision(number, draw.random())
            content = draw.randbytes(600) if number % 3 == 0 else None
            ledger.append(EventKind.GATE_DECIDED, f"gate:b{number % 5}", payload, content=content)
            if number % (events // 8) == 0:
                anchors.append(make_checkpoint(settings, ledger))
            if number == 10:
                ledger.erase(5, "asked for", "the benchmark")
            if number == events // 2:
                rotate(settings, ledger)
        anchors.append(export_ledger(settings, ledger, root / "export"))
    return root / "export", anchors


def decision(number: int, difference: float) -> dict[str, object]:
    reason = f"non-inferior on faithfulness by {difference:.4f}, naïve words — and more"
    return {"gate_key": f"g{number}", "verdict": "pass", "reason": reason, "run_keys": [f"r{number}", "r0"]}


def read_files(folder: Path) -> Files:
    files = {name: (folder / f"{name}.jsonl").read_bytes() for name in ("records", "payloads", "checkpoints")}
    return files | {path.name: path.read_bytes() for path in (folder / "contents").iterdir()}


def counts(files: Files) -> list[str]:
    lines = [f"{files[name].count(10)} {name}" for name in ("records", "payloads", "checkpoints")]
    return [*lines, f"{len(files) - 3} contents"]


def lines_of(content: bytes, start: int = 0) -> Iterator[bytes]:
    """The lines from byte `start` on, as a file gives them."""
    while start < len(content):
        end = content.find(b"\n", start) + 1 or len(content)
        yield content[start:end]
        start = end


def is_found(files: Files, anchors: list[SignedCheckpoint] | None = None) -> bool:
    """By the whole verification."""
    contents = [(name, body) for name, body in files.items() if len(name) == 64]
    records, payloads, checkpoints = (lines_of(files[name]) for name in ("records", "payloads", "checkpoints"))
    export = Export(records, payloads, checkpoints, contents)
    return not verify_export(export, verify_signature, None, anchors).verified


def flip_every_bit(files: Files) -> int:
    """How many single-bit flips are not found."""
    if is_found(files):
        raise SystemExit("the export does not verify before anything was changed")
    started, missed, flips = time.process_time(), 0, 0
    for name, content in files.items():
        judge = resumed(files, name) if name in ("records", "payloads") else whole(files, name)
        changed = bytearray(content)
        for position in range(len(content)):
            for bit in range(8):
                changed[position] ^= 1 << bit
                missed += not judge(bytes(changed), position)
                changed[position] ^= 1 << bit
                flips += 1
    print(f"single-bit flips: {flips:,}, {missed} undetected ({time.process_time() - started:.0f} CPU-s)")
    return missed


def whole(files: Files, name: str) -> Callable[[bytes, int], bool]:
    """A content is compared with its name, which needs no other file; a checkpoint file by everything."""
    if name != "checkpoints":
        return lambda changed, position: hashlib.sha256(changed).hexdigest() != name
    return lambda changed, position: is_found(files | {name: changed})


def resumed(files: Files, name: str) -> Callable[[bytes, int], bool]:
    """Judges a change at a byte of records or payloads from the kept state before its line."""
    checkpoints = read_checkpoints(lines_of(files["checkpoints"]))
    contents = [(digest, body) for digest, body in files.items() if len(digest) == 64]
    chain = Chain(frozenset(checkpoint.size for checkpoint in checkpoints))
    states, starts = [kept(chain)], {"records": [0], "payloads": [0]}
    for record, payload in zip(lines_of(files["records"]), lines_of(files["payloads"]), strict=True):
        chain.follow([record], [payload])
        states.append(kept(chain))
        starts["records"].append(starts["records"][-1] + len(record))
        starts["payloads"].append(starts["payloads"][-1] + len(payload))
    line_at = [line for line in range(len(states) - 1) for _ in range(*starts[name][line : line + 2])]

    def judge(changed: bytes, position: int) -> bool:
        line = line_at[position]
        now = files | {name: changed}
        state = kept(states[line])
        try:
            state.follow(*(lines_of(now[of], starts[of][line]) for of in ("records", "payloads")))
            conclude(state, checkpoints, contents, verify_signature)
        except Tampered:
            return True
        return False

    return judge


def kept(chain: Chain) -> Chain:
    """A copy that goes on by itself."""
    return Chain(
        sizes=chain.sizes,
        environment=chain.environment,
        head=chain.head,
        tree=Frontier(chain.tree.size, chain.tree.roots),
        marks=dict(chain.marks),
        needed=list(chain.needed),
        contents=dict(chain.contents),
        blanks=list(chain.blanks),
    )


def flip_on_disk(folder: Path, files: Files, sample: int, draw: random.Random) -> int:
    """A random sample of the flips, each in the real file, verified as `touchstone audit verify` does it."""
    paths = {name: folder / (f"contents/{name}" if len(name) == 64 else f"{name}.jsonl") for name in files}
    names = draw.choices(list(files), [len(content) for content in files.values()], k=sample)
    missed = 0
    for name in names:
        changed = bytearray(files[name])
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        paths[name].write_bytes(changed)
        missed += verify_folder(folder).verified
        paths[name].write_bytes(files[name])
    if not verify_folder(folder).verified:
        raise SystemExit("the export was not put back as it was")
    print(f"of these, by the whole verification of files on disk: {sample:,} at random, {missed} undetected")
    return missed


def change_lines(files: Files) -> int:
    """Every line gone, doubled, and moved to every other place; of records also together with their payloads."""
    missed = changes = 0
    for names in (("records",), ("payloads",), ("checkpoints",), ("records", "payloads")):
        lines = {name: list(lines_of(files[name])) for name in names}
        count = len(lines[names[0]])
        for at in range(count):
            for to in (None, *range(count)):
                now = {name: b"".join(moved(of, at, to)) for name, of in lines.items()}
                missed += not is_found(files | now)
                changes += 1
    for name in [name for name in files if len(name) == 64]:
        missed += not is_found({other: body for other, body in files.items() if other != name})
        changes += 1
    print(f"lines and contents deleted, doubled, moved: {changes:,}, {missed} undetected")
    return missed


def moved(lines: list[bytes], at: int, to: int | None) -> list[bytes]:
    """Without line `at` (to: None), with it twice (to: at), or with it at `to`."""
    rest = lines[:at] + lines[at + 1 :]
    if to is None:
        return rest
    return [*lines[:at], *lines[at:][:1], *lines[at:]] if to == at else [*rest[:to], lines[at], *rest[to:]]


def cut_after_anchors(files: Files, anchors: list[SignedCheckpoint]) -> int:
    """The log cut at every length, with the checkpoints and contents that fit, against the newest anchor."""
    records, payloads = list(lines_of(files["records"])), list(lines_of(files["payloads"]))
    signed = list(lines_of(files["checkpoints"]))
    missed = unseen = 0
    for size in range(1, len(records)):
        now = {
            "records": b"".join(records[:size]),
            "payloads": b"".join(payloads[:size]),
            "checkpoints": b"".join(signed[: sum(anchor.size <= size for anchor in anchors)]),
        }
        kept = b"".join(records[:size])
        now |= {name: body for name, body in files.items() if len(name) == 64 and name.encode() in kept}
        missed += not is_found(now, anchors)
        unseen += not is_found(now)
    print(f"cuts, with the anchor: {len(records) - 1}, {missed} undetected; without it {unseen} look whole")
    return missed


def measure_speed(records: int) -> None:
    """Records a second, from files on disk to the report, on one core; and what plain hashing of them takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_large(Path(name), records)
        best = min(timed(lambda: check(folder, records)) for _ in range(3))
        floor = min(timed(lambda: hash_lines(folder)) for _ in range(3))
        size = sum((folder / f"{of}.jsonl").stat().st_size for of in ("records", "payloads"))
    rate = records / best
    print(
        f"speed: {records:,} records ({size / records:.0f} bytes each with their payload) in {best:.2f} CPU-s, "
        f"{rate:,.0f} records/s (limit {SPEED_LIMIT:,}); their SHA-256 alone, once a line: {records / floor:,.0f}/s"
    )


def write_large(root: Path, records: int) -> Path:
    """An export of that many records, written without a ledger, whose appends would take an hour."""
    key, folder, head, tree = new_key(), root / "export", GENESIS, Frontier()
    folder.mkdir()
    with (folder / "records.jsonl").open("wb") as leaves, (folder / "payloads.jsonl").open("wb") as payloads:
        for sequence in range(1, records + 1):
            first = sequence == 1
            kind = EventKind.KEY_CREATED if first else EventKind.GATE_DECIDED
            payload = {"public_key": key.public_key} if first else decision(sequence, 0.5)
            evidence = encode_payload(payload, "0" * 32)
            leaf = Leaf(
                environment="default",
                sequence=sequence,
                at="2026-11-28T00:00:00.000000+00:00",
                kind=kind,
                subject=f"gate:b{sequence % 5}",
                payload_digest=content_digest(evidence),
                previous=head,
            )
            encoded = leaf.encoded()
            head = hashlib.sha256(encoded).hexdigest()
            tree.add(encoded)
            leaves.write(encoded + b"\n")
            payloads.write(evidence + b"\n")
    checkpoint = Checkpoint(
        environment="default",
        size=records,
        root=tree.root().hex(),
        head=head,
        at="2026-11-28T00:00:00.000000+00:00",
        key_id=key.key_id,
        previous=GENESIS,
    )
    (folder / "checkpoints.jsonl").write_bytes(checkpoint.sign(key.sign).encoded() + b"\n")
    return folder


def check(folder: Path, records: int) -> None:
    report = verify_folder(folder)
    if not report.verified or report.records != records:
        raise SystemExit(f"the large export does not verify: {report.finding}")


def hash_lines(folder: Path) -> None:
    for name in ("records", "payloads"):
        with (folder / f"{name}.jsonl").open("rb") as lines:
            for line in lines:
                hashlib.sha256(line).digest()


def timed(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
