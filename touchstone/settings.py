"""Project settings: touchstone.yaml, then TOUCHSTONE_* in the environment (or .env, read at start); the last wins."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from touchstone.notify_target import NotifyTarget
from touchstone.webhooks import Webhooks


class Retention(BaseModel):
    """How long things are kept, in days. The ledger is kept for ever."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    traces: int = Field(default=90, ge=1, description="Live traffic in MLflow")
    runs: int = Field(default=90, ge=1, description="Spools of evals, gates, canaries and attributions on disk")
    flow_runs: int = Field(default=90, ge=1, description="Finished flow runs in Prefect")
    retrievals: int = Field(default=90, ge=1, description="The retrieval log")


class Privacy(BaseModel):
    """What is scrubbed beyond what has a shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: bool = Field(default=False, description="Names of people too; needs the extra `names` and a spaCy model")
    spacy_model: str = Field(default="en_core_web_lg", pattern=r"^[a-z]{2}_\w+$")

    @property
    def language(self) -> str:
        return self.spacy_model[:2]


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
    webhooks: Webhooks = Field(default=Webhooks(), description="Who may send webhooks, and what each one starts")
    inbox_url: str = Field(
        default="", description="SQLAlchemy URL of the webhooks' inbox; empty: the ledger's server, or SQLite in `home`"
    )
    gateway_url: str = Field(default="http://127.0.0.1:8700", description="Where Prefect and MLflow reach the gateway")
    silent_after_h: float = Field(default=26, gt=0, description="A scheduled eval silent for so long is missed")
    renotify_h: float = Field(default=24, gt=0, description="An alarm that stands is told again after so long")
    retention: Retention = Retention()
    privacy: Privacy = Privacy()
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
    def inbox(self) -> str:
        shared = "" if self.ledger_url.startswith("sqlite") else self.ledger_url  # one file would be one writer lock
        return self.inbox_url or shared or f"sqlite:///{self.state / 'inbox.db'}"

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self.state / 'ledger.db'}"
