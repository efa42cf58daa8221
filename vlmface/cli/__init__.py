"""The `vlmface` command. Nothing heavy is imported before a command runs.

`vlmface train` and `vlmface eval` run the scripts of recipes/ and eval/, which travel with the
package; their settings are parsed there.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from vlmface import __version__
from vlmface.cli import data, models, results, scripts, training
from vlmface.cli.scripts import EVALUATIONS, RECIPES
from vlmface.utils import distributed
from vlmface.utils.config import ArgumentParser

__all__ = ["EVALUATIONS", "FORWARDED", "RECIPES", "command", "main", "parser", "run"]


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = ArgumentParser(
        prog="vlmface", description="Fine-tune and question vision-language models that read faces."
    )
    top.add_argument("--version", action="version", version=f"vlmface {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train a model by a recipe (train --list shows them)")
    commands.add_parser("eval", help="evaluate a model (eval --list shows how)")
    commands.add_parser("demo", help="ask a model about faces, in the browser", add_help=False)
    data.add_synth(commands)
    data.add_rationale(commands)
    data.add_data(commands)
    models.add_predict(commands)
    models.add_aus(commands)
    models.add_serve(commands)
    models.add_gateway(commands)
    models.add_merge(commands)
    results.add_compare(commands)
    results.add_score(commands)
    training.add_inspect(commands)
    training.add_estimate_memory(commands)
    return top


# Commands whose words a recipe, an evaluation or the demo parses itself. Training may run in
# several processes.
FORWARDED = {"train": scripts.train, "eval": scripts.evaluate, "demo": scripts.demo}
INTERRUPTED = "stopped; run the same command again to resume"


def run(argv: Sequence[str]) -> int:
    """Run a command.

    Args:
        argv: The words after `vlmface`.

    Returns:
        The exit code.

    Raises:
        UserError: The input was at fault.
    """
    argv = scripts.direct_command(argv)
    if argv and argv[0] in FORWARDED:
        return FORWARDED[argv[0]](argv[1:])
    grammar = parser()
    warnings.simplefilter("ignore", FutureWarning)  # libraries talking to their developers
    arguments, further = grammar.parse_known_args(argv)
    if further and not hasattr(arguments, "words"):
        grammar.error(f"unrecognized arguments: {' '.join(further)}")
    arguments.words = further
    distributed.check_alone("vlmface")
    return int(arguments.run(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command in this process; errors of the input are printed.

    Args:
        argv: The words after `vlmface`; None: those of the command line.

    Returns:
        The exit code: 0 done, 2 the input was at fault.
    """
    words = sys.argv[1:] if argv is None else argv
    return distributed.exit_code(lambda: run(words), INTERRUPTED)


def command() -> NoReturn:
    """The `vlmface` program, of which a launcher may start several processes."""
    distributed.run_command(lambda: run(sys.argv[1:]), INTERRUPTED)
