"""A few of the benchmark's faults, each one harmful change among harmless ones, on the real retrieval and judge."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.attribution import FAULTS, GOOD, Bench, Fault, World, attribute_fault, bench
from tasks.fallen_cases import read_run
from tasks.loading import load_settings


@pytest.fixture(scope="module")
def made() -> Iterator[Bench]:
    with bench(seed=1, cases=60) as found:
        yield found


@pytest.mark.parametrize("name", ["pages cut after 200 characters", "an example after the input"])
def test_the_harmful_change_is_named_among_the_harmless_ones(made: Bench, name: str) -> None:
    fault = next(fault for fault in FAULTS if fault.name == name)
    report = attribute_fault(made, fault, made.run(fault.before))
    assert report.decision.culprits == (fault.culprit,)
    assert not report.decision.by_elimination


def test_an_index_that_is_gone_cannot_be_replayed_and_keeps_the_vendor_from_being_blamed(made: Bench) -> None:
    swapped = Fault(
        "lite, silently, and an index of before that was removed",
        "model",
        lambda world: replace(world, config={}, alias={GOOD: "extractive-lite"}),
        World(config={"chunk_size": 128}),
        decoys=False,
    )
    before = made.run(swapped.before)
    index = read_run(load_settings(), before).definition.index
    assert index is not None
    shutil.rmtree(Path(load_settings().lance) / f"{index.table}.lance")
    report = attribute_fault(made, swapped, before)
    assert report.headline == "Undecided"
    assert "retrieval config differs and cannot be replayed" in report.decision.reason
    assert f"index {index.label} was cleaned away" in report.decision.would_decide
