"""The emulator starts, says where, and stops when told to."""

import signal
import subprocess
import sys
import urllib.request

import pytest

from emulator.server import EmulatorOptions, running

SERVE = (
    "from emulator.server import EmulatorOptions, serve; serve(EmulatorOptions(), lambda url: print(url, flush=True))"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert urllib.request.urlopen(f"{url}/health").status == 200
        server.send_signal(number)
        assert server.wait(timeout=10) == 0


def test_a_taken_port_is_named() -> None:
    with running(EmulatorOptions()) as url:
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 is taken"), running(EmulatorOptions(port=port)):
            pass


def test_a_negative_latency_is_refused() -> None:
    with pytest.raises(ValueError, match="latency_ms"), running(EmulatorOptions(latency_ms=-1)):
        pass
