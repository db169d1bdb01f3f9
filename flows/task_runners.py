"""Where shards run, by the settings: threads of this process, a Dask or a Ray cluster; here or at an address."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.asyncutils import run_coro_as_sync

from touchstone.errors import BadInput, Unmeasurable
from touchstone.settings import Settings

_CONNECT_S = 10
_ADDRESSES = {"dask": (("", "tcp", "tls"), "tcp://host:8786"), "ray": (("ray",), "ray://host:10001")}
_LOCAL_DASK = {
    "host": "127.0.0.1",
    "threads_per_worker": 1,  # one shard at a time in each process
    "dashboard_address": "127.0.0.1:0",  # None would open port 8787 all the same
    "scheduler_kwargs": {"dashboard": False},
}
_LOCAL_RAY = {
    "log_to_driver": False,  # what workers print would get into the output of `--json`
    "logging_level": logging.ERROR,
    "address": "local",  # otherwise Ray would join a cluster that it finds on this machine, or in RAY_ADDRESS
    "include_dashboard": False,
}


@contextmanager
def running_tasks(settings: Settings) -> Iterator[TaskRunner[Any]]:
    """The task runner that the settings name, connected; what it started is gone afterwards.

    Raises BadInput when its package is not installed or the address cannot be one, Unmeasurable when no cluster
    answers there.
    """
    if settings.task_runner == "threads":
        with ThreadPoolTaskRunner(max_workers=settings.task_workers) as runner:
            yield runner
        return
    runner = _cluster(settings)
    if settings.task_runner_address:
        _check_address(settings)
    with ExitStack() as stack:
        try:
            with _unmoved():
                stack.enter_context(runner)
            if settings.task_runner == "dask":
                _ = runner.client  # connects, which otherwise happens at the first task
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise Unmeasurable(f"task_runner: {_described(settings)}: {error}") from error
        # Workers report to the server of this flow run; without an address each would start a server of its own.
        stack.enter_context(temporary_settings({PREFECT_API_URL: str(get_client(sync_client=True).api_url)}))
        yield runner


def _cluster(settings: Settings) -> Any:
    address, workers = settings.task_runner_address, settings.task_workers
    try:
        if settings.task_runner == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            if address:
                return DaskTaskRunner(address=address, client_kwargs={"timeout": _CONNECT_S})
            return DaskTaskRunner(cluster_kwargs={**_LOCAL_DASK, "n_workers": workers})
        if not address:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read at import; otherwise it listens everywhere
        from prefect_ray.task_runners import RayTaskRunner
    except ImportError as error:
        raise BadInput(
            f"task_runner: {settings.task_runner} is not installed ({error}): "
            f"install touchstone[{settings.task_runner}], or use TOUCHSTONE_TASK_RUNNER=threads"
        ) from None
    if address:
        return RayTaskRunner(address, init_kwargs={"log_to_driver": False})
    return RayTaskRunner(init_kwargs={**_LOCAL_RAY, "num_cpus": workers})


def _check_address(settings: Settings) -> None:
    """Before a library tries it: Dask would wait for ever for a server that is none, Ray for minutes."""
    kind, address = settings.task_runner, settings.task_runner_address
    schemes, example = _ADDRESSES[kind]
    scheme, host, port = _parts(address)
    if scheme not in schemes or not host or not port:
        raise BadInput(f"task_runner_address {address!r} is no address of a {kind} cluster, such as {example}")
    if not PREFECT_API_URL.value():
        raise BadInput(
            f"task_runner_address {address}: workers elsewhere cannot reach the Prefect server that this process "
            "starts for itself; set PREFECT_API_URL to one that they can reach"
        )
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
        if kind == "dask":
            run_coro_as_sync(_shake_hands(address))
    except OSError as error:
        why = str(error) or f"silent for {_CONNECT_S} s"  # a TimeoutError has no text
        raise Unmeasurable(
            f"task_runner_address {address}: no {kind} cluster answers there ({why}); nothing was embedded"
        ) from None


def _described(settings: Settings) -> str:
    if not settings.task_runner_address:
        return f"no {settings.task_runner} cluster could be started on this machine"
    hint = " (one that asks for a token needs RAY_AUTH_MODE=token)" if settings.task_runner == "ray" else ""
    return f"no {settings.task_runner} cluster at {settings.task_runner_address}{hint}"


def _parts(address: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return parts.scheme, parts.hostname, parts.port
    except ValueError:  # a port that is no number
        return "", None, None


async def _shake_hands(address: str) -> None:
    from distributed import Security
    from distributed.comm.core import connect

    how = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=_CONNECT_S, **how), _CONNECT_S)
    await comm.close()


@contextmanager
def _unmoved() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, by which Prefect cancels a flow run, and LanceDB warns of its forks."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="lancedb fork support")  # they become other programs at once
            yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
