"""Freshness of what is retrieved: documents against their source, ages, levels, announcements."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from touchstone.freshness import decide_freshness, every_document_once
from touchstone.freshness_documents import Inspection, SourceNow, Verified, inspect
from touchstone.freshness_records import Basis, FreshnessReport, FreshnessState
from touchstone.freshness_traffic import Traffic, TrafficCounter
from touchstone.index import IndexedDocument, UnreadableDocument
from touchstone.retrieval_config import FreshnessSla

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SLA = FreshnessSla(max_age_days=30, stale_fraction=0.2, source_lag=0.05, ghosts=0.02, never_embedded=0.1)


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


def indexed(*ids: str, days_ago: float = 100) -> list[IndexedDocument]:
    at = ago(days=days_ago).isoformat()
    return [IndexedDocument(id=id, content_hash=f"{id}-1", record_hash="r", embedded_at=at, chunks=2) for id in ids]


def source(*ids: str, changed: tuple[str, ...] = ()) -> SourceNow:
    found = {id: (f"{id}-1", "r") for id in ids} | {id: (f"{id}-2", "r") for id in changed}
    return SourceNow(found, dict.fromkeys(found, 1000))


def statuses(inspection: Inspection) -> dict[str, str]:
    return {document.id: document.status.value for document in inspection.documents}


def verified_at(inspection: Inspection, id: str) -> datetime:
    return next(document.verified_at for document in inspection.documents if document.id == id)


def traffic(inspection: Inspection, retrievals: list[list[str]], segments: list[str] | None = None) -> Traffic:
    """One distinct query per retrieval."""
    ids = [document.id for document in inspection.documents]
    counter = TrafficCounter(inspection.marks(SLA.max_age_days))
    names = sorted(set(segments or ["all"]))
    segment = [names.index(name) for name in segments or ["all"] * len(retrievals)]
    line = [number for number, found in enumerate(retrievals) for _ in found]
    document = [ids.index(id) if id in ids else -1 for found in retrievals for id in found]
    hashes = np.arange(len(retrievals)) * 7919
    counter.add(names, np.array(segment), hashes, np.array(line, int), np.array(document, int))
    return counter.traffic()


def decide(
    inspection: Inspection,
    seen: Traffic,
    state: FreshnessState | None = None,
    *,
    basis: Basis = "production",
    announce: bool = True,
    **sla: Any,
) -> tuple[FreshnessReport, FreshnessState]:
    asked = SLA.model_copy(update=sla)
    before = state or FreshnessState()
    return decide_freshness("support", "t@3", inspection, seen, basis, asked, before, announce=announce)


def test_every_status_is_told_apart() -> None:
    broken = UnreadableDocument(where="e.md:1", id="e", reason="not UTF-8")
    now = SourceNow(
        {"a": ("a-1", "other record"), "b": ("b-2", "r"), "new": ("n-1", "r"), "moved": ("d-1", "r")},
        dict.fromkeys(("a", "b", "new", "moved"), 10),
        (broken,),
    )
    found = inspect(indexed("a", "b", "c", "d", "e"), now, {}, NOW)
    expected = {"a": "fresh", "b": "lagging", "c": "ghost", "d": "ghost", "e": "unverifiable"}
    assert statuses(found) == expected
    notes = {document.id: document.note for document in found.documents}
    assert (notes["d"], notes["e"]) == ("renamed to moved", "e.md:1: not UTF-8")
    assert found.warnings == ("documents of the source that cannot be read: 1, the first: e.md:1: not UTF-8",)
    assert found.never_embedded == ("new",)
    assert found.source_documents == 4


def test_when_an_unreadable_document_has_no_id_whatever_is_missing_may_be_it() -> None:
    broken = UnreadableDocument(where="all.jsonl:7", id=None, reason="not JSON")
    found = inspect(indexed("a", "b"), SourceNow({"a": ("a-1", "r")}, {"a": 5}, (broken,)), {}, NOW)
    assert statuses(found) == {"a": "fresh", "b": "unverifiable"}


def test_an_old_unchanged_document_is_verified_now() -> None:
    found = inspect(indexed("a", days_ago=900), source("a"), {}, NOW)
    assert found.ages.tolist() == [0]
    assert found.embedded_ages.tolist() == pytest.approx([900])
    assert not found.marks(30)[0].any()


def test_a_changed_document_counts_from_the_check_that_last_saw_it_equal() -> None:
    checked = ago(days=3)
    known: Verified = {"b": ("b-1", checked), "c": ("another content", checked)}
    found = inspect(indexed("a", "b", "c", "d", days_ago=50), source("a", changed=("b", "c")), known, NOW)
    assert verified_at(found, "b") == checked
    assert verified_at(found, "c") == ago(days=50)  # what was verified then was another content
    assert verified_at(found, "d") == ago(days=50)  # a ghost that no check saw
    embedded_since = inspect(indexed("b", days_ago=1), source(changed=("b",)), known, NOW)
    assert verified_at(embedded_since, "b") == ago(days=1)


def test_contents_are_known_again_by_the_start_of_their_hash() -> None:
    long, at = "0123456789abcdef" + "x" * 48, ago(days=4).isoformat()
    document = IndexedDocument(id="a", content_hash=long, record_hash="", embedded_at=at, chunks=1)
    checked = inspect([document], SourceNow({"a": (long, "")}, {"a": 9}), {}, ago(days=2)).verified
    assert checked == {"a": ("0123456789abcdef", None)}
    found = inspect([document], "gone", {"a": (checked["a"][0], ago(days=2))}, NOW)
    assert found.ages.tolist() == [2]


def test_what_the_next_check_must_know_is_the_same_while_nothing_changes() -> None:
    first = inspect(indexed("a", "b"), source("a", changed=("b",)), {}, ago(days=1))
    known = {id: (content, at or ago(days=1)) for id, (content, at) in first.verified.items()}
    second = inspect(indexed("a", "b"), source("a", changed=("b",)), known, NOW)
    assert second.verified == first.verified == {"a": ("a-1", None), "b": ("b-1", ago(days=100))}


def test_with_an_unreadable_source_ages_go_on_from_the_last_verification() -> None:
    known: Verified = {"a": ("a-1", ago(days=31)), "b": ("b-1", ago(days=29))}
    found = inspect(indexed("a", "b", days_ago=200), "corpus is gone", known, NOW)
    assert statuses(found) == {"a": "unverifiable", "b": "unverifiable"}
    report, _ = decide(found, traffic(found, [["a"], ["b"]] * 50))
    assert (report.level, report.measures["stale_fraction"].value) == ("breached", 0.5)
    for name in ("source_lag", "ghosts", "never_embedded"):
        assert (report.measures[name].value, report.measures[name].level) == (None, "unmeasurable")
    assert "corpus is gone" in report.reason
    assert (report.never_embedded.count, [document.id for document in report.documents]) == (None, ["a"])


def test_times_in_the_future_are_clipped_with_a_warning() -> None:
    found = inspect(indexed("a", "b", days_ago=-2), source("a", changed=("b",)), {"b": ("b-1", ago(days=-9))}, NOW)
    assert found.ages.tolist() == found.embedded_ages.tolist() == [0, 0]
    assert found.warnings == (
        "2 documents were embedded later than now (2026-11-20 12:00 UTC), and count as now: check clocks",
    )


def test_quarantined_documents_are_not_counted_as_never_embedded() -> None:
    found = inspect(indexed("a"), source("a", "new", "hidden"), {}, NOW, quarantined=["hidden", "a", "elsewhere"])
    assert (found.never_embedded, found.quarantined, found.source_documents) == (("new",), ("hidden",), 2)
    report, _ = decide(found, traffic(found, [["a"]]))
    assert (report.never_embedded.share, report.never_embedded.count) == (0.5, 1)
    assert (report.never_embedded.documents, report.never_embedded.quarantined) == (("new",), ("hidden",))
    assert report.level == "breached"  # nothing is sampled, so nothing is uncertain


IDS = tuple(f"d{number:02}" for number in range(20))


def one_lags(lagging_queries: int, queries: int) -> tuple[Inspection, Traffic]:
    """`d00` lags, and so many of the queries retrieve it beside three others."""
    found = inspect(indexed(*IDS), source(*IDS[1:], changed=IDS[:1]), {}, NOW)
    hits = [["d00", "d01", "d02", "d03"]] * lagging_queries
    return found, traffic(found, hits + [["d04", "d05", "d06", "d07"]] * (queries - lagging_queries))


def test_shares_count_by_traffic_and_beside_that_by_document() -> None:
    report, _ = decide(*one_lags(80, 100))
    measure = report.measures["source_lag"]
    assert (measure.value, measure.unweighted, measure.count, measure.limit) == (0.2, 0.05, 1, 0.05)
    assert measure.lower_bound is not None
    assert 0.16 < measure.lower_bound < 0.2
    assert (report.n_retrievals, report.n_queries, report.n_chunks) == (100, 100, 400)
    assert report.statuses == {"fresh": 19, "lagging": 1, "ghost": 0, "unverifiable": 0}


def test_a_document_that_nobody_retrieves_breaches_nothing() -> None:
    report, _ = decide(*one_lags(0, 100))
    assert (report.level, report.measures["source_lag"].value) == ("ok", 0.0)
    assert report.reason.startswith("within the SLA: stale_fraction 0 % (limit 20 %), source_lag 0 %")


@pytest.mark.parametrize(
    ("hits", "queries", "level"), [(80, 100, "breached"), (26, 100, "flagged"), (3, 10, "flagged"), (19, 100, "ok")]
)
def test_above_the_limit_is_flagged_and_surely_above_it_is_breached(hits: int, queries: int, level: str) -> None:
    report, _ = decide(*one_lags(hits, queries))
    assert report.measures["source_lag"].level == level
    assert report.breached is (level == "breached")


def test_a_breach_names_the_documents_responsible_by_the_traffic_they_serve() -> None:
    found = inspect(indexed(*IDS), source(*IDS[3:], changed=IDS[:2]), {}, NOW)
    report, _ = decide(found, traffic(found, [["d01", "d02", "d01"], ["d00", "d05", "d06"]] * 60))
    named = [(document.id, document.status.value) for document in report.documents]
    assert named == [("d01", "lagging"), ("d00", "lagging"), ("d02", "ghost")]
    assert [round(document.traffic_share, 3) for document in report.documents] == [0.333, 0.167, 0.167]
    assert report.documents[0].stale  # not seen equal to its source for 100 days
    assert "source_lag 50 % (limit 5 %)" in report.reason
    assert "2 documents, d01 (33 %), d00 (17 %)" in report.reason
    assert "360 chunks that 120 distinct queries" in report.reason


def test_a_breach_needs_so_many_checks_in_a_row() -> None:
    bad, good, state, levels = one_lags(80, 100), one_lags(0, 100), FreshnessState(), []
    for check in (bad, bad, good, bad, bad, bad):
        report, state = decide(*check, state, persistence=3)
        levels.append(report.level.value)
    assert levels == ["flagged", "flagged", "ok", "flagged", "flagged", "breached"]


def test_an_unmeasurable_check_neither_adds_to_the_row_nor_ends_it() -> None:
    state, levels = FreshnessState(), []
    gone = inspect(indexed(*IDS), "unmounted", {}, ago(days=71))  # embedded 29 days before: not stale yet
    for check in (one_lags(80, 100), (gone, traffic(gone, [["d00"]])), one_lags(80, 100)):
        report, state = decide(*check, state, persistence=2)
        levels.append(report.level.value)
    assert levels == ["flagged", "flagged", "breached"]
    report, state = decide(gone, traffic(gone, [["d00"]]), state, persistence=2)
    assert (report.level, report.measures["source_lag"].level) == ("breached", "unmeasurable")
    assert "source_lag was breached when it was last measured" in report.reason


def announcements(*checks: tuple[Inspection, Traffic], every: timedelta = timedelta(0)) -> list[str | None]:
    told, state = [], FreshnessState()
    for number, (found, seen) in enumerate(checks):
        later = Inspection(found.at + number * every, found.documents, source_documents=found.source_documents)
        report, state = decide(later, seen, state)
        told.append(report.announcement)
    return told


def test_only_a_change_of_level_is_announced() -> None:
    ok, flagged, breached = one_lags(0, 100), one_lags(26, 100), one_lags(80, 100)
    assert announcements(ok, ok) == [None, None]
    checks = (flagged, flagged, breached, breached, ok, ok, breached, flagged, ok)
    expected = ["flagged", None, "breached", None, "recovered", None, "breached", "flagged", "recovered"]
    assert announcements(*checks) == expected


def test_a_breach_that_lasts_is_announced_again_after_a_day() -> None:
    breached = one_lags(80, 100)
    assert announcements(*[breached] * 6, every=timedelta(hours=8)) == ["breached", None, None, "breached", None, None]
    flagged = one_lags(26, 100)
    assert announcements(*[flagged] * 4, every=timedelta(hours=30)) == ["flagged", None, None, None]


def test_a_check_that_announces_nothing_leaves_it_to_the_next_one() -> None:
    breached = one_lags(80, 100)
    silent, state = decide(*breached, announce=False)
    assert (silent.level, silent.announcement) == ("breached", None)
    loud, _ = decide(*breached, state)
    assert loud.announcement == "breached"


def test_without_sampling_the_bound_is_the_estimate() -> None:
    found = inspect(indexed(*IDS), source(*IDS[2:], changed=IDS[:2]), {}, NOW)
    report, _ = decide(found, every_document_once(found.marks(SLA.max_age_days)), basis="documents")
    measure = report.measures["source_lag"]
    assert measure.value == measure.lower_bound == measure.ci_high == measure.unweighted == 0.1
    assert (report.level, report.n_retrievals, report.documents[0].traffic_share) == ("breached", 0, 0.05)
    assert "each of 20 documents weighs the same" in report.reason


def test_ages_are_quantiles_over_what_is_retrieved() -> None:
    known: Verified = {"d00": ("d00-1", ago(days=10))}
    found = inspect(indexed(*IDS), source(*IDS[1:], changed=IDS[:1]), known, NOW)
    report, _ = decide(found, traffic(found, [["d00", "d01"]] * 90 + [["d02", "d03"]] * 10))
    assert (report.age_days.median, report.age_days.p95) == (0, 10)
    assert (report.age_days.unweighted_median, report.age_days.unweighted_p95) == (0, 0)
    assert report.embedded_age_days.median == pytest.approx(100)


def test_segments_are_measured_but_judge_nothing() -> None:
    found = inspect(indexed(*IDS), source(*IDS[1:], changed=IDS[:1]), {}, NOW)
    retrievals = [["d00", "d01"]] * 30 + [["d02", "d03"]] * 970
    seen = traffic(found, retrievals, ["billing"] * 30 + ["shipping"] * 970)
    report, _ = decide(found, seen)
    assert report.level == "ok"
    billing, shipping = report.segments["billing"], report.segments["shipping"]
    assert (billing.measures["source_lag"].value, billing.measures["source_lag"].level) == (0.5, "breached")
    assert (shipping.measures["source_lag"].value, shipping.n_chunks) == (0, 1940)
    assert billing.measures["source_lag"].unweighted is None


def test_an_empty_index_is_unmeasurable_but_for_what_was_never_embedded() -> None:
    found = inspect([], source("a", "b"), {}, NOW)
    report, _ = decide(found, every_document_once(found.marks(30)), basis="documents")
    assert {name: measure.level for name, measure in report.measures.items()} == {
        "stale_fraction": "unmeasurable",
        "source_lag": "unmeasurable",
        "ghosts": "unmeasurable",
        "never_embedded": "breached",
    }
    assert (report.age_days.median, report.documents) == (None, ())


def test_a_report_and_a_state_survive_json() -> None:
    report, state = decide(*one_lags(80, 100))
    assert FreshnessReport.model_validate(report.summary()) == report
    assert FreshnessState.model_validate_json(state.model_dump_json()) == state
