"""touchstone audit checkpoint | export | verify | prove | erase | key | rotate"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.ledger import Ledger
    from touchstone.audit import AuditReport
    from touchstone.audit_proof import ProofReport
    from touchstone.settings import Settings

app = typer.Typer(help="What was decided, proved to people who need not trust this machine.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
KeyOption = Annotated[str, typer.Option(help="Public key you trust: 64 hexadecimal digits, or a file (PEM or digits).")]


@app.command()
def checkpoint(as_json: AsJson = False) -> None:
    """Sign the ledger as it is now, and keep the signed checkpoint outside of it (file and MLflow)."""
    from cli.output import out, print_json
    from tasks.anchors import anchor
    from tasks.checkpoints import make_checkpoint

    with _ledger() as (settings, ledger):
        made = make_checkpoint(settings, ledger)
        warnings = _warn(anchor(settings, made))
    if as_json:
        return print_json(made.model_dump(mode="json") | {"warnings": warnings})
    out.print(f"{made.size} records signed by key {made.key_id}, root {made.root}")


@app.command()
def export(
    folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    as_json: AsJson = False,
) -> None:
    """Write the whole ledger to a folder that anybody can verify with the public key alone."""
    from cli.output import out, print_json
    from tasks.anchors import anchor
    from tasks.audit_export import export_ledger
    from tasks.ledger_keys import read_keys

    with _ledger() as (settings, ledger):
        made = export_ledger(settings, ledger, folder)
        warnings = _warn(anchor(settings, made))
        current = read_keys(ledger).current
    key = current.public_key if current else ""
    if as_json:
        return print_json(made.model_dump(mode="json") | {"out": str(folder), "public_key": key, "warnings": warnings})
    out.print(f"{made.size} records in {folder}, signed by key {made.key_id}")
    out.print(f"touchstone audit verify {folder} --key {key}")


@app.command()
def verify(
    target: Annotated[Path, typer.Argument(help="An export's folder, or a proof's file.")],
    key: KeyOption = "",
    anchor: Annotated[
        Path | None, typer.Option(help="Checkpoints kept outside: shows that nothing was cut off.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify an export or a proof from its files alone: no ledger, no network, no secret.

    Exit 0 verified, 1 tampered, 2 bad input.
    """
    from cli.output import exit_with
    from tasks.anchors import read_anchors
    from tasks.audit_export import verify_folder, verify_proof_file
    from tasks.signing import read_public_key
    from touchstone.errors import BadInput

    trusted = read_public_key(key) if key else None
    if target.is_file():
        if anchor:
            raise BadInput("--anchor is for an export; a proof says nothing of what came after it")
        proof = verify_proof_file(target, trusted)
        _print_proof(proof, as_json)
        exit_with(0 if proof.verified else 1)
    report = verify_folder(target, trusted, read_anchors(anchor) if anchor else None)
    _print_report(report, as_json)
    exit_with(0 if report.verified else 1)


@app.command()
def prove(
    sequence: Annotated[int, typer.Option(help="Of the event.")],
    file: Annotated[Path | None, typer.Option("--out", help="Where to write the proof; else it is printed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that one event is in the ledger, without handing out the others."""
    import sys

    from cli.output import out, print_json
    from tasks.anchors import anchor
    from tasks.audit_export import prove as make
    from touchstone.errors import BadInput

    with _ledger() as (settings, ledger):
        proof = make(settings, ledger, sequence)
        _warn(anchor(settings, proof.checkpoint))
    if file is None:
        sys.stdout.write(proof.encoded().decode())
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(proof.encoded())
    except OSError as error:
        raise BadInput(f"--out {file}: {error.strerror}") from None
    if as_json:
        signed = proof.checkpoint
        return print_json({"out": str(file), "sequence": sequence, "size": signed.size, "key_id": signed.key_id})
    out.print(f"{file} proves event {sequence} of {proof.checkpoint.size} by {len(proof.path)} hashes")


@app.command()
def erase(
    sequence: Annotated[int, typer.Option(help="Of the event.")],
    reason: Annotated[str, typer.Option(help="Recorded for good: name no person in it.")],
    by: Annotated[str, typer.Option(help="Who erases it; recorded.")] = "",
    as_json: AsJson = False,
) -> None:
    """Overwrite what an event is about. Its place in the chain stays, and so does the proof of everything else."""
    from cli.output import out, print_json
    from touchstone.errors import BadInput
    from touchstone.pii import scrub

    if not reason.strip():
        raise BadInput("--reason is empty; an erasure needs one")
    with _ledger() as (_, ledger):
        event = ledger.erase(sequence, scrub(reason), scrub(by))
    if as_json:
        return print_json(event.payload | {"event": event.sequence})
    what = "payload and content" if event.payload["content_digest"] else "payload"
    out.print(f"event {sequence}: {what} erased, recorded as event {event.sequence}")


@app.command()
def key(as_json: AsJson = False) -> None:
    """The public keys of this ledger, oldest first: give the last to auditors, on another way than the export."""
    from cli.output import out, print_json
    from tasks.ledger_keys import read_keys, signing_key

    with _ledger() as (settings, ledger):
        if read_keys(ledger).current is None:
            signing_key(settings, ledger)
        keys = [(entry.key_id, entry.public_key, entry.sequence) for entry in read_keys(ledger).entries]
    if as_json:
        return print_json({"keys": [dict(zip(("key_id", "public_key", "since"), key, strict=True)) for key in keys]})
    for key_id, public_key, since in keys:
        out.print(f"{public_key}  key {key_id}, since event {since}")


@app.command()
def rotate(
    new_key: Annotated[Path | None, typer.Option(help="A private key in PEM; else one is made.")] = None,
    lost: Annotated[bool, typer.Option("--lost", help="The old key is gone: begin a new line of keys.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a new signing key. The old one signs the change, so whoever trusts it can follow."""
    from cli.output import err, out, print_json
    from tasks.anchors import checkpoint_and_anchor
    from tasks.ledger_keys import rotate as change
    from tasks.signing import KEY_VARIABLE, key_in_environment

    with _ledger() as (settings, ledger):
        made = change(settings, ledger, new_key, lost=lost)
        held = key_in_environment()
        if held and held.public_key != made.public_key:
            err.print(f"set {KEY_VARIABLE} to the new key now: until then nothing can be signed here")
        else:
            _warn(checkpoint_and_anchor(settings, ledger))
    if as_json:
        return print_json({"key_id": made.key_id, "public_key": made.public_key})
    out.print(f"{made.public_key}  key {made.key_id} signs from now on")


@contextmanager
def _ledger() -> Iterator[tuple[Settings, Ledger]]:
    from contextlib import closing

    from tasks.ledger import Ledger
    from tasks.loading import load_settings

    settings = load_settings()
    with closing(Ledger(settings.ledger, settings.environment)) as ledger:
        yield settings, ledger


def _warn(warnings: list[str]) -> list[str]:
    from cli.output import log

    for warning in warnings:
        log.warning(warning)
    return warnings


def _print_report(report: AuditReport, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.markup import escape

    from cli.output import out, print_json
    from touchstone.checkpoint import key_id_of

    if as_json:
        return print_json({"verified": report.verified} | asdict(report))
    if not report.verified:
        return out.print(f"[bold red]TAMPERED[/]  {escape(report.finding or '')}")
    out.print(f"[bold green]VERIFIED[/]  {report.records} records of {escape(report.environment or '')}")
    rows: dict[str, Any] = {
        "head": report.head,
        "root": report.root,
        "checkpoints": report.checkpoints,
        "keys": ", ".join(key_id_of(key) for key in report.keys)
        + ("" if report.key_given else " (taken from the export itself: nobody vouches for them)"),
        "contents": report.contents,
        "erased": f"{report.erased_payloads} payloads, {report.erased_contents} contents",
        "anchored up to": "–" if report.anchored_to is None else f"record {report.anchored_to}",
    }
    for name, value in rows.items():
        out.print(f"  {name:<15}{value}")
    for note in report.notes:
        out.print(f"[yellow]{escape(note)}[/]")


def _print_proof(report: ProofReport, as_json: bool) -> None:
    from rich.markup import escape

    from cli.output import out, print_json

    proof = report.proof
    if as_json:
        shown: dict[str, Any] = {"verified": report.verified, "finding": report.finding, "notes": report.notes}
        return print_json(shown | ({"proof": proof.model_dump(mode="json")} if proof else {}))
    if proof is None:
        return out.print(f"[bold red]TAMPERED[/]  {escape(report.finding or '')}")
    leaf, signed = proof.leaf, proof.checkpoint
    out.print(f"[bold green]VERIFIED[/]  event {leaf.sequence} of {signed.size} in {escape(leaf.environment)}")
    out.print(f"  {leaf.kind} of {escape(leaf.subject)} at {leaf.at}, signed by key {signed.key_id}")
    out.print(f"  {escape(proof.evidence or '(erased)')}")
    for note in report.notes:
        out.print(f"[yellow]{escape(note)}[/]")
