"""A crashed run is taken over by one other run, and only when no process works on it any more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks import crashed_runs
from tasks.crashed_runs import LeftAlone, Takeover, claim, note_flow_run, spool_of
from tasks.spool import Spool

RUN = "5f5d1bb7-a8a3-4c13-91e3-341893be2e72"
ASKED = {"bundle": "support", "dataset": "support", "limit": 5, "retry_failures": False}


def spooled(state: Path, monkeypatch: pytest.MonkeyPatch, flow_run: str | None = RUN, hour: int = 6) -> Spool:
    """A run that a flow run has begun."""
    spool = Spool(state / "runs" / f"support-support-20261128-0{hour}3000-53d4")
    spool.write_json("manifest.json", "{}")
    with monkeypatch.context() as patch:
        patch.setattr(crashed_runs, "flow_run_id", lambda: flow_run)
        note_flow_run(spool)
    return spool


def test_a_run_is_found_by_the_flow_run_that_worked_on_it_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spooled(tmp_path, monkeypatch, flow_run=None, hour=5)
    spool = spooled(tmp_path, monkeypatch)
    found = spool_of(tmp_path, RUN)
    assert found is not None
    assert found.run_key == spool.run_key
    spooled(tmp_path, monkeypatch, flow_run="another")
    assert spool_of(tmp_path, RUN) is None


def test_of_many_that_want_it_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spooled(tmp_path, monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: claim(tmp_path, RUN, ASKED), range(16)))
    (taken,) = [answer for answer in answers if isinstance(answer, Takeover)]
    assert taken.resume == spool.run_key


def test_while_a_process_still_works_on_it_nobody_gets_it_and_afterwards_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spooled(tmp_path, monkeypatch)
    with spool.locked():
        left = claim(tmp_path, RUN, ASKED)
    assert isinstance(left, LeftAlone)
    assert "is being run by another process" in left.reason
    assert isinstance(claim(tmp_path, RUN, ASKED), Takeover)


def test_a_run_that_crashed_before_anything_was_paid_begins_anew_as_it_was_asked_for(tmp_path: Path) -> None:
    taken = claim(tmp_path, RUN, ASKED)
    assert isinstance(taken, Takeover)
    assert (taken.request.limit, taken.resume) == (5, None)
    assert isinstance(claim(tmp_path, RUN, ASKED), LeftAlone)


def test_a_resumption_that_is_retried_by_hand_keeps_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crashed_runs, "flow_run_id", lambda: "resumption")
    assert isinstance(claim(tmp_path, RUN, ASKED), Takeover)
    assert isinstance(claim(tmp_path, RUN, ASKED), Takeover)
    monkeypatch.setattr(crashed_runs, "flow_run_id", lambda: "another")
    assert isinstance(claim(tmp_path, RUN, ASKED), LeftAlone)
