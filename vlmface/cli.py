"""The `vlmface` command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from vlmface import __version__
from vlmface.errors import UserError
from vlmface.rationale import options as rationales


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


def _data_check(arguments: argparse.Namespace) -> int:
    from vlmface import data
    from vlmface.data import check

    output = arguments.output or Path("checks") / arguments.name
    report = check.check(
        arguments.name,
        arguments.root,
        output,
        splits=arguments.split,
        workers=arguments.workers,
        **data.parse_options(arguments.name, arguments.option),
    )
    print(check.text(report))
    print(f"\nlook at {output / 'sheet.png'}; all of it is in {output / 'check.json'}")
    return 1 if report["errors"] else 0


def _data_crop(arguments: argparse.Namespace) -> int:
    from vlmface import data
    from vlmface.data import crops

    crop = crops.Crop(arguments.size, arguments.margin, arguments.find)
    options = data.parse_options(arguments.name, arguments.option)
    for split in arguments.split or data.adapter(arguments.name).SPLITS:
        rows = data.load(arguments.name, arguments.root, split, **options)
        faces = crops.cached(rows, crop, workers=arguments.workers)
        if arguments.sheet:
            crops.draw(faces, arguments.sheet.with_stem(f"{arguments.sheet.stem}-{split}"))
        print(f"{arguments.name}, {split}: {len(faces):,} rows in {crop.folder}")
    print(f"train on them: --crop {json.dumps(crops.as_dict(crop))!r}")
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

    rationale = commands.add_parser("rationale", help="texts from action units to emotions")
    actions = rationale.add_subparsers(title="actions", metavar="ACTION", required=True)
    rationales.add_build(
        actions.add_parser("build", help="write and check a rationale for each face of a data set")
    )

    data = commands.add_parser("data", help="check a copy of a data set, or crop its faces")
    tools = data.add_subparsers(title="commands", metavar="COMMAND", required=True)

    check = tools.add_parser("check", help="counts, broken files, leaks, and a sheet of faces")
    _add_copy(check)
    check.add_argument("--output", type=Path, help="folder to write (default checks/NAME)")
    check.set_defaults(run=_data_check)

    crop = tools.add_parser("crop", help="cut the faces out once, into the cache of the recipes")
    _add_copy(crop)
    crop.add_argument("--size", type=int, default=224, help="pixels a side (default 224)")
    crop.add_argument("--margin", type=float, default=0.2,
                      help="on each side, times the box's longer side (default 0.2)")  # fmt: skip
    crop.add_argument("--find", choices=("given", "detect"), default="given",
                      help="the data set's own boxes (default), or a face detector")  # fmt: skip
    crop.add_argument("--sheet", type=Path, help="picture to draw of each split's first faces")
    crop.set_defaults(run=_data_crop)

    predict = commands.add_parser("predict", help="rationale, emotion and action units of images")
    predict.add_argument("images", nargs="+", help="image files or folders")
    predict.add_argument("--model", required=True, help="run folder of a recipe")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("--batch_size", type=int, default=16)
    predict.set_defaults(run=_predict)
    return top


def _add_copy(command: argparse.ArgumentParser) -> None:
    """The arguments that name a copy of a data set."""
    command.add_argument("name", metavar="NAME", help="the data set's name in vlmface")
    command.add_argument("root", metavar="ROOT", nargs="?", help="folder of your copy")
    command.add_argument("--split", nargs="+", action="extend", default=[], help="default: all")
    command.add_argument("--option", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                         help="the data set's own options, such as fold=2")  # fmt: skip
    command.add_argument("--workers", type=int, help="threads (default: all cores)")


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
