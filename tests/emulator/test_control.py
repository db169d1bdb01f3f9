"""Control endpoints refuse bad input by name, and the counters tell what was paid for."""

from typing import Any

import pytest

CALL = {"model": "m", "messages": [{"role": "user", "content": "Question: x"}]}


@pytest.mark.parametrize(
    ("faults", "named"),
    [
        ({"kind": "cut"}, "JSON list"),
        ([3], "faults[0]"),
        ([{"kind": "cut"}, {"kind": "explode"}], "faults[1].kind: unknown kind 'explode'"),
        ([{"kind": "cut", "retry_after_s": 1}], "faults[0].retry_after_s: unknown field of 'cut'"),
        ([{"kind": "cut", "share": 1.5}], "faults[0].share"),
        ([{"kind": "cut", "share": "half"}], "faults[0].share"),
        ([{"kind": "cut", "times": 0}], "faults[0].times"),
        ([{"kind": "cut", "models": "gpt-4"}], "faults[0].models"),
        ([{"kind": "server_error", "status": 200}], "faults[0].status"),
        ([{"kind": "wrong_model"}], "faults[0].model"),
        ([{"kind": "latency", "median_ms": -1}], "faults[0].median_ms"),
        ([{"kind": "drip", "chunk_bytes": 0.5}], "faults[0].chunk_bytes"),
    ],
)
def test_a_bad_fault_is_refused_and_the_old_ones_stay(emulator: Any, faults: object, named: str) -> None:
    emulator.fail({"kind": "length"})
    status, answer = emulator.send("PUT", "/control/faults", faults)
    assert status == 400
    assert named in answer["error"]["message"]
    assert emulator.send("GET", "/control/state")[1]["faults"] == [{"kind": "length", "share": 1.0}]


@pytest.mark.parametrize(("aliases", "named"), [([], "JSON object"), ({"gpt-4": 4}, "gpt-4"), ({"": "x"}, "''")])
def test_a_bad_alias_is_refused(emulator: Any, aliases: object, named: str) -> None:
    status, answer = emulator.send("PUT", "/control/aliases", aliases)
    assert status == 400
    assert named in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/control/faults", "/control/aliases"])
def test_a_control_body_that_is_not_json_is_refused(emulator: Any, path: str) -> None:
    assert emulator.send("PUT", path, raw=b"[{")[0] == 400


def test_an_unknown_control_route_lists_the_known_ones(emulator: Any) -> None:
    status, answer = emulator.send("GET", "/control/calls")
    assert status == 404
    assert "PUT /control/faults" in answer["error"]["message"]


def test_aliases_replace_the_given_names_and_null_removes_one(emulator: Any) -> None:
    emulator.send("PUT", "/control/aliases", {"a": "one", "b": "two"})
    _, state = emulator.send("PUT", "/control/aliases", {"a": "three", "b": None})
    assert state["aliases"] == {"a": "three"}


def test_a_body_paid_twice_shows_in_the_counters_until_the_reset(emulator: Any) -> None:
    for _ in range(2):
        emulator.send("POST", "/v1/chat/completions", CALL)
    emulator.send("POST", "/v1/embeddings", {"model": "e", "input": "x"})
    seen = emulator.counters
    assert (seen["calls"], seen["completed"], seen["completed_distinct"], seen["distinct_bodies"]) == (3, 3, 2, 2)
    assert seen["by_kind"] == {"extractive": 2, "embedding": 1}
    assert seen["by_model"] == {"m": 2, "e": 1}

    emulator.send("POST", "/control/reset")
    assert emulator.counters["calls"] == 0
    assert emulator.counters["distinct_bodies"] == 0


def test_a_text_embedded_twice_shows_in_the_counters_whatever_request_it_is_in(emulator: Any) -> None:
    for texts in (["a parcel", "a letter"], ["a letter", "a stamp"]):
        emulator.send("POST", "/v1/embeddings", {"model": "e", "input": texts})
    seen = emulator.counters
    assert (seen["embedded_texts"], seen["embedded_distinct"], seen["completed_distinct"]) == (4, 3, 2)
    assert seen["embedding_tokens"] == 11

    emulator.send("POST", "/control/reset")
    assert emulator.counters["embedded_texts"] == emulator.counters["embedded_distinct"] == 0
