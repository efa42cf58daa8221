"""Commands about results: `compare`, `score`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlmface.cli.arguments import Commands


def add_compare(commands: Commands) -> None:
    """`vlmface compare`."""
    compare = commands.add_parser("compare", help="several runs on the same faces, in one table")
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run or evaluation, or NAME=FOLDER; the first is what "
        "the others are held against",
    )
    compare.add_argument(
        "--output-dir", default="compare", help="folder to write (default compare)"
    )
    compare.add_argument(
        "--benchmark",
        metavar="NAME|FILE",
        help="benchmark of the runs, to compare the metrics that its file names, too",
    )
    compare.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from vlmface.evaluate.compare import compare_command

    return compare_command(arguments.runs, arguments.output_dir, arguments.benchmark)


def add_score(commands: Commands) -> None:
    """`vlmface score`."""
    score = commands.add_parser("score", help="score the answers that another system wrote")
    score.add_argument("file", metavar="FILE", type=Path, help="its answers, with the truth")
    score.add_argument(
        "--format", required=True, choices=("ferbench", "facial-r1", "expllm", "jsonl")
    )
    score.add_argument(
        "--label-space", metavar="NAME", help="what may be answered (default emotion8, or as asked)"
    )
    score.add_argument(
        "--au-set",
        nargs="+",
        default=[],
        metavar="AU",
        help="AUs to score, or the benchmark whose set it is (default: those that "
        "the truth lists and, where it does not say what was coded, those that an "
        "answer names)",
    )
    score.add_argument("--output-dir", type=Path, help="folder to write (default scores/FILE)")
    score.set_defaults(run=_score)


def _score(arguments: argparse.Namespace) -> int:
    from vlmface.evaluate.score import score_command

    return score_command(
        arguments.file,
        arguments.format,
        arguments.label_space,
        arguments.output_dir,
        arguments.au_set,
    )
