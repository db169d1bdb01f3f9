"""Names of people, by Presidio: an optional extra, because it needs a language model that PyPI does not have."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

from touchstone.errors import BadInput
from touchstone.settings import Settings

_ENTITIES = ["PERSON"]


def name_scrubber(settings: Settings) -> Callable[[str], str]:
    """What replaces names by [name], where `privacy.names` asks for it; else what returns a text as it is.

    Raises BadInput when it is asked for and cannot be done: a run that believes its names covered must not start.
    """
    if not settings.privacy.names:
        return str
    engine, language = _engine(settings.privacy.spacy_model), settings.privacy.language

    def hide(text: str) -> str:
        found = engine.analyze(text=text, language=language, entities=_ENTITIES)
        for span in sorted(found, key=lambda span: -span.start):
            text = f"{text[: span.start]}[name]{text[span.end :]}"
        return text

    return hide


def names_covered(settings: Settings) -> str:
    """By what, for `touchstone.privacy.privacy_notice`; empty: they are not."""
    model = settings.privacy.spacy_model
    return f"Presidio with {model}" if settings.privacy.names and not _missing(model) else ""


def _missing(model: str) -> str:
    """What is not installed, with how to install it; empty: nothing."""
    if find_spec("presidio_analyzer") is None:
        return "presidio-analyzer is not installed: `pip install touchstone[names]`"
    if find_spec(model) is None:
        return f"the spaCy model {model} is not installed: `python -m spacy download {model}`"
    return ""


@cache
def _engine(model: str) -> Any:
    if missing := _missing(model):
        raise BadInput(f"settings, field privacy.names: {missing}; or set it to false: names are not covered then")
    from presidio_analyzer import AnalyzerEngine  # pyright: ignore[reportMissingImports] - an optional extra
    from presidio_analyzer.nlp_engine import NlpEngineProvider  # pyright: ignore[reportMissingImports]

    language = model[:2]
    models = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    return AnalyzerEngine(
        nlp_engine=NlpEngineProvider(nlp_configuration=models).create_engine(), supported_languages=[language]
    )
