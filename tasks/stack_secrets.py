"""Secrets of the local stack: made once, kept in the state folder, never shown; the user's own win."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from touchstone.errors import BadInput

SIGNING = (
    "TOUCHSTONE_PREFECT_HOOK_TOKEN",
    "TOUCHSTONE_GITHUB_SECRET",
    "TOUCHSTONE_MLFLOW_SECRET",
    "TOUCHSTONE_GATEWAY_TOKEN",
)
ENCRYPTION = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"  # without it MLflow delivers nothing after a restart


def secrets_file(state: Path) -> Path:
    return state / "secrets.env"


def ensure_secrets(state: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The secrets that `environment` lacks; those that are in no file yet are made. Raises BadInput."""
    path = secrets_file(state)
    try:
        state.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}
        if path.exists():
            path.chmod(0o600)
        missing = [name for name in (*SIGNING, ENCRYPTION) if name not in kept and name not in environment]
        made = {name: _make(name) for name in missing}
        if made:
            _append(path, made)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    return {name: value for name, value in {**kept, **made}.items() if name not in environment}


def _make(name: str) -> str:
    if name == ENCRYPTION:  # a Fernet key: 32 bytes in URL-safe base64
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_urlsafe(32)


def _append(path: Path, made: Mapping[str, str]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a") as file:
        file.write("".join(f"{name}={value}\n" for name, value in made.items()))
        file.flush()
        os.fsync(file.fileno())
