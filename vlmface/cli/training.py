"""Commands about a training before it is started: `inspect`, `estimate-memory`."""

from __future__ import annotations

import argparse

from vlmface.cli.arguments import Commands
from vlmface.utils.config import option
from vlmface.utils.ranges import Natural


def add_inspect(commands: Commands) -> None:
    """`vlmface inspect`."""
    inspect = commands.add_parser(
        "inspect", help="a run's training rows token by token", allow_abbrev=False
    )
    _add_settings(inspect)
    option(inspect, "--n", Natural, default=3, help="rows to print")
    inspect.add_argument("--color", action="store_true", help="colours, also into a file")
    inspect.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from vlmface.tools.inspect_rows import inspect_command

    return inspect_command(arguments.config, arguments.words, arguments.n, arguments.color)


def add_estimate_memory(commands: Commands) -> None:
    """`vlmface estimate-memory`."""
    command = commands.add_parser(
        "estimate-memory",
        help="memory and steps of a run, before it is started",
        allow_abbrev=False,
    )
    _add_settings(command)
    command.add_argument("--gpu", metavar="SIZE", help="such as 24GB (default: this machine's CPU)")
    command.add_argument(
        "--measure", action="store_true", help="take four real steps, for the time"
    )
    command.set_defaults(run=_estimate_memory)


def _estimate_memory(arguments: argparse.Namespace) -> int:
    from vlmface.tools.estimate_memory import estimate_memory_command

    return estimate_memory_command(
        arguments.config, arguments.words, arguments.gpu, arguments.measure
    )


def _add_settings(command: argparse.ArgumentParser) -> None:
    """The arguments of a recipe: `main` hands on what is unknown here as `words`."""
    command.usage = f"{command.prog} [--config FILE] [options] [--field value ...]"
    command.add_argument(
        "--config",
        default="sft_cot_tiny",
        help="settings: a YAML file, or a name in recipes/configs",
    )
    command.set_defaults(words=[])
