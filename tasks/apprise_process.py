"""One message through Apprise: JSON on stdin, the answer is the exit code. Run as a file; it imports none of ours."""

from __future__ import annotations

import json
import logging
import sys

NOT_SENT, NO_ADDRESS = 10, 11
_SOCKET_S = 5.0


def main() -> int:
    """Send what stdin says."""
    letter = json.load(sys.stdin)
    logging.disable(logging.CRITICAL)
    import apprise

    service = apprise.Apprise.instantiate(letter["url"], suppress_exceptions=True)
    if not isinstance(service, apprise.NotifyBase):
        return NO_ADDRESS
    service.socket_connect_timeout = service.socket_read_timeout = _SOCKET_S
    kind = apprise.NotifyType(letter["kind"])
    sender = apprise.Apprise()
    sender.add(service)
    sent = sender.notify(letter["body"], title=letter["title"], notify_type=kind, body_format=apprise.NotifyFormat.TEXT)
    return 0 if sent else NOT_SENT


if __name__ == "__main__":
    sys.exit(main())
