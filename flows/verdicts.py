"""How flow runs end by a verdict: the state's name says which, its data what was found."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed


class VerdictFailed(Exception):
    """What a failed state carries: Prefect raises its data, and breaks on what is no exception."""

    def __init__(self, message: str, data: dict[str, Any]) -> None:
        super().__init__(message, data)
        self.data = data

    def __str__(self) -> str:
        return self.args[0]


def ended(name: str, message: str, data: dict[str, Any], *, failed: bool) -> State:
    """Failed, so that failure automations hear of it, or completed; either way under the verdict's name."""
    if failed:
        return Failed(name=name, message=message, data=VerdictFailed(message, data))
    return Completed(name=name, message=message, data=data)


def found_in(data: Any) -> Any:
    """What a flow run of this process found, whichever way it ended. Raises what the flow raised."""
    if isinstance(data, VerdictFailed):
        return data.data
    if isinstance(data, BaseException):
        raise data
    return data
