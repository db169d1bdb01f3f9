"""The body of every answer that is not a success."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel


class Problem(BaseModel):
    """What went wrong, and what to do."""

    error: str


def problem(status: int, error: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)


def documented(said: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: each status with what it means."""
    return {status: {"model": Problem, "description": meaning} for status, meaning in said.items()}
