"""What commands share: how they read settings, run to their end, and print."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer
from aegis_links import event_loop

from aegis_agent.config import AgentConfig
from aegis_agent.log import configure
from aegis_agent.settings import load

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

T = TypeVar("T")


def settings(**options: Any) -> AgentConfig:
    """
    Return the settings in force, with the log set up for a command that ends by itself: warnings
    alone, unless AEGIS_LOG says otherwise.
    """
    config = load(**options)
    configure(config.log if "log" in config.model_fields_set else "warning")
    return config


def finish(work: Coroutine[Any, Any, T]) -> T:
    return event_loop.run(work)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))
