"""What libraries must find in the environment before their first import: quiet, offline, no telemetry."""

from __future__ import annotations

import os
from pathlib import Path

from dotenv import load_dotenv

from tasks.prefect_sinks import scrub_logs, scrub_state_messages

_DEFAULTS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise importing litellm fetches a price list, and stalls offline
    "EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "true",  # aiohttp: httpx collapses at 128 calls in flight
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # the default of 20 s fails on a busy small machine
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default blocks for minutes on a server that is gone
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would break `--json`
    "MLFLOW_GENAI_EVAL_SKIP_TRACE_VALIDATION": "True",
    "GX_ANALYTICS_ENABLED": "false",
    "RAGAS_DO_NOT_TRACK": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "LANCE_INCLUDE_VECTOR_CENTROIDS": "false",  # or every look at an index prints a warning
    "RAY_USAGE_STATS_ENABLED": "0",
    "DASK_LOGGING__DISTRIBUTED": "warning",  # or each start of a cluster prints dozens of lines
}


def apply_defaults() -> None:
    """Read .env of the current directory, then set what the user has not set; the environment wins over both.

    Logs are scrubbed from here on: every flow and every command comes by.

    Call it before importing litellm, mlflow, prefect or ragas.
    """
    load_dotenv(Path.cwd() / ".env")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    scrub_logs()
    scrub_state_messages()
