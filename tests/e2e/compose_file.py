"""compose.yaml as the container engine would read it: anchors merged, ${VARIABLES} replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def resolved(variables: Mapping[str, str]) -> dict[str, Any]:
    """With the variables of .env; one that is required and missing is a KeyError."""
    return _resolve(raw(), variables)


def required() -> set[str]:
    """Names that compose.yaml refuses to start without."""
    found = re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text())
    return set(found)


def _resolve(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _resolve(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve(value, variables) for value in node]
    return _VARIABLE.sub(lambda found: _value(found, variables), node) if isinstance(node, str) else node


def _value(found: re.Match[str], variables: Mapping[str, str]) -> str:
    name, kind, text = found.groups()
    if variables.get(name):
        return variables[name]
    if kind == "-":
        return text
    raise KeyError(f"{name}: {text or 'has no default'}")
