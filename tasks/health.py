"""Does a server answer, and is a port free?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from touchstone.errors import BadInput

LOOPBACK = "127.0.0.1"
_TIMEOUT_S = 3


@dataclass(frozen=True)
class Port:
    """A port that somebody will listen on; `usually` is who has it as a rule, `option` chooses another."""

    number: int
    part: str
    usually: str
    option: str


async def answers(url: str) -> bool:
    """200 within 3 s."""
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
        try:
            return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False


def check_ports(ports: Sequence[Port]) -> None:
    """Raises BadInput that names every port which is taken, and those that are asked for twice."""
    problems = []
    for number in sorted({port.number for port in ports}):
        wanted = [port for port in ports if port.number == number]
        if len(wanted) > 1:
            options = ", ".join(port.option for port in wanted)
            problems.append(f"port {number} is asked for by {options}: choose different ones")
        elif problem := _problem(wanted[0]):
            problems.append(problem)
    if problems:
        raise BadInput("nothing was started: " + "; ".join(problems))


def _problem(port: Port) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended does not count
        try:
            probe.bind((LOOPBACK, port.number))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return f"port {port.number} for {port.part} ({port.option}): {error.strerror}"
            return (
                f"port {port.number} for {port.part} is taken (there listens, as a rule, {port.usually}): "
                f"stop that, or choose another port with {port.option}"
            )
    return ""
