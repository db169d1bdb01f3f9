"""The demo's third thread: a subtly worse prompt stops at the gate, a good one becomes the champion, and one that only
fails live customers is rolled back by its canary; afterwards the ledger is verified as an auditor would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import yaml

if TYPE_CHECKING:
    from tasks.ledger import Ledger
    from touchstone.release import ReleaseState
    from touchstone.settings import Settings

_SOMEBODY = "demo"
_GOOD, _SUBTLY_WORSE, _WORSE_LIVE = "support-cited", "support-brief", "support-live-risk"
# Half of the traffic and no waiting, so that two minutes are enough; datasets/support/policy.yaml has real values.
_QUICK_CANARY = {"shares": [0.5], "margin": 0.1, "minimum_requests": 40, "minimum_minutes": 0, "baseline_block": 1}
_PER_ROUND, _ROUNDS, _RATE = 120, 5, 60.0

BundleAt = Callable[[str], Path]


def releases(settings: Settings, bundle_at: BundleAt, champion_run: str) -> Iterator[str]:
    """What to print, step by step. `champion_run` is a run of `support`: the evidence of the first release."""
    from tasks.ledger import Ledger

    policy = _policy(settings)
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        yield _first_champion(settings, ledger, bundle_at("support"), policy, champion_run)
        yield _gated(bundle_at(_SUBTLY_WORSE), policy)
        with _customers() as ask:
            for name, multi_part in ((_GOOD, 0.0), (_WORSE_LIVE, 0.9)):
                yield _gated(bundle_at(name), policy)
                yield _canary(ledger, ask, multi_part)
                if name == _GOOD:
                    yield _approved(settings, ledger)
        yield _verified(settings, ledger)


def _policy(settings: Settings) -> str:
    """The golden set's policy with a canary that a demo has time for."""
    fields = yaml.safe_load((settings.root / "datasets" / "support" / "policy.yaml").read_text())
    fields["release"]["canary"] = fields["release"]["canary"] | _QUICK_CANARY
    path = settings.state / "demo" / "policy.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def _first_champion(settings: Settings, ledger: Ledger, bundle: Path, policy: str, run: str) -> str:
    """There is nobody to compare it with: its floors and hard checks on a run of today, and a human's word."""
    from cli.output import log
    from flows.gate import conduct_on_runs
    from tasks.gate_plan import GateRequest

    request = GateRequest(bundle=str(bundle), policy=policy, by=_SOMEBODY)
    _, report = conduct_on_runs(settings, request, run, None, log)
    return f"gate       {_verdict(report)}\n{_approved(settings, ledger)}"


def _gated(bundle: Path, policy: str) -> str:
    from flows.gate import run_as_flow
    from tasks.gate_plan import GateRequest

    return f"gate       {_verdict(run_as_flow(GateRequest(bundle=str(bundle), policy=policy, by=_SOMEBODY)))}"


def _verdict(report: object) -> str:
    from rich.markup import escape

    from touchstone.gate_records import GateReport

    assert isinstance(report, GateReport)
    decision = report.decision
    style = {"pass": "green", "fail": "red"}.get(decision.verdict, "magenta")
    reason = decision.reason if len(decision.reason) < 220 else f"{decision.reason[:220]} …"
    return f"[{style}]{decision.verdict}[/]  {report.bundle}  [dim]{escape(reason)}[/]"


def _canary(ledger: Ledger, ask: Callable[[float, int], None], multi_part: float) -> str:
    """Customers come, and the watcher looks after each round until it knows."""
    from rich.markup import escape

    from flows.canary import canary_start, canary_watch
    from tasks.releases import read_release

    state = canary_start(by=_SOMEBODY, return_state=True)
    rounds = 0
    while rounds < _ROUNDS and _is_running(read_release(ledger)):
        ask(multi_part, rounds)
        state, rounds = canary_watch(return_state=True), rounds + 1
    word = (state.name or "").lower()
    style = "green" if word == "graduated" else "red"
    message = escape(state.message or "")
    return f"canary     [{style}]{word}[/]  after {_PER_ROUND * rounds} requests  [dim]{message}[/]"


def _is_running(release: ReleaseState) -> bool:
    return release.canary is not None and release.canary.status == "running"


def _approved(settings: Settings, ledger: Ledger) -> str:
    from tasks.outbox import deliver
    from tasks.promotions import decide

    done = decide(settings, ledger, "approve", _SOMEBODY, "the demo's human has read it", via="command")
    deliver(settings, ledger)
    champion = done.state.champion
    return f"approved   [bold]champion: {champion.deployment.name if champion else 'none'}[/] {done.open or ''}"


def _verified(settings: Settings, ledger: Ledger) -> str:
    from tasks.audit_export import export_ledger, verify_folder

    folder = settings.state / "demo" / "audit"
    export_ledger(settings, ledger, folder)
    report = verify_folder(folder)
    return f"audit      [green]verified[/]  {report.records} events, signed and chained  [dim]{folder}[/]"


@contextmanager
def _customers() -> Iterator[Callable[[float, int], None]]:
    """The gateway and the support app, each a process on loopback; yields what sends a round of questions and waits."""
    from cli.demo_servers import serving
    from examples.support_app.traffic import send

    with (
        serving("cli.main", "gateway", "serve", "--port", "0") as gateway,
        serving("examples.support_app", "--port", "0", "--gateway", gateway) as url,
    ):

        def ask(multi_part: float, seed: int) -> None:
            asyncio.run(send(url, rate=_RATE, requests=_PER_ROUND, seed=seed, multi_part=multi_part))
            while httpx.get(f"{url}/health").json()["traces"]["waiting"]:  # the canary reads them from MLflow
                time.sleep(0.1)

        yield ask
