"""Project settings: touchstone.yaml, then TOUCHSTONE_* in the environment (or .env, read at start); the last wins."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from touchstone.notify_target import NotifyTarget


class Settings(BaseSettings):
    """Where things are. Relative paths are relative to `root`."""

    model_config = SettingsConfigDict(
        env_prefix="TOUCHSTONE_", yaml_file="touchstone.yaml", extra="forbid", frozen=True
    )

    root: Path = Field(default_factory=Path.cwd, description="The project: holds datasets/, bundles/, prompts/ ...")
    home: Path = Field(default=Path(".touchstone"), description="All run-time state of the embedded default")
    environment: str = Field(default="default", pattern=r"^[\w.-]+$", description="One ledger sequence each")
    ledger_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in `home`")
    mlflow_tracking_uri: str = Field(default="", description="Empty: MLFLOW_TRACKING_URI, else SQLite in `home`")
    mlflow_ui_url: str = Field(default="", description="Where people open MLflow, for links; empty: the tracking URI")
    prefect_ui_url: str = Field(default="", description="Where people open Prefect, for links")
    anchor_file: str = Field(default="", description="Where signed checkpoints are written; empty: in `home`")
    lance_uri: str = Field(default="", description="Folder or object-store URI of the indexes; empty: in `home`")
    concurrency: int = Field(default=32, ge=1, le=1024, description="Vendor calls in flight at once, per process")
    deadline_s: float = Field(default=60.0, gt=0, description="Per vendor call, all of it, each attempt")
    attempts: int = Field(default=4, ge=1, le=10, description="Per vendor call, transport failures only")
    task_runner: Literal["threads", "dask", "ray"] = Field(default="threads", description="Where texts are embedded")
    task_runner_address: str = Field(default="", description="Of a Dask scheduler or Ray cluster; empty: local")
    task_workers: int = Field(default=2, ge=1, le=1024, description="Threads, or workers of a local Dask or Ray")
    notify: tuple[NotifyTarget, ...] = Field(default=(), description="Who is told of releases and of levels")
    trace_limit: int = Field(default=500, ge=0, description="Runs up to this size send a trace for every case")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @property
    def state(self) -> Path:
        return self.root / self.home

    @property
    def lance(self) -> str:
        return self.lance_uri or str(self.state / "lance")

    @property
    def embedding_cache(self) -> Path:
        return self.state / "embeddings.db"

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self.state / 'ledger.db'}"
