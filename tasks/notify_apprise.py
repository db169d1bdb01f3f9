"""Mail and every service that Apprise knows, in a process of its own.

Apprise says only yes or no, writes addresses with their passwords to its log, brings 50 MB of modules and no deadline
for the whole. A child process keeps all four away from the gateway; its address travels by stdin, never as an argument.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tasks import apprise_process
from tasks.projection import TargetAway

DEADLINE_S = 20.0  # for the whole, with the start of Python; each of its sockets has less


def send_by_apprise(url: str, title: str, body: str, kind: str, *, only_mail: bool = False) -> None:
    """Send, or raise TargetAway, which names the address's scheme only. `kind`: info, success, warning or failure."""
    scheme = url.partition("://")[0]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,30}", scheme) or "://" not in url:
        raise TargetAway("not an address of Apprise, such as mailtos://USER:PASSWORD@HOST?to=PERSON")
    if only_mail and scheme not in {"mailto", "mailtos"}:
        raise TargetAway(f"{scheme}: mail needs a mailto:// or mailtos:// address; for others there is kind: apprise")
    letter = json.dumps({"url": url, "title": title, "body": body, "kind": kind})
    # -P: no file of the current folder may be imported instead of a library.
    command = [sys.executable, "-P", str(Path(apprise_process.__file__))]
    try:
        done = subprocess.run(command, input=letter.encode(), capture_output=True, timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise TargetAway(f"{scheme}: no answer within {DEADLINE_S:.0f} s") from None
    if done.returncode == apprise_process.NOT_SENT:
        raise TargetAway(f"{scheme}: the service did not take it")
    if done.returncode == apprise_process.NO_ADDRESS:
        raise TargetAway(f"{scheme}: Apprise does not know this service, or its address is incomplete")
    if done.returncode != 0:
        raise TargetAway(f"{scheme}: Apprise ended with {done.returncode}")
