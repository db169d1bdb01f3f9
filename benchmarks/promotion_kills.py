"""`kill -9` over promotion, and many promotions at once: nothing is lost or doubled, the state is old or new.

python -m benchmarks.promotion_kills [--kills 200] [--promotions 50] [--rounds 5] [--rollbacks 10] [--seed 1]

A child goes candidate -> approval -> promotion -> roll-back without end, on a real ledger and a real index: the two
bundles have one retrieval config in two editions, so that every promotion and every roll-back moves the live index to
another table. It acknowledges each act when it returned, and is killed by SIGKILL at a random moment. The children are
forked from a process that has the imports behind it; each opens its own ledger and its own index.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from tasks.environment import apply_defaults
from tasks.index_table import open_table
from tasks.indexing import ensure_index
from tasks.ledger import Ledger
from tasks.live_index import live_pointer
from tasks.promotions import Done, ask, decide, promote, repair, roll_back
from tasks.release_index import index_for
from tasks.releases import append_release, read_release
from touchstone import release_steps as steps
from touchstone.bundle import Bundle
from touchstone.definition import Definition
from touchstone.errors import BadInput, LedgerConflict
from touchstone.index import IndexVersion
from touchstone.ledger import GENESIS, EventKind, LedgerEvent, content_digest, encode_payload
from touchstone.prompts import Prompt
from touchstone.release import Deployment
from touchstone.release_index import index_fits
from touchstone.release_policy import ReleasePolicy
from touchstone.retrieval_config import RetrievalConfig
from touchstone.settings import Settings

POSTGRES = "postgresql+psycopg://root@127.0.0.1:5432/test"
ROOT = Path(__file__).parents[1]
KILLS_PER_LINE = 25  # then another environment begins, so that no line grows long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--promotions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--postgres", default=POSTGRES, help="Skipped when it cannot be reached")
    options = parser.parse_args()
    apply_defaults()
    with tempfile.TemporaryDirectory() as folder:
        if options.kills:
            print(killed(Path(folder), options.kills, random.Random(options.seed)), flush=True)
        if options.rollbacks:
            print(effect(Path(folder) / "effect", options.rollbacks), flush=True)
        if not options.rounds:
            return
        races("SQLite", f"sqlite:///{folder}/race.db", options.promotions, options.rounds)
        with _schema(options.postgres) as url:
            if url:
                races("PostgreSQL", url, options.promotions, options.rounds)


@dataclass
class Toll:
    """What was found after the kills. `unfinished` is no fault: the next command completes it."""

    kills: int = 0
    acknowledged: int = 0
    promotions: int = 0
    unfinished: int = 0  # the release event was there, and its index was not live yet
    lost: int = 0
    doubled: int = 0
    torn: int = 0  # neither the old nor the new bundle, or its index cannot be read
    broken: int = 0  # hash chains

    def __str__(self) -> str:
        return (
            f"{self.kills} kills over {self.acknowledged} acknowledged acts, {self.promotions} promotions: "
            f"{self.lost} lost, {self.doubled} doubled, {self.torn} neither old nor new, {self.broken} chains broken; "
            f"{self.unfinished} times the index followed with the next command"
        )


def killed(folder: Path, kills: int, chance: random.Random, longest_s: float = 0.6) -> Toll:
    """Kill children over promotion; raises SystemExit when anything was lost, doubled or torn."""
    import lancedb  # noqa: F401 - or every child would spend its life on the import

    settings, toll = Settings(root=folder), Toll()
    bundles = _in_child(lambda: _built(settings))
    while toll.kills < kills:
        line = settings.model_copy(update={"environment": f"line-{toll.kills}"})
        acknowledged: list[int] = []
        for _ in range(min(KILLS_PER_LINE, kills - toll.kills)):
            acknowledged += _killed_child(line, bundles, chance.uniform(0.0, longest_s))
            toll.kills += 1
            _count(toll, _in_child(functools.partial(_inspected, line, acknowledged)))
        toll.acknowledged += len(acknowledged)
        toll.promotions += int(_in_child(functools.partial(_promotions, line)))
    if toll.lost or toll.doubled or toll.torn or toll.broken:
        raise SystemExit(f"FAILED: {toll}")
    return toll


def _count(toll: Toll, found: str) -> None:
    for name, count in json.loads(found).items():
        setattr(toll, name, getattr(toll, name) + count)


def _built(settings: Settings) -> str:
    """Two bundles on one retrieval config in two editions, as JSON."""
    corpus = settings.root / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"id": f"d{n}", "text": f"Chapter {n} of the book."}) for n in range(5)))
    found = []
    for number, chunk_size in enumerate((64, 128), start=1):
        known = {"name": "help", "source": {"path": "corpus.jsonl"}, "embedding_model": "hashing", "chunk_overlap": 8}
        config = RetrievalConfig.model_validate(known | {"version": f"{number}.0.0", "chunk_size": chunk_size})
        index = ensure_index(config, corpus, settings.lance)
        found.append(deployment(f"bundle-{number}", config, index).model_dump(mode="json"))
    return json.dumps(found)


def deployment(name: str, config: RetrievalConfig | None = None, index: IndexVersion | None = None) -> Deployment:
    """A bundle that needs one approval and no canary."""
    bundle = Bundle(name=name, model="openai/gpt-4o-2024-11-20", prompt=f"{name}@1.0.0")
    prompt = Prompt(version="1.0.0", template=f"{name}: {{question}}")
    definition = Definition(bundle=bundle, prompt=prompt, retrieval=config, index=index)
    policy = ReleasePolicy.model_validate({"canary": {"required": False}})
    return Deployment(
        definition=definition, fingerprint=definition.fingerprint, gate_key="gate", dataset="support", policy=policy
    )


def _fork(act: Callable[[Callable[[str], object]], object]) -> tuple[int, int]:
    """A child that calls `act` with a function that sends words; returns (its pid, where the words arrive)."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of lancedb, nothing of which has run here
        pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        act(lambda word: os.write(write, f"{word}\n".encode()))
    except BaseException as error:
        os.write(write, f"failed {error!r}\n".encode())
    finally:
        os._exit(0)


def _in_child(act: Callable[[], str]) -> str:
    """What `act` returns; it may use LanceDB, whose threads do not survive the next fork."""
    pid, read = _fork(lambda say: say(act()))
    with os.fdopen(read) as pipe:
        text = pipe.read().strip()
    os.waitpid(pid, 0)
    if text.startswith("failed"):
        raise SystemExit(f"FAILED: {text}")
    return text


def _killed_child(settings: Settings, bundles: str, seconds: float) -> list[int]:
    """A child that is killed after so many seconds at work; the sequences that it acknowledged."""
    pid, read = _fork(functools.partial(_work, settings, bundles))
    with os.fdopen(read) as pipe:
        words = [pipe.readline().strip()]  # it is at work
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        words += pipe.read().split("\n")
    if wrong := [word for word in words if word.startswith("failed")]:
        raise SystemExit(f"FAILED: a child stopped by itself: {wrong}")
    return [int(word) for word in words[1:] if word]


def _work(settings: Settings, bundles: str, say: Callable[[str], object]) -> None:
    """Release and roll back without end, from whatever a killed child has left."""
    ledger = Ledger(settings.ledger, settings.environment)
    first, second = (Deployment.model_validate(one) for one in json.loads(bundles))
    say("ready")
    repair(settings, ledger)
    while True:
        state = read_release(ledger)
        if state.champion and state.champion.deployment.name == second.name:
            say(str(_done(roll_back(settings, ledger, "Ada", "worse"))))
            continue
        if state.candidate is None:
            payload = steps.candidate(state, second if state.champion else first, "ci", "passed")
            say(str(append_release(ledger, state, EventKind.RELEASE_CANDIDATE, payload).sequence))
        request = ask(ledger)
        decided = decide(settings, ledger, "approve", "Ada", "good", via="command", approval_id=request.approval_id)
        if decided.event:  # else a killed child had come that far
            say(str(decided.event.sequence))
        assert decided.promoted, decided
        say(str(_done(decided.promoted)))


def _done(done: Done) -> int:
    assert not done.index_error, done.index_error
    return done.event.sequence


def _inspected(settings: Settings, acknowledged: list[int]) -> str:
    """What is wrong with a line after a kill, as JSON of Toll's fields."""
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        events, state = ledger.events(), read_release(ledger)
        unfinished = torn = 0
        if state.champion:
            definition = state.champion.deployment.definition
            index, live = index_for(ledger, definition), live_pointer(ledger, "help")
            assert definition.retrieval
            unfinished = not (live and index_fits(live.index, definition.retrieval))
            torn = not (index and _readable(settings, index) and (live is None or _readable(settings, live.index)))
    known = {event.sequence for event in events}
    found = {
        "lost": len(set(acknowledged) - known),
        "doubled": len(acknowledged) - len(set(acknowledged)) + doubled(events),
        "torn": int(torn),
        "unfinished": int(unfinished),
        "broken": int(not chain_holds(events)),
    }
    return json.dumps(found)


def _readable(settings: Settings, index: IndexVersion) -> bool:
    return open_table(settings.lance, index.table, index.version).count_rows() == index.chunks


def _promotions(settings: Settings) -> str:
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        return str(len(ledger.events(EventKind.RELEASE_PROMOTED)))


def doubled(events: Sequence[LedgerEvent]) -> int:
    """Steps that were taken twice: questions and promotions per candidate, words per person and question."""
    taken: list[tuple[object, ...]] = []
    candidate = 0
    for event in events:
        if event.kind is EventKind.RELEASE_CANDIDATE:
            candidate = event.sequence
        elif event.kind in {EventKind.APPROVAL_ASKED, EventKind.RELEASE_PROMOTED}:
            taken.append((event.kind, candidate))
        elif event.kind is EventKind.APPROVAL_GIVEN:
            taken.append((event.kind, event.payload["approval_id"], event.payload["by"]))
    return len(taken) - len(set(taken))


def chain_holds(events: Sequence[LedgerEvent]) -> bool:
    """Every leaf names the digest of the one before, and of its own payload; no number is missing."""
    previous = GENESIS
    for sequence, event in enumerate(events, start=1):
        payload = content_digest(encode_payload(event.payload, event.salt or ""))
        if (event.sequence, event.previous, event.payload_digest) != (sequence, previous, payload):
            return False
        previous = event.digest
    return True


def races(name: str, url: str, promotions: int, rounds: int) -> None:
    """So many promotions of one approved candidate at once, from two processes; SystemExit unless exactly one wins."""
    for number in range(rounds):
        told = race(url, f"race-{number}", promotions)
        won = told.count("promoted")
        if won != 1 or len(told) != promotions:
            raise SystemExit(f"FAILED: {won} of {len(told)} promotions on {name} won: {told}")
    print(
        f"{name}: {rounds} x {promotions} promotions at once from two processes: 1 won, {promotions - 1} were told so"
    )


def race(url: str, environment: str, promotions: int) -> list[str]:
    """What each of so many promotions was told: `promoted`, or the kind of its refusal and its message."""
    with closing(Ledger(url, environment)) as ledger:
        _approved(ledger)
        command = [sys.executable, "-m", "benchmarks.promotion_kills", "--race", url, environment]
        command += [str(promotions // 2)]
        processes = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout
            process.stdout.readline()  # it is ready
        outputs = [_started(process) for process in processes]
        told = [told for output in outputs for told in json.loads(output())]
        events = ledger.events(EventKind.RELEASE_PROMOTED)
        if len(events) != 1 or not chain_holds(ledger.events()):
            raise SystemExit(f"FAILED: {len(events)} promotions are in the ledger")
    return told


def _started(process: subprocess.Popen[str]) -> Callable[[], str]:
    """Let it go; the answer gives what it said."""
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()
    return lambda: process.communicate(timeout=120)[0]


def _approved(ledger: Ledger) -> None:
    """A line whose candidate has all that it needs."""
    state = read_release(ledger)
    payload = steps.candidate(state, deployment("bundle-1"), "ci", "passed")
    append_release(ledger, state, EventKind.RELEASE_CANDIDATE, payload)
    request, state = ask(ledger), read_release(ledger)
    given = {"approval_id": request.approval_id, "via": "command", "now": datetime.now(UTC)}
    append_release(
        ledger, state, EventKind.APPROVAL_GIVEN, steps.give_approval(state, "approve", "Ada", "good", **given)
    )


def _compete(url: str, environment: str, threads: int) -> None:
    """One of the processes: as many promotions as threads, all at the word `go`."""
    settings, ledger = Settings(), Ledger(url, environment)
    barrier = threading.Barrier(threads + 1)

    def attempt(number: int) -> str:
        barrier.wait()
        try:
            promote(settings, ledger, f"person {number}", "good")
        except (BadInput, LedgerConflict) as error:
            return f"{type(error).__name__}: {error}"
        return "promoted"

    with ThreadPoolExecutor(threads) as pool:
        told = [pool.submit(attempt, number) for number in range(threads)]
        print("ready", flush=True)
        sys.stdin.readline()
        barrier.wait()
        print(json.dumps([one.result() for one in told]), flush=True)


def effect(root: Path, rollbacks: int) -> str:
    """From the start of `touchstone rollback` until its event is in the ledger, where the gateway looks."""
    root.mkdir()
    settings = Settings(root=root)
    walls, used = [], []
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        for number in range(rollbacks + 1):
            _released(settings, ledger, deployment(f"bundle-{number}"))
        for _ in range(rollbacks):
            before = read_release(ledger).sequence
            started = time.monotonic()
            command = [sys.executable, "-m", "cli.main", "rollback", "--reason", "worse"]
            process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)})
            while not ledger.events(EventKind.RELEASE_ROLLED_BACK, since=before):
                time.sleep(0.01)
            walls.append(time.monotonic() - started)
            process.kill()  # what it would do now is to tell MLflow and Prefect
            used.append(os.wait4(process.pid, 0)[2].ru_utime)
    return (
        f"rollback: in effect {statistics.median(walls):.2f} s after its start (median of {rollbacks}, worst "
        f"{max(walls):.2f} s), for {statistics.median(used):.2f} s of CPU"
    )


def _released(settings: Settings, ledger: Ledger, wanted: Deployment) -> None:
    rules = ReleasePolicy.model_validate({"canary": {"required": False}, "approval": {"required": 0}})
    state = read_release(ledger)
    payload = steps.candidate(state, wanted.model_copy(update={"policy": rules}), "ci", "passed")
    append_release(ledger, state, EventKind.RELEASE_CANDIDATE, payload)
    promote(settings, ledger, "Ada", "good")


@contextmanager
def _schema(server: str) -> Iterator[str | None]:
    """A schema of its own on a PostgreSQL server, dropped afterwards; None when there is no server."""
    engine = sa.create_engine(server)
    name = f"promotion_{uuid.uuid4().hex[:8]}"
    try:
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {name}"))
    except OperationalError as error:
        print(f"PostgreSQL: skipped, {error.orig}")
        yield None
        return
    try:
        yield f"{server}?options=-csearch_path%3D{name}"
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text(f"DROP SCHEMA {name} CASCADE"))
        engine.dispose()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--race"]:
        _compete(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
