"""One way to each of Prefect's sinks, and names where they are asked for."""

from __future__ import annotations

import logging
import re

import pytest

from tasks.environment import apply_defaults
from tasks.names import name_scrubber, names_covered
from tests.conftest import ROOT
from touchstone.errors import BadInput
from touchstone.settings import Privacy, Settings


def test_nothing_but_the_sinks_writes_artifacts_and_events_to_prefect() -> None:
    direct = re.compile(
        r"from prefect\.(?:events|artifacts) import .*(?:emit_event|create_(?:markdown|link|table)_artifact)"
    )
    paths = [path for folder in ("tasks", "flows", "cli", "gateway") for path in (ROOT / folder).glob("*.py")]
    found = [path.name for path in paths if direct.search(path.read_text()) and path.name != "prefect_sinks.py"]
    assert found == []


def test_a_log_line_and_its_traceback_are_scrubbed(caplog: pytest.LogCaptureFixture) -> None:
    apply_defaults()
    apply_defaults()  # once is enough
    log = logging.getLogger("somebody.else")
    try:
        raise ValueError("asked by jo@acme.example")
    except ValueError:
        log.exception("no answer to %s, %d times", "jo@acme.example", 3)
    assert "no answer to [email], 3 times" in caplog.text
    assert "ValueError: asked by [email]" in caplog.text
    assert "jo@acme" not in caplog.text


def test_a_line_whose_arguments_do_not_fit_is_left_to_logging(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.getLogRecordFactory()("x", logging.INFO, "f", 1, "%d of %d", (1,), None)
    assert record.args == (1,)


def test_names_are_not_covered_unless_asked_for() -> None:
    settings = Settings(root=ROOT)
    assert name_scrubber(settings)("Ada Lovelace wrote") == "Ada Lovelace wrote"
    assert names_covered(settings) == ""


def test_names_that_cannot_be_covered_are_bad_input_with_the_fix() -> None:
    settings = Settings(root=ROOT, privacy=Privacy(names=True, spacy_model="en_core_web_none"))
    with pytest.raises(BadInput, match=r"privacy\.names: .* is not installed"):
        name_scrubber(settings)
    assert names_covered(settings) == ""
