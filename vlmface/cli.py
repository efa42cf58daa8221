"""The `vlmface` command. Nothing heavy is imported before a command runs.

`vlmface train` and `vlmface eval` run the scripts of recipes/ and eval/, which travel with the
package; their settings are parsed there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from vlmface import __version__
from vlmface.errors import UserError, did_you_mean
from vlmface.rationale import cli as rationales
from vlmface.registry import load_file
from vlmface.resources import resource
from vlmface.utils import distributed
from vlmface.utils.config import ArgumentParser, option
from vlmface.utils.ranges import Count, Natural, NotNegative, Port, Seed, kinds
from vlmface.utils.terminal import printable

Commands: TypeAlias = "argparse._SubParsersAction[ArgumentParser]"


def _synth(arguments: argparse.Namespace) -> int:
    from vlmface.synth.sheet import write_sheet

    path = write_sheet(
        arguments.sheet,
        name=arguments.dataset,
        n=arguments.n,
        split=arguments.dataset_split,
        seed=arguments.seed,
        size=arguments.size,
        workers=arguments.workers,
    )
    print(f"{arguments.n} rows of {arguments.dataset} with their labels: {path}")
    return 0


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


def _data_init(arguments: argparse.Namespace) -> int:
    from vlmface.data.init import command as init

    return init.init_command(arguments.path, init.choices_from(arguments))


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


def _predict(arguments: argparse.Namespace) -> int:
    from vlmface.infer.command import predict_command

    return predict_command(
        arguments.images,
        arguments.model,
        arguments.json,
        arguments.batch_size,
        box=arguments.box,
        faces=arguments.faces,
        **_predictor_options(arguments),
    )


def _serve(arguments: argparse.Namespace) -> int:
    from vlmface.serving.vllm import ServeOptions, serve_command

    options = ServeOptions(
        vllm="vllm",
        host=arguments.host,
        port=arguments.port,
        dtype=arguments.dtype,
        max_num_seqs=arguments.max_num_seqs,
        words=arguments.words,
    )
    return serve_command(arguments.runs, arguments.vllm, options, dry_run=arguments.dry_run)


def _gateway(arguments: argparse.Namespace) -> int:
    from vlmface.serving.gateway.settings import Settings, keys_from_env

    try:
        from vlmface.serving.gateway.command import gateway_command
    except ModuleNotFoundError as error:
        raise UserError(f"to serve a model, pip install 'vlmface[gateway]' ({error})") from error

    settings = Settings(
        keys=keys_from_env(arguments.client_keys_env),
        rate=arguments.rate,
        max_mb=arguments.max_mb,
        max_megapixels=arguments.max_megapixels,
        max_faces=arguments.max_faces,
        max_in_flight=arguments.max_in_flight,
        body_timeout_s=arguments.body_timeout,
        answer_timeout_s=arguments.answer_timeout,
        drain_s=arguments.drain,
    )
    return gateway_command(
        arguments.model,
        settings,
        arguments.host,
        arguments.port,
        arguments.trusted_proxy,
        arguments.allowed_hosts,
        **_predictor_options(arguments),
    )


def _merge(arguments: argparse.Namespace) -> int:
    from vlmface.tools.merge import merge_command

    return merge_command(
        arguments.run_dir, arguments.out, arguments.dtype, arguments.license, arguments.push
    )


def _inspect(arguments: argparse.Namespace) -> int:
    from vlmface.tools.inspect_rows import inspect_command

    return inspect_command(arguments.config, arguments.words, arguments.n, arguments.color)


def _estimate_memory(arguments: argparse.Namespace) -> int:
    from vlmface.tools.estimate_memory import estimate_memory_command

    return estimate_memory_command(
        arguments.config, arguments.words, arguments.gpu, arguments.measure
    )


def _compare(arguments: argparse.Namespace) -> int:
    from vlmface.evaluate.compare import compare_command

    return compare_command(arguments.runs, arguments.output_dir, arguments.benchmark)


def _score(arguments: argparse.Namespace) -> int:
    from vlmface.evaluate.score import score_command

    return score_command(
        arguments.file,
        arguments.format,
        arguments.label_space,
        arguments.output_dir,
        arguments.au_set,
    )


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
    _add_synth(commands)
    _add_rationale(commands)
    _add_data(commands)
    _add_predict(commands)
    _add_serve(commands)
    _add_gateway(commands.add_parser("gateway", help="serve a model over HTTP to many clients"))
    _add_merge(commands)
    _add_compare(commands)
    _add_score(commands)
    _add_inspect(commands)
    _add_estimate_memory(commands)
    return top


def _add_synth(commands: Commands) -> None:
    """`vlmface synth`."""
    synth = commands.add_parser(
        "synth", help="render labelled faces, scenes or clips and draw them on a contact sheet"
    )
    synth.add_argument(
        "--dataset", default="synth", help="synth (faces, the default), synth_scenes or synth_clips"
    )
    option(synth, "--n", Count, default=64, help="number of them")
    synth.add_argument("--sheet", type=Path, default=Path("sheet.png"), help="picture to write")
    synth.add_argument("--dataset-split", default="train", help="train, validation or test")
    option(synth, "--seed", Seed, default=0)
    option(synth, "--size", Count, default=None, help="pixels a side (default 96, of scenes 192)")
    option(synth, "--workers", Count, default=None, help="processes (default: all cores)")
    synth.set_defaults(run=_synth)


def _add_rationale(commands: Commands) -> None:
    """`vlmface rationale build`."""
    rationale = commands.add_parser(
        "rationale", help="build verified rationales for a labelled data set"
    )
    actions = rationale.add_subparsers(title="actions", metavar="ACTION", required=True)
    rationales.add_build(
        actions.add_parser("build", help="write and check a rationale for each face of a data set")
    )


def _add_data(commands: Commands) -> None:
    """`vlmface data init`, `vlmface data check` and `vlmface data crop`."""
    data = commands.add_parser(
        "data", help="describe your own data, check a copy of a data set, or crop its faces"
    )
    tools = data.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_data_init(tools)
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


def _add_data_init(tools: Commands) -> None:
    """`vlmface data init`."""
    from vlmface.data.init.names import ROLES

    init = tools.add_parser("init", help="look at your own data and write a YAML file for them")
    init.add_argument(
        "path",
        metavar="FILE_OR_FOLDER",
        type=Path,
        help="a table (csv, tsv, json, jsonl, parquet, xlsx), or a folder of tables or of folders "
        "named by label",
    )
    for role in ROLES:
        init.add_argument(
            f"--{role.replace('_', '-')}",
            metavar="COLUMN",
            help=f"column of the {role.replace('_', ' ')}; none: no column (default: guessed)",
        )
    init.add_argument("--images", metavar="FOLDER", help="the folder that paths start from")
    init.add_argument(
        "--split-by",
        choices=("subject", "image"),
        help="what is never in two splits (default: subject, if a column names people)",
    )
    init.add_argument("--label-space", metavar="NAME|FILE", help="what the labels are")
    init.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="WORD=LABEL",
        help="what words or numbers mean, such as 0=anger bored=null, or the name of a data set "
        "that is coded alike, such as fer2013",
    )
    init.add_argument(
        "--ordered",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="the labels are steps of a scale: name them, the lowest first",
    )
    init.add_argument(
        "--multi-label", action="store_true", help="a face may have several of the labels"
    )
    init.add_argument("--output", type=Path, metavar="FILE", help="the YAML file to write")
    init.add_argument("--overwrite", action="store_true", help="replace an existing file")
    init.set_defaults(run=_data_init)


def _add_predict(commands: Commands) -> None:
    """`vlmface predict`."""
    predict = commands.add_parser("predict", help="rationale, emotion and action units of images")
    predict.add_argument("images", nargs="+", help="image files, folders or videos")
    _add_model(predict)
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="which face of the one image, in pixels",
    )
    predict.add_argument(
        "--faces",
        choices=("none", "largest", "all"),
        help="the faces to look for in each image; none: each image is shown as a "
        "whole (default: largest for a run that was trained on faces and where "
        "vlmface[detect] is installed, otherwise none)",
    )
    option(predict, "--batch-size", Count, default=16)
    predict.set_defaults(run=_predict)


def _add_serve(commands: Commands) -> None:
    """`vlmface serve`."""
    serve = commands.add_parser(
        "serve", help="start vLLM for a run and verify that its outputs match", allow_abbrev=False
    )
    serve.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, or NAME=FOLDER; several adapters of one base",
    )
    serve.add_argument("--vllm", help="its executable (default: $VLLM, or vllm on the path)")
    serve.add_argument("--host", default="127.0.0.1")
    option(serve, "--port", Port, default=8000)
    serve.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="(default: bfloat16 on a GPU, float32 on a CPU)",
    )
    option(serve, "--max-num-seqs", Count, default=64, help="answers at a time")
    serve.add_argument("--dry-run", action="store_true", help="print vLLM's command only")
    serve.set_defaults(run=_serve, words=[])


def _add_merge(commands: Commands) -> None:
    """`vlmface merge`."""
    merge = commands.add_parser("merge", help="fold a run's adapter into its base, as a checkpoint")
    merge.add_argument("run_dir", metavar="RUN", type=Path, help="run folder of a recipe")
    merge.add_argument("out", metavar="OUT", type=Path, help="folder to make")
    merge.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the stored weights (default float32: not rounded)",
    )
    merge.add_argument("--license", metavar="ID", help="licence id of the model card")
    merge.add_argument("--push", metavar="OWNER/NAME", help="also upload it to the model hub")
    merge.set_defaults(run=_merge)


def _add_compare(commands: Commands) -> None:
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


def _add_score(commands: Commands) -> None:
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


def _add_inspect(commands: Commands) -> None:
    """`vlmface inspect`."""
    inspect = commands.add_parser(
        "inspect", help="a run's training rows token by token", allow_abbrev=False
    )
    _add_settings(inspect)
    option(inspect, "--n", Natural, default=3, help="rows to print")
    inspect.add_argument("--color", action="store_true", help="colours, also into a file")
    inspect.set_defaults(run=_inspect)


def _add_estimate_memory(commands: Commands) -> None:
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


def _add_settings(command: argparse.ArgumentParser) -> None:
    """The arguments of a recipe: `main` hands on what is unknown here as `words`."""
    command.usage = f"{command.prog} [--config FILE] [options] [--field value ...]"
    command.add_argument(
        "--config",
        default="sft_cot_tiny",
        help="settings: a YAML file, or a name in recipes/configs",
    )
    command.set_defaults(words=[])


def _add_model(command: argparse.ArgumentParser) -> None:
    """The arguments that say who answers."""
    command.add_argument(
        "--model", required=True, help="run folder of a recipe, or the URL of a server"
    )
    command.add_argument("--prompt", help="ask this one of the run's prompts (default: all)")
    command.add_argument(
        "--run-dir", metavar="RUN", help="of a server: the run folder that it serves"
    )
    command.add_argument(
        "--served-model-name", metavar="NAME", help="of a server: its name for the model"
    )
    command.add_argument(
        "--api-key-env", metavar="NAME", help="of a server: environment variable that holds its key"
    )
    command.add_argument(
        "--request",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="of a server: fields of each request, such as temperature=null "
        "max_completion_tokens=256; null removes a field",
    )


def _add_gateway(command: argparse.ArgumentParser) -> None:
    from vlmface.serving.gateway.settings import Settings

    limits = kinds(Settings)
    _add_model(command)
    command.add_argument("--host", default="127.0.0.1", help="to listen at (default 127.0.0.1)")
    option(command, "--port", Port, default=8080, help="to listen at; 0: any free one")
    command.add_argument(
        "--client-keys-env",
        metavar="NAME",
        help="environment variable with the keys, one of which clients must send "
        "(default: anyone may send requests)",
    )
    option(
        command,
        "--rate",
        limits["rate"],
        metavar="N",
        help="requests a minute of one client (default: any number)",
    )
    option(command, "--max-mb", limits["max_mb"], default=10, help="of a request")
    option(command, "--max-megapixels", limits["max_megapixels"], default=24, help="of a picture")
    option(command, "--max-faces", limits["max_faces"], default=10, help="of a picture")
    option(
        command,
        "--max-in-flight",
        limits["max_in_flight"],
        default=64,
        help="requests answered at once",
    )
    option(
        command,
        "--body-timeout",
        limits["body_timeout_s"],
        default=10,
        metavar="S",
        help="seconds for a request to arrive",
    )
    option(
        command,
        "--answer-timeout",
        limits["answer_timeout_s"],
        default=120,
        metavar="S",
        help="seconds to answer it",
    )
    option(
        command,
        "--drain",
        limits["drain_s"],
        default=30,
        metavar="S",
        help="seconds to finish requests that have arrived",
    )
    command.add_argument(
        "--trusted-proxy", metavar="ADDRESS", help="of a proxy whose X-Forwarded-For is believed"
    )
    command.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="more names that clients may call it by, such as that of a proxy "
        "(default: --host and the names of this machine)",
    )
    command.set_defaults(run=_gateway)


def _predictor_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """`Predictor.load`'s words for these."""
    from vlmface.utils import config

    return {
        "request": config.fields("request", arguments.request) if arguments.request else None,
        "prompt": arguments.prompt,
        "run_dir": arguments.run_dir,
        "served_model_name": arguments.served_model_name,
        "api_key_env": arguments.api_key_env,
    }


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


# --- recipes, evaluations and the demo ------------------------------------------------------------

RECIPES = (
    "sft_cot",
    "sft_labels",
    "sft_attributes",
    "context_emotion",
    "grpo",
    "clip_finetune",
    "clip_captions",
    "synthesize",
    "facial_r1_loop",
)
EVALUATIONS = {
    "run": ("vlmface.evaluate.run", "score a model on a benchmark"),
    "sweep": ("vlmface.evaluate.sweep", "find the best of many prompts and models"),
    "faithfulness": (
        "vlmface.evaluate.faithfulness",
        "test which evidence the answers depend on",
    ),
    "robustness": ("vlmface.evaluate.robustness", "measure accuracy under image corruptions"),
    "temporal": (
        "vlmface.pipelines.temporal_ablation",
        "compare a model of clips with the same model of single frames",
    ),
    "compare": ("", "compare several runs on the same faces; also `vlmface compare`"),
    "score": ("", "score the answers of another system; also `vlmface score`"),
}


def _train(words: Sequence[str]) -> int:
    """`vlmface train RECIPE [--config FILE] [--field value ...]`."""
    name = _first(words, "train RECIPE [--config FILE.yaml] [--field value ...]", _list_recipes)
    if name is None:
        return 0
    if name not in RECIPES:
        raise UserError(
            f"there is no recipe {name!r}{did_you_mean(name, RECIPES)}: {_known(RECIPES)}"
        )
    recipe = load_file(resource(f"recipes/{name}.py"))
    return int(recipe.main(list(words[1:])))


def _eval(words: Sequence[str]) -> int:
    """`vlmface eval EVALUATION [--field value ...]`."""
    name = _first(words, "eval EVALUATION [--field value ...]", _list_evaluations)
    if name is None:
        return 0
    if name not in EVALUATIONS:
        hint = did_you_mean(name, EVALUATIONS)
        raise UserError(f"there is no evaluation {name!r}{hint}: {_known(EVALUATIONS)}")
    module = EVALUATIONS[name][0]
    if not module:
        return run(words)
    return int(importlib.import_module(module).main(list(words[1:])))


def _demo(words: Sequence[str]) -> int:
    """`vlmface demo [--model RUN] ...`."""
    from vlmface.demo.command import main as serve_demo

    distributed.check_alone("vlmface demo")
    return serve_demo(words)


def _first(words: Sequence[str], usage: str, list_names: Callable[[], None]) -> str | None:
    """The name that words begin with; None after `--help` or `--list`, which are printed."""
    if words and not words[0].startswith("-"):
        return words[0]
    print(f"usage: vlmface {usage}\n")
    list_names()
    if words and words[0] not in ("-h", "--help", "--list"):
        raise UserError(f"{words[0]} stands before the name: write vlmface {usage}")
    if not words:
        raise UserError(f"a name is missing: write vlmface {usage}")
    return None


def _list_recipes() -> None:
    print("recipes (vlmface train RECIPE --help shows the settings):")
    for name in RECIPES:
        text = resource(f"recipes/{name}.py").read_text(encoding="utf-8")
        summary = ast.get_docstring(ast.parse(text)) or ""
        sentence = " ".join(summary.partition("\n\n")[0].split())
        print(
            textwrap.fill(
                f"{name:17}{sentence}", 100, initial_indent="  ", subsequent_indent=" " * 19
            )
        )
    print("\nconfigurations (--config NAME, or your own YAML file):")
    names = sorted(path.stem for path in resource("recipes/configs").glob("*.yaml"))
    print(textwrap.fill(", ".join(names), 100, initial_indent="  ", subsequent_indent="  "))


def _list_evaluations() -> None:
    print("evaluations (vlmface eval EVALUATION --help shows the settings):")
    for name, (_, summary) in EVALUATIONS.items():
        print(f"  {name:15}{summary}")


def _known(names: Iterable[str]) -> str:
    return f"use one of {', '.join(names)}"


# Commands whose words a recipe, an evaluation or the demo parses itself. Training may run in
# several processes.
FORWARDED = {"train": _train, "eval": _eval, "demo": _demo}
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


if __name__ == "__main__":
    command()
