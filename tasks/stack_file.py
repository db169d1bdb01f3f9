"""stack.json: what `touchstone up` runs, for `down` and `status`; and the lock that one `up` holds per state folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.stack_secrets import ENCRYPTION, SIGNING, secrets_file
from touchstone.errors import BadInput


class StackPart(BaseModel):
    """A part as it was last seen by `up`; `pid` is 0 for a server that is the user's own."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int = 0
    address: str = ""
    since: datetime | None = None
    ready: bool = False
    step: bool = False  # ends by itself


class Stack(BaseModel):
    """One start of the whole; `stack` marks its processes, `exports` is what a shell needs to use it."""

    model_config = ConfigDict(frozen=True)

    stack: str
    pid: int
    ready: bool = False
    order: tuple[str, ...] = ()  # in which parts are ended
    parts: tuple[StackPart, ...] = ()
    exports: dict[str, str] = {}


def write_stack(state: Path, stack: Stack) -> None:
    """Whole or not at all."""
    new = state / "stack.json.new"
    new.write_text(stack.model_dump_json(indent=1))
    os.replace(new, state / "stack.json")


def read_stack(state: Path) -> Stack | None:
    """What was started last and not ended cleanly; it may be gone by now."""
    try:
        return Stack.model_validate_json((state / "stack.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise BadInput(f"{state / 'stack.json'}: cannot be read: {error}") from None


def shell_lines(stack: Stack, state: Path) -> list[str]:
    """What a POSIX shell evaluates to use this stack; secrets are read from their file there, and not shown here."""
    path = secrets_file(state).absolute()
    lines = [f"export {name}={shlex.quote(value)}" for name, value in stack.exports.items()]
    for name in (*SIGNING, ENCRYPTION):
        read = f"sed -n s/^{name}=//p {shlex.quote(str(path))}"
        lines.append(f'[ -n "${{{name}:-}}" ] || export {name}="$({read})"')
    return lines


def forget_stack(state: Path) -> None:
    (state / "stack.json").unlink(missing_ok=True)


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Held while `up` runs, and given back by its end, however it ends. Raises BadInput when another holds it."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "stack.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(
                f"`touchstone up` runs already on {state}: `touchstone status` shows it, `touchstone down` stops it"
            ) from None
        yield


def is_held(state: Path) -> bool:
    """Does an `up` run on this state folder?"""
    with contextlib.suppress(FileNotFoundError), (state / "stack.lock").open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
