"""touchstone connect mlflow"""

from __future__ import annotations

import typer

app = typer.Typer(help="Tells other servers where the gateway is.", no_args_is_help=True)


@app.callback()
def _connect() -> None:
    """Tells other servers where the gateway is."""


@app.command()
def mlflow() -> None:
    """MLflow's webhook to the gateway: a prompt version made in MLflow's pages starts the gate. Twice changes nothing.

    Address and secret are those of touchstone.yaml: gateway_url, and secret_env of the source of kind `mlflow`.
    """
    from tasks.loading import load_settings
    from tasks.mlflow_webhooks import connect_gateway

    for line in connect_gateway(load_settings()):
        typer.echo(line)
