"""Commands about data: `synth`, `rationale`, `data init`, `data check`, `data crop`,
`data add-aus`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vlmface.cli.arguments import Commands
from vlmface.rationale import cli as rationales
from vlmface.utils.config import option
from vlmface.utils.ranges import Count, NotNegative, Seed
from vlmface.utils.terminal import printable


def add_synth(commands: Commands) -> None:
    """`vlmface synth`."""
    synth = commands.add_parser(
        "synth", help="render labelled faces, scenes or clips and draw them on a contact sheet"
    )
    synth.add_argument(
        "--dataset",
        default="synth",
        help="synth (faces, the default), synth_v2 (more like photographs), synth_scenes or "
        "synth_clips",
    )
    option(synth, "--n", Count, default=64, help="number of them")
    synth.add_argument("--sheet", type=Path, default=Path("sheet.png"), help="picture to write")
    synth.add_argument("--dataset-split", default="train", help="train, validation or test")
    option(synth, "--seed", Seed, default=0)
    option(synth, "--size", Count, default=None, help="pixels a side (default 96, of scenes 192)")
    option(synth, "--workers", Count, default=None, help="processes (default: all cores)")
    synth.set_defaults(run=_synth)


def _synth(arguments: argparse.Namespace) -> int:
    from vlmface.synth.sharded_dataset import RenderOptions
    from vlmface.synth.sheet import write_sheet

    options = RenderOptions(n=arguments.n, seed=arguments.seed, size=arguments.size)
    path = write_sheet(
        arguments.sheet,
        arguments.dataset,
        arguments.dataset_split,
        options,
        workers=arguments.workers,
    )
    print(f"{arguments.n} rows of {arguments.dataset} with their labels: {path}")
    return 0


def add_rationale(commands: Commands) -> None:
    """`vlmface rationale build`."""
    rationale = commands.add_parser(
        "rationale", help="build verified rationales for a labelled data set"
    )
    actions = rationale.add_subparsers(title="actions", metavar="ACTION", required=True)
    rationales.add_build(
        actions.add_parser("build", help="write and check a rationale for each face of a data set")
    )


def add_data(commands: Commands) -> None:
    """`vlmface data` with its commands."""
    data = commands.add_parser(
        "data",
        help="describe your own data, check a copy of a data set, crop its faces, or estimate "
        "their action units",
    )
    tools = data.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_init(tools)
    check = tools.add_parser("check", help="counts, broken files, leaks, and a sheet of faces")
    _add_copy(check)
    check.add_argument("--output-dir", type=Path, help="folder to write (default checks/NAME)")
    check.set_defaults(run=_data_check)

    crop = tools.add_parser("crop", help="cut the faces out once, into the cache of the recipes")
    _add_copy(crop)
    option(crop, "--size", Count, default=224, help="pixels a side")
    option(
        crop, "--margin", NotNegative, default=0.2, help="on each side, times the box's longer side"
    )
    crop.add_argument(
        "--box-source",
        choices=("annotation", "detector"),
        default="annotation",
        help="the data set's own boxes (default), or a face detector",
    )
    crop.add_argument(
        "--view",
        default="face",
        choices=("face", "face_boxed", "face_masked", "scene", "person"),
        help="which view of the picture, see docs/context.md",
    )
    crop.add_argument("--sheet", type=Path, help="picture to draw of each split's first faces")
    crop.set_defaults(run=_data_crop)
    _add_add_aus(tools)


def _add_add_aus(tools: Commands) -> None:
    """`vlmface data add-aus`."""
    add_aus = tools.add_parser(
        "add-aus", help="estimate action units from landmarks, next to a data set's YAML file"
    )
    add_aus.add_argument("dataset", metavar="FILE.yaml", help="YAML file of the data set")
    add_aus.add_argument("root", metavar="ROOT", nargs="?", help="folder, if the file names none")
    add_aus.add_argument(
        "--dataset-split", nargs="+", action="extend", default=[], help="default: all"
    )
    add_aus.add_argument(
        "--overwrite", action="store_true", help="replace the estimates of another model"
    )
    add_aus.set_defaults(run=_data_add_aus)


def _data_add_aus(arguments: argparse.Namespace) -> int:
    from vlmface.tools.add_aus import AddAusOptions, add_aus_command

    return add_aus_command(
        AddAusOptions(
            arguments.dataset, arguments.root, arguments.dataset_split, arguments.overwrite
        )
    )


def _add_copy(command: argparse.ArgumentParser) -> None:
    """The arguments that name a copy of a data set."""
    command.add_argument("name", metavar="NAME", help="the data set's name in vlmface")
    command.add_argument("root", metavar="ROOT", nargs="?", help="folder of your copy")
    command.add_argument(
        "--dataset-split", nargs="+", action="extend", default=[], help="default: all"
    )
    command.add_argument(
        "--dataset-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="the data set's own options, such as fold=2",
    )
    option(command, "--workers", Count, help="threads (default: all cores)")


def _add_init(tools: Commands) -> None:
    """`vlmface data init`."""
    from vlmface.column_roles import COLUMN_ROLES

    init = tools.add_parser("init", help="look at your own data and write a YAML file for them")
    init.add_argument(
        "path",
        metavar="FILE_OR_FOLDER",
        type=Path,
        help="a table (csv, tsv, json, jsonl, parquet, xlsx), or a folder of tables or of folders "
        "named by label",
    )
    for role in COLUMN_ROLES:
        init.add_argument(
            f"--{role.replace('_', '-')}",
            metavar="COLUMN",
            help=f"column of the {role.replace('_', ' ')}; none: no column (default: guessed)",
        )
    init.add_argument("--images", metavar="FOLDER", help="the folder that paths start from")
    _add_init_sources(init)
    init.add_argument(
        "--split-by",
        choices=("subject", "image", "video"),
        help="what is never in two splits (default: subject, if a column names people; else video, "
        "if rows are frames of several videos)",
    )
    init.add_argument("--label-space", metavar="NAME|FILE", help="what the labels are")
    init.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="WORD=LABEL",
        help="what words or numbers mean, such as 0=anger bored=null, a csv file with two columns, "
        "or the name of a data set that is coded alike, such as fer2013",
    )
    init.add_argument(
        "--ordered",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="the labels are steps of a scale: name them, the lowest first",
    )
    init.add_argument(
        "--scale",
        metavar="COLUMN=MIN:MAX[:STEP]",
        help="the labels are ratings on a scale of numbers, such as engagement=0:10 (default: "
        "guessed; without COLUMN: of the label or the raters)",
    )
    init.add_argument(
        "--multi-label", action="store_true", help="a face may have several of the labels"
    )
    init.add_argument("--output", type=Path, metavar="FILE", help="the YAML file to write")
    init.add_argument("--overwrite", action="store_true", help="replace an existing file")
    init.set_defaults(run=_data_init)


def _add_init_sources(init: argparse.ArgumentParser) -> None:
    """The options of `vlmface data init` about where labels and people are."""
    init.add_argument(
        "--raters",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns with the labels of one rater each, which are counted as votes",
    )
    init.add_argument(
        "--label-columns",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of 0 and 1, of votes or of probabilities, one for each label",
    )
    init.add_argument(
        "--name-pattern",
        metavar="PATTERN",
        help="what the names of the pictures say, such as '{subject}_{label}_*' or '{subject}/*'",
    )
    init.add_argument("--sheet", metavar="NAME", help="the sheet of a workbook (xlsx)")
    init.add_argument(
        "--encoding", metavar="NAME", help="of a text file that is not UTF-8, such as cp1252"
    )


def _data_init(arguments: argparse.Namespace) -> int:
    from vlmface.data.init import command as init

    return init.init_command(arguments.path, init.choices_from(arguments))


def _data_check(arguments: argparse.Namespace) -> int:
    from vlmface import data
    from vlmface.data import check

    output_dir = arguments.output_dir or Path("checks") / data.short_name(arguments.name)
    report = check.check(
        arguments.name,
        arguments.root,
        output_dir,
        splits=arguments.dataset_split,
        workers=arguments.workers,
        options=data.parse_options(arguments.name, arguments.dataset_options),
    )
    print(printable(check.format_report(report), lines=True))
    print(f"\nlook at {output_dir / 'sheet.png'}; all of it is in {output_dir / 'check.json'}")
    return 1 if report["errors"] else 0


def _data_crop(arguments: argparse.Namespace) -> int:
    from vlmface import data
    from vlmface.data import crop_cache, crops

    crop = crops.View(arguments.size, arguments.margin, arguments.box_source, arguments.view)
    options = data.parse_options(arguments.name, arguments.dataset_options)
    for split in arguments.dataset_split or data.splits_of(
        arguments.name, arguments.root, **options
    ):
        rows = data.load(arguments.name, arguments.root, split, **options)
        faces = crop_cache.cache_view(rows, crop, workers=arguments.workers)
        if arguments.sheet:
            crop_cache.write_contact_sheet(
                faces, arguments.sheet.with_stem(f"{arguments.sheet.stem}-{split}")
            )
        print(f"{arguments.name}, {split}: {len(faces):,} rows in {crop.folder}")
    print(f"train on them: --views {json.dumps(crops.views_as_dicts([crop]))!r}")
    return 0
