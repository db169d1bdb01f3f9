"""Promotions on a real ledger and a real index: one outcome, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.promotion_kills import race
from examples.support_app.retrieval import Retrievers
from tasks.gate_plan import GateRequest, champion_of
from tasks.ledger import Ledger
from tasks.live_index import live_pointer
from tasks.promotions import ask, decide, finish, promote, repair, roll_back, stop
from tasks.release_index import index_for
from tasks.releases import append_release, read_release
from tests.conftest import ROOT
from tests.core.release_line import champion, deployment, without_canary
from tests.tasks.index_site import Site
from tests.tasks.postgres import postgres_url
from touchstone import release_steps as steps
from touchstone.errors import BadInput, LedgerConflict, Unmeasurable
from touchstone.ledger import EventKind
from touchstone.release import Deployment, ReleaseState
from touchstone.release_words import clean_name, clean_reason
from touchstone.settings import Settings


class Release:
    """An environment with a real ledger in its own folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.ledger, settings.environment)

    @property
    def state(self) -> ReleaseState:
        return read_release(self.ledger)

    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.ledger.events(subject="release")]

    def candidate(self, deployed: Deployment) -> None:
        payload = steps.candidate(self.state, deployed, "ci", "passed")
        append_release(self.ledger, self.state, EventKind.RELEASE_CANDIDATE, payload)

    def canary(self) -> None:
        payload = steps.start_canary(self.state, "canary-1", "salt", "ci")
        append_release(self.ledger, self.state, EventKind.CANARY_STARTED, payload)

    def widen(self) -> None:
        append_release(self.ledger, self.state, EventKind.CANARY_WIDENED, steps.widen_canary(self.state, "not worse"))

    def graduate(self) -> None:
        append_release(self.ledger, self.state, EventKind.CANARY_GRADUATED, steps.graduate_canary(self.state, "fine"))

    def release(self, name: str, *built: Any) -> None:
        self.candidate(deployment(name, *built, **without_canary(required=0)))
        done = promote(self.settings, self.ledger, "Ada", "good")
        assert done.index_error is None

    def approve(self, by: str, **changes: Any) -> Any:
        given = {"via": "command", **changes}
        return decide(self.settings, self.ledger, "approve", by, "looks good", **given)


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    made = Release(Settings(root=tmp_path))
    yield made
    made.ledger.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_last_approval_promotes(release: Release) -> None:
    release.candidate(deployment("one", approval={"required": 2}))
    first = release.approve("Ada")
    assert (first.promoted, first.open) == (None, f"1 of 2 approvals; the others have until {expiry(release)}")
    second = release.approve("Grace")
    assert champion(second.state) == "one"
    assert second.state.champion
    assert second.state.champion.promoted_by == "Ada, Grace"
    assert release.kinds()[1:] == ["approval.asked", "approval.given", "approval.given", "release.promoted"]


def test_a_denial_promotes_nothing_and_drops_the_candidate(release: Release) -> None:
    release.candidate(deployment("one"))
    decided = decide(release.settings, release.ledger, "deny", "Ada", "too long", via="command")
    assert (decided.state.candidate, decided.state.champion, decided.promoted) == (None, None, None)


def test_an_approval_that_was_recorded_before_a_crash_is_completed_by_the_same_person(release: Release) -> None:
    release.candidate(deployment("one"))
    asked = ask(release.ledger)
    payload = steps.give_approval(
        release.state, "approve", "Ada", "good", approval_id=asked.approval_id, via="command", now=datetime.now(UTC)
    )
    append_release(release.ledger, release.state, EventKind.APPROVAL_GIVEN, payload)
    decided = release.approve("Ada")
    assert (decided.event, champion(decided.state)) == (None, "one")
    assert release.kinds().count("approval.given") == 1


def test_an_approval_that_was_recorded_before_a_crash_is_completed_by_whoever_looks_next(release: Release) -> None:
    release.candidate(deployment("one"))
    asked = ask(release.ledger)
    payload = steps.give_approval(
        release.state, "approve", "Ada", "good", approval_id=asked.approval_id, via="prefect", now=datetime.now(UTC)
    )
    append_release(release.ledger, release.state, EventKind.APPROVAL_GIVEN, payload)
    assert champion(finish(release.settings, release.ledger).state) == "one"
    again = finish(release.settings, release.ledger)
    assert (champion(again.state), again.promoted) == ("one", None)


def test_an_approval_given_to_an_older_question_counts_for_nothing(release: Release) -> None:
    release.candidate(deployment("one"))
    old = ask(release.ledger).approval_id
    release.candidate(deployment("two"))
    new = ask(release.ledger).approval_id
    with pytest.raises(BadInput, match=f"{old} is not open in default: {new} is"):
        release.approve("Ada", approval_id=old)
    assert release.state.champion is None


def test_a_word_that_does_not_count_asks_no_question_either(release: Release) -> None:
    release.candidate(deployment("one", approval={"approvers": ["Ada"]}))
    with pytest.raises(BadInput, match="Mallory may not approve"):
        release.approve("Mallory")
    assert release.kinds() == ["release.candidate"]


def test_an_expired_question_is_asked_again_only_on_request(release: Release) -> None:
    release.candidate(deployment("one", approval={"expires_hours": 1e-9}))
    expired = ask(release.ledger)
    assert ask(release.ledger) == expired
    with pytest.raises(BadInput, match="expired"):
        release.approve("Ada")
    assert ask(release.ledger, again=True).approval_id != expired.approval_id


def test_a_forged_signature_is_refused_and_the_right_one_counts(release: Release, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from tasks.signing import sign_approval

    keys = []
    for name in ("ada", "mallory"):
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / name).write_bytes(pem)
        (tmp_path / name).chmod(0o600)
        keys.append(key.public_key().public_bytes_raw().hex())
    release.candidate(deployment("one", approval={"approvers": [{"name": "Ada", "public_key": keys[0]}]}))
    request = ask(release.ledger)

    def signed(name: str, decision: str = "approve") -> str:
        return sign_approval(tmp_path / name, request.approval_id, request.fingerprint, decision)

    for signature in (None, "00" * 64, "no hex", signed("mallory"), signed("ada", "deny")):
        with pytest.raises(BadInput, match="not signed by the key"):
            release.approve("Ada", signature=signature)
    assert release.kinds()[-1] == "approval.asked"
    assert champion(release.approve("Ada", signature=signed("ada")).state) == "one"


def test_two_approvers_at_once_both_count(release: Release) -> None:
    release.candidate(deployment("one", approval={"required": 4}))
    ask(release.ledger)
    with ThreadPoolExecutor(4) as pool:
        decided = list(pool.map(release.approve, ["Ada", "Grace", "Joan", "Mary"]))
    assert champion(release.state) == "one"
    assert sum(one.promoted is not None for one in decided) == 1
    assert release.kinds().count("approval.given") == 4


def test_a_roll_back_takes_the_canary_first_and_then_the_champion(release: Release) -> None:
    release.release("one")
    release.release("two")
    release.candidate(deployment("three"))
    release.canary()
    canary = roll_back(release.settings, release.ledger, "Ada", "harm")
    assert (canary.event.payload["what"], champion(canary.state), canary.state.canary) == ("canary", "two", None)
    back = roll_back(release.settings, release.ledger, "Ada", "harm")
    assert (back.event.payload["what"], champion(back.state)) == ("champion", "one")


@pytest.mark.parametrize("how", [{"champion": True}, {"to": 2}])
def test_a_roll_back_of_the_champion_can_be_asked_for_while_a_canary_runs(release: Release, how: Any) -> None:
    release.release("one")
    release.release("two")
    release.candidate(deployment("three"))
    release.canary()
    state = roll_back(release.settings, release.ledger, "Ada", "harm", **how).state
    assert (champion(state), state.candidate) == ("one", None)


def test_a_canary_can_be_stopped_without_a_word_of_harm(release: Release) -> None:
    release.release("one")
    release.candidate(deployment("two"))
    release.canary()
    done = stop(release.settings, release.ledger, "Ada", "the sale begins")
    assert (done.event.kind, done.state.candidate) == (EventKind.CANARY_STOPPED, None)


def test_a_roll_back_is_not_stopped_by_the_canary_that_widens_meanwhile(release: Release) -> None:
    from tasks.promotions import _take

    release.release("one")
    release.candidate(deployment("two"))
    release.canary()
    seen = release.state
    release.widen()
    event = _take(
        release.ledger,
        seen,
        lambda state: (EventKind.RELEASE_ROLLED_BACK, steps.roll_back_canary(state, "Ada", "harm")),
        lambda state: state.canary and state.canary.canary_id,
    )
    assert event.payload["what"] == "canary"


def test_a_roll_back_of_another_champion_than_was_seen_is_refused(release: Release) -> None:
    from tasks.promotions import _take

    release.release("one")
    release.release("two")
    seen = release.state
    release.release("three")
    with pytest.raises(LedgerConflict, match=r"event 6 \(release.promoted\) came first"):
        _take(
            release.ledger,
            seen,
            lambda state: (EventKind.RELEASE_ROLLED_BACK, steps.roll_back(state, "Ada", "worse")),
            lambda state: state.served_since,
        )


def test_names_stay_and_reasons_lose_secrets_and_personal_data(release: Release) -> None:
    release.candidate(deployment("one"))
    reason = "asked bob@example.com, key sk-abcdefghijklmnop1234, \x1b[31mred"
    decided = decide(release.settings, release.ledger, "approve", "ada@example.com", reason, via="command")
    assert decided.event
    assert decided.event.payload["by"] == "ada@example.com"
    recorded = decided.event.payload["reason"]
    assert "bob@" not in recorded
    assert "sk-abc" not in recorded
    assert "\x1b" not in recorded


def test_a_name_is_needed_and_a_long_reason_is_cut() -> None:
    with pytest.raises(BadInput, match="--by NAME"):
        clean_name(" \n ")
    assert len(clean_reason("word " * 1000)) <= 2000


def test_a_ledger_that_cannot_be_written_says_so_and_nothing_was_done(release: Release) -> None:
    release.release("one")
    release.release("two")
    folder = release.settings.state
    state = release.state
    release.ledger.close()
    for file in folder.glob("ledger.db*"):
        file.unlink()
    folder.rmdir()
    folder.touch()
    payload = steps.roll_back(state, "Ada", "worse")
    with pytest.raises(Unmeasurable, match=r"release.rolled_back could not be recorded for default"):
        append_release(release.ledger, state, EventKind.RELEASE_ROLLED_BACK, payload)
    with pytest.raises(Unmeasurable, match="cannot say what default serves"):
        read_release(release.ledger)


# --- the index ---


def indexed(site: Site, name: str, **changes: Any) -> tuple[Any, Any]:
    """A retrieval config of the site with these changes, and its index, which is not live."""
    return site.configured(**changes), site.build(1, **changes)


@pytest.fixture
def two_tables(release: Release, site: Site) -> tuple[Release, Site]:
    """Bundle `one` was released, then `two`, whose retrieval config of the same name has another chunking."""
    release.release("one", *indexed(site, "one"))
    release.release("two", *indexed(site, "two", chunk_size=128))
    return release, site


def test_the_first_release_makes_its_index_live(release: Release, site: Site) -> None:
    config, index = indexed(site, "one")
    release.release("one", config, index)
    pointer = live_pointer(site.ledger, "help")
    assert pointer
    assert (pointer.index.label, pointer.reason) == (index.label, "released with one (event 2)")


def test_a_release_moves_the_index_and_a_roll_back_moves_it_back(two_tables: tuple[Release, Site]) -> None:
    release, site = two_tables
    config = site.configured(chunk_size=128)
    assert site.live().fingerprint == config.index_fingerprint
    done = roll_back(release.settings, release.ledger, "Ada", "worse")
    assert done.index_version == site.live().label
    assert site.live().fingerprint == site.configured().index_fingerprint


def test_a_re_index_within_the_table_is_no_part_of_a_release(release: Release, site: Site) -> None:
    config, index = indexed(site, "one")
    release.release("one", config, index)
    site.promote(site.build(2))
    release.release("two", site.configured(top_k=2), index)
    assert site.editions(site.live()) == {"2"}
    assert roll_back(release.settings, release.ledger, "Ada", "worse").index_version is None
    assert site.editions(site.live()) == {"2"}


def test_a_roll_back_returns_to_the_newest_content_that_its_bundle_was_served_from(
    release: Release, site: Site
) -> None:
    release.release("one", *indexed(site, "one"))
    site.promote(site.build(2))
    release.release("two", *indexed(site, "two", chunk_size=128))
    roll_back(release.settings, release.ledger, "Ada", "worse")
    assert site.editions(site.live()) == {"2"}


def test_a_word_index_that_a_release_needs_becomes_live_and_serves_the_bundle_before_as_well(
    release: Release, site: Site
) -> None:
    release.release("one", *indexed(site, "one"))
    release.release("two", *indexed(site, "two", search="hybrid"))
    assert site.live().has_words
    assert roll_back(release.settings, release.ledger, "Ada", "worse").index_version is None


def test_a_live_index_without_words_is_not_what_a_bundle_that_searches_words_is_served_or_gated_on(
    release: Release, site: Site
) -> None:
    config, index = indexed(site, "one", search="keyword")
    release.release("one", config, index)
    site.promote(site.build(2))
    assert not site.live().has_words
    state = release.state
    assert state.champion is not None
    definition = state.champion.deployment.definition
    retrievers = Retrievers(release.settings)
    found = retrievers.search(definition, "edition")
    retrievers.close()
    assert found is not None
    assert (found.search, found.index_version) == ("keyword", index.label)
    gated = champion_of(release.settings, release.ledger, GateRequest(), state, cast(Any, None))
    assert gated is not None
    assert gated.index_version == index.label


def test_what_a_crash_left_between_release_and_index_is_completed_once(two_tables: tuple[Release, Site]) -> None:
    release, site = two_tables
    payload = steps.roll_back(release.state, "Ada", "worse")
    append_release(release.ledger, release.state, EventKind.RELEASE_ROLLED_BACK, payload)
    assert release.state.champion
    definition = release.state.champion.deployment.definition
    serving = index_for(release.ledger, definition)
    assert serving == definition.index  # who serves the bundle reads the right index already
    assert site.live() != serving
    assert definition.index
    assert repair(release.settings, release.ledger)[1] == site.live().label == definition.index.label
    assert repair(release.settings, release.ledger)[1] is None


def test_four_who_complete_the_same_index_move_it_once(two_tables: tuple[Release, Site]) -> None:
    release, site = two_tables
    payload = steps.roll_back(release.state, "Ada", "worse")
    append_release(release.ledger, release.state, EventKind.RELEASE_ROLLED_BACK, payload)
    before = len(site.ledger.events(EventKind.INDEX_PROMOTED))
    with ThreadPoolExecutor(4) as pool:
        moved = list(pool.map(lambda _: repair(release.settings, release.ledger)[1], range(4)))
    assert [label for label in moved if label] == [site.live().label]
    assert len(site.ledger.events(EventKind.INDEX_PROMOTED)) == before + 1


def test_a_pointer_that_was_moved_after_the_release_is_not_moved_back(two_tables: tuple[Release, Site]) -> None:
    release, site = two_tables
    chosen = site.back()
    assert repair(release.settings, release.ledger)[1] is None
    assert site.live() == chosen


def test_a_promotion_whose_index_is_gone_changes_nothing(release: Release, site: Site) -> None:
    release.release("one", *indexed(site, "one"))
    config, index = indexed(site, "two", chunk_size=128)
    shutil.rmtree(Path(site.lance) / f"{index.table}.lance")
    release.candidate(deployment("two", config, index, **without_canary(required=0)))
    with pytest.raises(Unmeasurable, match="cannot be read"):
        promote(release.settings, release.ledger, "Ada", "good")
    assert champion(release.state) == "one"


def test_a_roll_back_takes_effect_although_its_index_is_gone_and_says_how_to_repeat(
    two_tables: tuple[Release, Site],
) -> None:
    release, site = two_tables
    previous = release.state.previous[0].deployment.definition.index
    assert previous
    table = Path(site.lance) / f"{previous.table}.lance"
    table.rename(site.folder / "away")
    done = roll_back(release.settings, release.ledger, "Ada", "worse")
    assert champion(done.state) == "one"
    assert done.index_error
    assert "the release stands" in done.index_error
    assert "`touchstone rollback --repair`" in done.index_error
    (site.folder / "away").rename(table)
    assert repair(release.settings, release.ledger)[1] == previous.label


# --- kills and races: short forms of benchmarks/promotion_kills.py ---


def test_kills_over_promotion_lose_nothing_and_double_nothing() -> None:
    """In a process of its own: its children are forked, which LanceDB's threads in this one might not survive."""
    command = [sys.executable, "-m", "benchmarks.promotion_kills", "--kills", "8", "--rollbacks", "0", "--rounds", "0"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr + found.stdout
    assert "0 lost, 0 doubled, 0 neither old nor new, 0 chains broken" in found.stdout


def test_of_many_promotions_from_two_processes_one_wins_and_the_others_are_told(tmp_path: Path) -> None:
    _check_race(race(f"sqlite:///{tmp_path / 'ledger.db'}", "race", 20))


def test_of_many_promotions_on_postgresql_one_wins(postgres: str) -> None:
    _check_race(race(postgres, "race", 20))


@pytest.fixture
def postgres() -> Iterator[str]:
    yield from postgres_url()


def _check_race(told: list[str]) -> None:
    assert told.count("promoted") == 1
    assert len(told) == 20
    losers = [one for one in told if one != "promoted"]
    assert all("came first" in one or "promoted bundle-1" in one for one in losers), json.dumps(losers)


def expiry(release: Release) -> str:
    candidate = release.state.candidate
    assert candidate
    assert candidate.approval
    assert datetime.fromisoformat(candidate.approval.expires_at) > datetime.now(UTC) + timedelta(hours=23)
    return candidate.approval.expires_at
