"""The `vlmface` command. Nothing heavy is imported before a command runs.

`vlmface train` and `vlmface eval` run the scripts of recipes/ and eval/, which travel with the
package; their settings are parsed there.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

from vlmface import __version__
from vlmface.cli import data, models, results, scripts, training
from vlmface.cli.scripts import EVALUATIONS, RECIPES
from vlmface.utils import distributed
from vlmface.utils.config import ArgumentParser
from vlmface.utils.terminal import one_line

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
        grammar.exit(2, f"error: {_unknown_options(argv, further)}\n")
    arguments.words = further
    distributed.check_alone("vlmface")
    return int(arguments.run(arguments))


def _show_warnings_as_lines() -> None:
    """Print each warning once, as one line; those of vlmface are for people, who do not need its
    source."""
    printed: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = issubclass(category, UserWarning) and f"{os.sep}vlmface{os.sep}" in filename
        place = "" if ours else f"{filename}:{lineno}: {category.__name__}: "
        text = f"warning: {place}{one_line(str(message))}"
        if text not in printed:
            print(text, file=sys.stderr)
        printed.add(text)

    warnings.showwarning = show


def _unknown_options(argv: Sequence[str], words: Sequence[str]) -> str:
    """The message about words that a command does not know."""
    command_words = " ".join(word for word in argv[:2] if not word.startswith("-"))
    return (
        f"unrecognized arguments: {' '.join(words)}: `vlmface {command_words} --help` lists the "
        "options"
    )


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
    _show_warnings_as_lines()
    distributed.run_command(lambda: run(sys.argv[1:]), INTERRUPTED)
