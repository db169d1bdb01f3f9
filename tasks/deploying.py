"""Bring Prefect's server to what prefect.yaml says: only what differs is touched, and all is checked before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from tasks.arming import arm
from tasks.automations import TAG, ours, reconcile
from tasks.deploy_checks import Entry, check_rules, checked_entries
from tasks.deployment_entries import apply, triggers_of, wanted_deployment
from tasks.environment import apply_defaults
from tasks.loading import load_deployments
from tasks.standing_automations import PREFIX, TELLS, acting, gateway_block, hook_token, telling
from touchstone.deployments import Deployments
from touchstone.errors import BadInput, Unmeasurable
from touchstone.settings import Settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import Automation

_DEADLINE_S = 30  # per request
_PAGE = 200

Did = Literal["created", "updated", "removed", "unchanged", "armed", "left over", "skipped"]


@dataclass(frozen=True)
class Done:
    """One line of what a deploy did, or would do."""

    did: Did
    what: str  # work pool, deployment, automation, webhook block, suite
    name: str
    detail: str = ""


def deploy(settings: Settings, *, prune: bool = False, dry_run: bool = False) -> tuple[Done, ...]:
    """Deploy prefect.yaml of the project; running it again changes nothing.

    `prune` deletes deployments with our tag that left the file, which are else only named. Raises BadInput before
    anything is sent, and Unmeasurable when Prefect's server does not answer.
    """
    apply_defaults()
    deployments = load_deployments(settings.root)
    address = _address()
    entries = checked_entries(settings, deployments)
    with _connected(address) as client:
        known = _deployments(client)
        check_rules(settings, entries, known)
        _check_token_setting(settings)
        done = [*_pools(client, deployments, dry_run)]
        automations = ours(client)
        done += _entries(client, settings, deployments, entries, known, automations, dry_run)
        done += _left_over(client, entries, known, automations, prune, dry_run)
        done += _standing(client, settings, deployments, automations, dry_run)
    return tuple(done)


def _address() -> str:
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    if not address:
        raise BadInput(
            "PREFECT_API_URL: is not set; deployments live on a Prefect server: start one (`touchstone up`, or "
            "`prefect server start`) and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    return address


def _check_token_setting(settings: Settings) -> None:
    """What standing automations are made of must be right before deployments are sent."""
    from uuid import UUID

    if hook_token(settings)[0]:
        telling(settings, load_deployments(settings.root).suites(), UUID(int=0))


@contextmanager
def _connected(address: str) -> Iterator[SyncPrefectClient]:
    """A client of a server that answers and is of our version. Its errors become ours."""
    import httpx
    import prefect
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True, httpx_settings={"timeout": _DEADLINE_S}) as client:
            version = client.api_version()
            if _minor(version) != _minor(prefect.__version__):
                raise BadInput(
                    f"PREFECT_API_URL: the server is Prefect {version}, but {prefect.__version__} is installed here; "
                    "install the same version on both sides"
                )
            yield client
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise BadInput(
                f"PREFECT_API_AUTH_STRING: {address} answers {error.response.status_code}; set it to the server's "
                "PREFECT_SERVER_API_AUTH_STRING"
            ) from None
        request = f"{error.request.method} {error.request.url.path}"
        raise Unmeasurable(
            f"Prefect refused {request} ({error.response.status_code}): {error.response.text[:500]}; what was done "
            "before stands, and the next `touchstone deploy` goes on from there"
        ) from None
    except httpx.HTTPError as error:
        raise Unmeasurable(
            f"PREFECT_API_URL: {address} does not answer ({type(error).__name__}); start that server, and deploy again"
        ) from None


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _deployments(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """All of the server, by FLOW/NAME."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterId

    found: list[DeploymentResponse] = []
    while True:
        page = client.read_deployments(limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            break
    ids = list({one.flow_id for one in found})
    names: dict[Any, str] = {}
    for start in range(0, len(ids), _PAGE):
        chosen = FlowFilter(id=FlowFilterId(any_=ids[start : start + _PAGE]))
        names |= {flow.id: flow.name for flow in client.read_flows(flow_filter=chosen)}
    return {f"{names.get(one.flow_id)}/{one.name}": one for one in found}


def _pools(client: SyncPrefectClient, deployments: Deployments, dry_run: bool) -> Iterator[Done]:
    """A missing one becomes a pool of processes; one of another type is the user's, and stays as it is."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    for name in dict.fromkeys(one.work_pool.name for one in deployments.deployments):
        try:
            pool = client.read_work_pool(name)
            yield Done("unchanged", "work pool", name, f"type {pool.type}")
        except ObjectNotFound:
            if not dry_run:
                template = ProcessWorker.get_default_base_job_template()
                client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
            yield Done("created", "work pool", name, "type process")


def _entries(
    client: SyncPrefectClient,
    settings: Settings,
    deployments: Deployments,
    entries: Sequence[Entry],
    known: dict[str, DeploymentResponse],
    automations: Sequence[Automation],
    dry_run: bool,
) -> Iterator[Done]:
    folder = {"directory": str(settings.root.resolve())}
    pull = deployments.pull or [{"prefect.deployments.steps.set_working_directory": folder}]
    for entry in entries:
        wanted = wanted_deployment(entry, pull)
        found = known.get(wanted.full_name)
        triggers = triggers_of(automations, found.id) if found else []
        did, details = apply(client, wanted, found, triggers, dry_run=dry_run)
        yield Done(did, "deployment", wanted.full_name, ", ".join(details))


def _left_over(
    client: SyncPrefectClient,
    entries: Sequence[Entry],
    known: dict[str, DeploymentResponse],
    automations: Sequence[Automation],
    prune: bool,
    dry_run: bool,
) -> Iterator[Done]:
    """Deployments with our tag that left the file."""
    kept = {entry.deployment.full_name for entry in entries}
    for name, found in sorted(known.items()):
        if name in kept or TAG not in found.tags:
            continue
        if not prune:
            yield Done("left over", "deployment", name, "left prefect.yaml and still runs; --prune deletes it")
            continue
        if not dry_run:
            for trigger in triggers_of(automations, found.id):
                client.delete_automation(trigger.id)
            client.delete_deployment(found.id)
        yield Done("removed", "deployment", name)


def _standing(
    client: SyncPrefectClient,
    settings: Settings,
    deployments: Deployments,
    automations: Sequence[Automation],
    dry_run: bool,
) -> Iterator[Done]:
    """Standing automations, and the dead-man's switch armed. Without the gateway's token those that tell stay as is."""
    suites = deployments.suites()
    found = [one for one in automations if one.name.startswith(PREFIX)]
    token, missing = hook_token(settings)
    wanted = acting()
    if token:
        block, did = gateway_block(client, settings, token, dry_run=dry_run)
        yield Done(did, "webhook block", "touchstone-gateway", settings.gateway_url)  # type: ignore[arg-type]
        wanted += telling(settings, suites, block or _no_block())
    else:
        found = [one for one in found if not one.name.startswith(TELLS)]
        detail = f"{missing}: nobody would be told of silence and crashes"
        yield Done("skipped", "automation", f"{TELLS}...", detail)
    for applied in reconcile(client, wanted, found, dry_run=dry_run):
        yield Done(applied.change, "automation", applied.name)
    if token:
        within = timedelta(hours=settings.silent_after_h)
        for resource in arm(client, suites, within, dry_run=dry_run):
            yield Done("armed", "suite", resource, f"silent for {settings.silent_after_h:g} h is an alarm")


def _no_block() -> Any:
    """In a dry run on a server that has no block yet."""
    from uuid import UUID

    return UUID(int=0)
