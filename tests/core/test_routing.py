"""Who answers a request key: sticky, monotone in the share, and decided with pydantic alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.gateway.release_line import prompt_definition
from touchstone.bundle import bundle_fingerprint
from touchstone.errors import Unmeasurable
from touchstone.routing import (
    Parity,
    PublishedCanary,
    PublishedFallback,
    PublishedRelease,
    Served,
    place,
    route,
)

KEYS = [f"user-{n}" for n in range(4000)]


def served(name: str, version: str = "1.0.0", **fields: object) -> Served:
    definition = prompt_definition(name, version, **fields)
    return Served(bundle=name, fingerprint=definition.fingerprint, definition=definition)


def release(share: float | None = None, status: str = "running", salt: str = "salt") -> PublishedRelease:
    canary = None
    if share is not None:
        canary = PublishedCanary(canary_id="c-1", share=share, salt=salt, status=status, served=served("new", "1.1.0"))
    return PublishedRelease(environment="default", sequence=7, champion=served("old"), canary=canary)


def on_canary(share: float, **fields: str) -> set[str]:
    return {key for key in KEYS if route(release(share, **fields), key).arm == "canary"}


def test_a_key_always_gets_the_same_arm() -> None:
    assert on_canary(0.3) == on_canary(0.3)


def test_a_widened_canary_keeps_those_who_saw_it() -> None:
    assert on_canary(0.05) < on_canary(0.25) < on_canary(0.5)


def test_a_share_of_the_keys_sees_the_canary() -> None:
    assert abs(len(on_canary(0.25)) / len(KEYS) - 0.25) < 0.03


def test_another_salt_draws_other_users() -> None:
    assert len(on_canary(0.5) & on_canary(0.5, salt="pepper")) < 0.35 * len(KEYS)


@pytest.mark.parametrize("status", ["running", "held", "graduated"])
def test_a_canary_serves_its_share_until_somebody_decides(status: str) -> None:
    assert on_canary(0.25, status=status) == on_canary(0.25)


def test_the_route_names_bundle_fingerprint_and_the_canary_that_runs() -> None:
    canary, champion = route(release(1.0), "anybody"), route(release(0.0), "anybody")
    assert (canary.bundle, canary.arm, canary.canary_id) == ("new", "canary", "c-1")
    assert (champion.bundle, champion.arm, champion.canary_id) == ("old", "champion", "c-1")
    assert champion.fingerprint == served("old").fingerprint
    assert route(release(), "anybody").canary_id is None


def test_a_place_lies_in_the_unit_interval_for_any_key() -> None:
    assert all(0 <= place("s", key) < 1 for key in ["", "\ud83d", "ü" * 1000, *KEYS[:100]])


def test_without_a_champion_the_error_says_how_to_get_one() -> None:
    with pytest.raises(Unmeasurable, match="touchstone promote"):
        route(PublishedRelease(environment="default", sequence=1, champion=None), "u")


def test_only_a_fallback_that_passed_against_the_champion_may_answer_unless_ungated_ones_are_allowed() -> None:
    champion = served("old", fallbacks=("b", "a", "c"))
    fallbacks = tuple(
        PublishedFallback(bundle=name, parity=parity, reason="")
        for name, parity in (("a", Parity.PASSED), ("b", Parity.STALE), ("c", Parity.MISSING))
    )
    published = PublishedRelease(environment="e", sequence=1, champion=champion, fallbacks=fallbacks)
    assert [one.bundle for one in published.fallbacks_of(champion)] == ["a"]
    assert [one.bundle for one in published.fallbacks_of(champion, allow_ungated=True)] == ["b", "a", "c"]
    assert published.fallbacks_of(served("other")) == ()


def test_fallbacks_are_in_no_fingerprint() -> None:
    assert served("old").fingerprint == served("old", fallbacks=("other",)).fingerprint
    named = prompt_definition("old", fallbacks=("other",))
    assert bundle_fingerprint(named.bundle, named.prompt, None) == served("old").fingerprint


@pytest.mark.parametrize("fallbacks", [("old",), ("a", "a")])
def test_a_bundle_is_no_fallback_of_itself_and_names_each_once(fallbacks: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="each once"):
        prompt_definition("old", fallbacks=fallbacks)


def test_an_app_needs_pydantic_alone() -> None:
    code = "import sys, touchstone.routing; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pydantic" in loaded
    assert not {"numpy", "scipy", "rfc8785", "sqlalchemy", "yaml", "fastapi", "mlflow"} & set(loaded)
