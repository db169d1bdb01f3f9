"""touchstone approve | deny | promote | rollback | release show | release history"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from tasks.ledger import Ledger
    from tasks.promotions import Decided, Done
    from touchstone.release import ApprovalRequest, ReleaseState
    from touchstone.settings import Settings

app = typer.Typer(help="What this environment serves, what wants to, and how it came to it.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
By = Annotated[str | None, typer.Option(help="Who does it; default: the user of this machine.")]
Reason = Annotated[str, typer.Option(help="Why; recorded.")]
KeyFile = Annotated[Path | None, typer.Option(help="Your private key (PEM), where the policy names your public one.")]


def approve(reason: Reason, by: By = None, key: KeyFile = None, as_json: AsJson = False) -> None:
    """Approve the candidate; it is promoted at once when yours was the last approval that lacked.

    Exit 0 also while others have to approve; 2 when your word does not count, and nothing was recorded.
    """
    _decide("approve", reason, by, key, as_json)


def deny(reason: Reason, by: By = None, key: KeyFile = None, as_json: AsJson = False) -> None:
    """Deny the candidate: it leaves its canary traffic, and is not promoted."""
    _decide("deny", reason, by, key, as_json)


def promote(
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "", by: By = None, as_json: AsJson = False
) -> None:
    """Let the candidate out to all traffic, where its canary and its approvals are as the policy asks.

    Where only the approvals lack, they are asked for (again, when the question has expired): exit 3, nothing promoted.
    """
    from cli.output import exit_with, out, print_json
    from tasks.promotions import ask_where_needed
    from tasks.promotions import promote as promote_now
    from touchstone.release_record import approval

    with _opened() as (settings, ledger):
        request = ask_where_needed(ledger)
        if request is None:
            done = promote_now(settings, ledger, _who(by), reason)
            _print_done(done, as_json, f"{_champion(done.state)} takes all traffic")
            code = _index_code(done)
        else:
            asked, code = approval(request), 3
            print_json({"promoted": False, "approval": asked}) if as_json else out.print(_asked(asked))
        _deliver(settings, ledger)
    exit_with(code)


def rollback(
    reason: Annotated[str, typer.Option(help="Why; recorded.")] = "",
    to: Annotated[int | None, typer.Option(help="Event that promoted the champion to return to.")] = None,
    champion: Annotated[
        bool, typer.Option("--champion", help="The champion goes back, also while a canary runs.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Only bring the live index after the release.")] = False,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Take the canary off its traffic; without one, the champion before serves again. Nothing is asked.

    It takes effect with the gateway's next answer. Exit 3 when the release went back and its index could not follow.
    """
    from tasks.promotions import roll_back

    with _opened() as (settings, ledger):
        if repair:
            return _repair(settings, ledger, as_json)
        done = roll_back(settings, ledger, _who(by), reason, to=to, champion=champion)
        from cli.output import exit_with  # only now: nothing that is not needed comes before the effect

        what = "the canary is off its traffic, and" if done.event.payload["what"] == "canary" else ""
        _print_done(done, as_json, f"{what} {_champion(done.state)} takes all traffic".strip())
        _deliver(settings, ledger)
    exit_with(_index_code(done))


@app.command()
def show(as_json: AsJson = False) -> None:
    """Champion, candidate, canary, open approval and the way back; what is served, and on which evidence."""
    from cli.output import print_json
    from cli.release_tables import print_state
    from tasks.promotions import index_behind
    from tasks.releases import read_release
    from touchstone.release_record import show as shown

    with _opened() as (_, ledger):
        state = read_release(ledger)
        behind = index_behind(ledger, state)
    if as_json:
        return print_json(shown(state) | {"index_behind": behind})
    print_state(state, behind)


@app.command()
def history(
    newest: Annotated[int, typer.Option(min=1, help="So many events, the latest first.")] = 50, as_json: AsJson = False
) -> None:
    """Every step of this environment's releases, the latest first."""
    from cli.output import print_json
    from cli.release_tables import print_history
    from touchstone.ledger import RELEASE_SUBJECT
    from touchstone.release_record import history_row

    with _opened() as (settings, ledger):
        rows = [history_row(event) for event in ledger.events(subject=RELEASE_SUBJECT, newest=newest)]
    if as_json:
        return print_json({"environment": settings.environment, "events": rows})
    print_history(settings.environment, rows)


def _decide(decision: Literal["approve", "deny"], reason: str, by: str | None, key: Path | None, as_json: bool) -> None:
    from cli.output import exit_with, print_json
    from cli.release_tables import print_decided
    from tasks.promotions import decide

    with _opened() as (settings, ledger):
        sign = _signer(key, decision) if key else None
        decided = decide(settings, ledger, decision, _who(by), reason, via="command", sign=sign)
        if as_json:
            print_json(_decided(decided, decision))
        else:
            print_decided(decided, decision)
        _deliver(settings, ledger)
        if decided.is_over:
            _end_waiting_flow_run(decided.approval_id, decision, _who(by), reason)
    exit_with(_index_code(decided.promoted))


def _signer(key: Path, decision: str) -> Callable[[ApprovalRequest], str]:
    from tasks.signing import sign_approval

    return lambda request: sign_approval(key, request.approval_id, request.fingerprint, decision)


def _decided(decided: Decided, decision: str) -> dict[str, Any]:
    from touchstone.release_record import deployment_record

    champion = decided.state.champion
    return {
        "decision": decision,
        "approval_id": decided.approval_id,
        "event": decided.event.sequence if decided.event else None,
        "promoted": decided.is_promoted,
        "open": decided.open,
        "champion": deployment_record(champion) if champion else None,
        "index_version": decided.promoted.index_version if decided.promoted else None,
        "index_error": decided.promoted.index_error if decided.promoted else None,
    }


def _end_waiting_flow_run(approval_id: str, decision: str, by: str, reason: str) -> None:
    """The flow run that waits for the same answer is told, so that it ends; best effort, the ledger has the answer."""
    from cli.output import log
    from tasks.waiting_runs import end_waiting_runs

    if warning := end_waiting_runs(approval_id, {"decision": decision, "name": by, "reason": reason}):
        log.warning("%s", warning)


def _asked(asked: dict[str, Any]) -> str:
    who = f" ({', '.join(asked['approvers'])})" if asked["approvers"] else ""
    needed = "1 approval is" if asked["required"] == 1 else f"{asked['required']} approvals are"
    return (
        f"[yellow]ASKED[/]  {asked['approval_id']}: {needed} needed{who} until "
        f"{asked['expires_at'][:16]}; `touchstone approve --by NAME --reason WHY`"
    )


def _repair(settings: Settings, ledger: Ledger, as_json: bool) -> None:
    from cli.output import out, print_json
    from tasks.promotions import repair

    state, moved = repair(settings, ledger)
    if as_json:
        return print_json({"champion": _champion(state), "index_version": moved, "repaired": moved is not None})
    out.print(f"the live index is now {moved}" if moved else "nothing to repair: the live index is as the release asks")


def _print_done(done: Done, as_json: bool, what: str) -> None:
    """Before anything else is told to anybody: it is in effect."""
    from cli.output import log, out, print_json
    from touchstone.release_record import deployment_record

    if as_json:
        champion = done.state.champion
        print_json(
            {
                "event": done.event.sequence,
                "kind": done.event.kind.value,
                "what": done.event.payload.get("what"),
                "at": done.event.at,
                "champion": deployment_record(champion) if champion else None,
                "index_version": done.index_version,
                "index_error": done.index_error,
            }
        )
    else:
        promoted = done.event.kind.value == "release.promoted"
        style, word = ("bold green", "PROMOTED") if promoted else ("bold yellow", "ROLLED BACK")
        moved = f"; the live index is {done.index_version}" if done.index_version else ""
        out.print(f"[{style}]{word}[/]  {what} (event {done.event.sequence}){moved}")
    if done.index_error:
        log.error("%s", done.index_error)


def _index_code(done: Done | None) -> int:
    return 3 if done and done.index_error else 0


def _champion(state: ReleaseState) -> str:
    return state.champion.deployment.name if state.champion else "nobody"


@contextmanager
def _opened() -> Iterator[tuple[Settings, Ledger]]:
    from contextlib import closing

    from tasks.ledger import Ledger
    from tasks.loading import load_settings

    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        yield settings, ledger


def _deliver(settings: Settings, ledger: Ledger) -> None:
    from cli.output import log
    from tasks.outbox import deliver

    for warning in deliver(settings, ledger):
        log.warning("%s", warning)


def _who(by: str | None) -> str:
    import getpass

    return by or getpass.getuser()
