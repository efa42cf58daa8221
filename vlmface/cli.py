"""The `vlmface` command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from vlmface import __version__
from vlmface.errors import UserError


def _synth(arguments: argparse.Namespace) -> int:
    from vlmface.synth.sheet import write_sheet

    path = write_sheet(
        arguments.sheet,
        n=arguments.n,
        split=arguments.split,
        seed=arguments.seed,
        size=arguments.size,
        workers=arguments.workers,
    )
    print(f"{arguments.n} labelled faces: {path}")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from vlmface.infer.predictor import predict_command

    return predict_command(arguments.images, arguments.model, arguments.json, arguments.batch_size)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="vlmface", description="Fine-tune and question vision-language models that read faces."
    )
    top.add_argument("--version", action="version", version=f"vlmface {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    synth = commands.add_parser(
        "synth", help="render labelled faces and draw them on a contact sheet"
    )
    synth.add_argument("--n", type=int, default=64, help="number of faces (default 64)")
    synth.add_argument("--sheet", type=Path, default=Path("sheet.png"), help="picture to write")
    synth.add_argument("--split", default="train", help="train, validation or test")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--size", type=int, default=96, help="pixels a side (default 96)")
    synth.add_argument("--workers", type=int, default=None, help="processes (default: all cores)")
    synth.set_defaults(run=_synth)

    predict = commands.add_parser("predict", help="rationale, emotion and action units of images")
    predict.add_argument("images", nargs="+", help="image files or folders")
    predict.add_argument("--model", required=True, help="run folder of a recipe")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("--batch_size", type=int, default=16)
    predict.set_defaults(run=_predict)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 2 the input was at fault)."""
    arguments = parser().parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # libraries talking to their developers
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one left off", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
