"""Embedding shards on real Dask and Ray workers: same vectors, other processes, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows import task_runners
from flows.reindex import ReindexRequest, conduct, run_as_flow
from flows.task_runners import running_tasks
from tasks.index_table import open_table
from tasks.ledger import Ledger
from tasks.live_index import live_pointer
from tasks.loading import load_settings
from tests.conftest import Project, VendorControl
from touchstone.errors import BadInput, Unmeasurable, VendorUnavailable
from touchstone.index import BuildReport, IndexVersion
from touchstone.settings import Settings

DOCUMENTS = 400  # of one chunk each: enough for several shards
VENDOR_MODEL = "openai/text-embedding-3-small"


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def in_process(prefect_server: None) -> Iterator[None]:
    """As without PREFECT_API_URL: the flow run finds the server that this process started."""
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


class Site:
    """A project with a corpus of several shards."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = project
        self._env = monkeypatch.setenv
        self.write(DOCUMENTS)
        self.configure()

    def write(self, documents: int) -> None:
        lines = [{"id": f"d{n}", "text": f"Chapter {n} is about subject {n * 7 % 101}."} for n in range(documents)]
        self.project.write("corpus.jsonl", "\n".join(json.dumps(line) for line in lines))

    def configure(self, **changes: Any) -> None:
        known = {"name": "many", "version": "1.0.0", "embedding_model": "hashing"}
        self.project.write("many.yaml", known | {"source": {"path": "corpus.jsonl"}} | changes)

    def settings(self, **names: str) -> None:
        for name, value in names.items():
            self._env(f"TOUCHSTONE_{name.upper()}", value)

    def build(self) -> BuildReport:
        return run_as_flow(ReindexRequest(config="many.yaml"))

    def build_without_prefect(self, settings: Settings | None = None) -> BuildReport:
        return conduct(settings or load_settings(), ReindexRequest(config="many.yaml"))

    def live(self) -> IndexVersion | None:
        pointer = live_pointer(Ledger(load_settings().ledger, "default"), "many")
        return pointer.index if pointer else None


@pytest.fixture
def site(project: Project, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(project, monkeypatch)


@pytest.fixture
def flow_log() -> Iterator[list[str]]:
    """What flow runs say."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Any]:
    """A scheduler with one worker, as somebody else started them; a task whose worker dies is not tried again."""
    from distributed import LocalCluster

    scheduler = {"dashboard": False, "allowed_failures": 0}
    address = "127.0.0.1:0"
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=address, scheduler_kwargs=scheduler
    ) as cluster:
        yield cluster


def vectors(lance: str, index: IndexVersion | None) -> dict[str, list[float]]:
    assert index is not None
    rows = open_table(lance, index.table, index.version).search().select(["chunk_id", "vector"]).limit(None).to_list()
    return {row["chunk_id"]: row["vector"] for row in rows}


def workers(flow_log: list[str]) -> set[int]:
    """Process ids of those that embedded."""
    (line,) = [line for line in flow_log if "chunks embedded in" in line]
    return {int(pid) for pid in re.findall(r":(\d+)", line)}


def eventually(value: Callable[[], Any], expected: Any, within_s: float = 60) -> Any:
    """Prefect's server takes events from workers in its own time, and killed processes need a moment to go."""
    deadline = time.monotonic() + within_s
    while (found := value()) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def children() -> set[str]:
    """What this process started, but for the tracker that Python itself starts with the first spawned process."""
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return {command for command in commands if "resource_tracker" not in command}


def shard_runs() -> list[tuple[int, str | None]]:
    """Chunks and state of each shard, as Prefect's page shows them."""
    with get_client(sync_client=True) as client:
        flow_run = max(client.read_flow_runs(), key=lambda run: str(run.created))
        runs = [run for run in client.read_task_runs() if run.flow_run_id == flow_run.id]
    sizes = [re.fullmatch(r"embed shard \d+: (\d+) chunks", run.name) for run in runs]
    return [(int(size[1]), run.state_name) for size, run in zip(sizes, runs, strict=True) if size]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("runner", ["threads", "dask", "ray"])
def test_two_workers_embed_what_threads_of_this_process_would(site: Site, flow_log: list[str], runner: str) -> None:
    alone = Settings(root=site.project.root, home=Path("alone"))
    expected = vectors(alone.lance, site.build_without_prefect(alone).index)
    site.settings(task_runner=runner, task_workers="2")
    before = children()
    report = site.build()
    assert (report.promoted, report.embedded_chunks, report.cost_usd) == (True, DOCUMENTS, 0)
    found = vectors(load_settings().lance, site.live())
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[chunk], expected[chunk]) for chunk in expected)

    did = workers(flow_log)
    assert did == {os.getpid()} if runner == "threads" else len(did) == 2 and os.getpid() not in did
    assert eventually(children, before) == before
    assert eventually(lambda: {state for _, state in shard_runs()}, {"Completed"}) == {"Completed"}
    assert sum(chunks for chunks, _ in shard_runs()) == DOCUMENTS

    site.configure(index="flat")  # another table, the same texts
    again = site.build_without_prefect()
    assert (again.chunks, again.embedded_chunks) == (DOCUMENTS, 0)


@pytest.fixture
def elsewhere(site: Site, vendor: VendorControl, dask_cluster: Any, prefect_server: None) -> Site:
    """A live index, and a config that from now on asks for a vendor's vectors, by a worker of the cluster."""
    site.build_without_prefect()
    site.settings(task_runner="dask", task_runner_address=dask_cluster.scheduler_address, attempts="1")
    site.configure(embedding_model=VENDOR_MODEL, embedding={"api_base": vendor.api_base})
    return site


def test_a_shard_that_fails_on_a_cluster_ends_the_build_and_the_next_one_pays_for_the_rest(
    elsewhere: Site, vendor: VendorControl, flow_log: list[str]
) -> None:
    live = elsewhere.live()
    vendor.fault("server_error", status=503)
    with pytest.raises(VendorUnavailable, match="503"):
        elsewhere.build()
    assert elsewhere.live() == live

    vendor.heal()
    report = elsewhere.build()
    assert (report.promoted, report.embedded_chunks, report.live_before) == (True, DOCUMENTS, live and live.label)
    assert workers(flow_log).isdisjoint({os.getpid()})
    assert report.embedding_calls == vendor.counters()["completed"] > 0
    assert report.cost_usd is not None
    assert report.cost_usd > 0
    elsewhere.configure(embedding_model=VENDOR_MODEL, embedding={"api_base": vendor.api_base}, index="flat")
    assert elsewhere.build_without_prefect().embedded_chunks == 0  # the vectors came home into the cache


def test_a_worker_that_is_killed_ends_the_build_and_the_live_index_stays(
    elsewhere: Site, vendor: VendorControl, dask_cluster: Any
) -> None:
    live = elsewhere.live()
    vendor.fault("timeout")

    def kill_when_it_embeds() -> None:
        eventually(lambda: vendor.counters()["calls"] > 0, True, within_s=60)
        os.kill(dask_cluster.workers[0].pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_when_it_embeds)
        with pytest.raises(Unmeasurable, match=r"a dask worker could not embed its shard: KilledWorker"):
            elsewhere.build()
        killed.result()
    assert elsewhere.live() == live


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_runner_that_is_not_installed_is_bad_input(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"prefect_{runner}.task_runners", None)
    with (
        pytest.raises(BadInput, match=rf"task_runner: {runner} is not installed.*install touchstone\[{runner}\]"),
        running_tasks(Settings(task_runner=runner)),  # pyright: ignore[reportArgumentType] - a parameter
    ):
        pass


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("address", ["here", "127.0.0.1", "http://127.0.0.1:8786", "tcp://127.0.0.1:port", "auto"])
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_what_cannot_be_an_address_of_a_cluster_is_bad_input(runner: str, address: str) -> None:
    settings = Settings.model_validate({"task_runner": runner, "task_runner_address": address})
    with pytest.raises(BadInput, match=r"task_runner_address .* such as"), running_tasks(settings):
        pass


@pytest.mark.usefixtures("in_process")
def test_workers_elsewhere_need_a_prefect_server_that_they_can_reach() -> None:
    settings = Settings(task_runner="dask", task_runner_address="tcp://127.0.0.1:8786")
    with pytest.raises(BadInput, match="set PREFECT_API_URL"), running_tasks(settings):
        pass


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("runner", "scheme"), [("dask", "tcp"), ("ray", "ray")])
def test_an_address_where_nobody_listens_is_told_at_once(runner: str, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
    settings = Settings.model_validate({"task_runner": runner, "task_runner_address": address})
    with pytest.raises(Unmeasurable, match=f"{address}: no {runner} cluster answers"), running_tasks(settings):
        pass


@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_is_no_scheduler_does_not_hang_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_runners, "_CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        settings = Settings(task_runner="dask", task_runner_address=address)
        with pytest.raises(Unmeasurable, match=f"{address}: no dask cluster answers .*silent"), running_tasks(settings):
            pass
