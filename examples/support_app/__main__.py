"""python -m examples.support_app --port 8800 --gateway http://127.0.0.1:8700"""

from __future__ import annotations

import argparse
import logging
import sys

from examples.support_app.app import AppOptions, create_app
from gateway.server import serve
from tasks.environment import apply_defaults
from tasks.loading import load_settings
from touchstone.errors import TouchstoneError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.support_app", description="The support app.")
    parser.add_argument("--port", type=int, default=8800, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="loopback unless you know better: no authentication")
    parser.add_argument("--gateway", default="http://127.0.0.1:8700", help="address of `touchstone gateway serve`")
    parser.add_argument("--environment", help="release line to serve; default: the project's setting")
    parser.add_argument("--allow-ungated-fallback", action="store_true", help="fall back on what no gate has passed")
    arguments = parser.parse_args()
    apply_defaults()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        chosen = {"environment": arguments.environment} if arguments.environment else {}
        options = AppOptions(load_settings(**chosen), arguments.gateway, arguments.allow_ungated_fallback)
        serve(
            create_app(options),
            arguments.host,
            arguments.port,
            lambda url: print(f"support app at {url} (Ctrl-C stops it)", flush=True),
        )
    except TouchstoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
