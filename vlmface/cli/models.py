"""Commands that ask, serve or merge a model: `predict`, `serve`, `gateway`, `merge`; and `aus`,
which needs none."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vlmface.cli.arguments import Commands
from vlmface.errors import UserError
from vlmface.utils.config import option
from vlmface.utils.ranges import Count, Port, kinds


def add_predict(commands: Commands) -> None:
    """`vlmface predict`."""
    predict = commands.add_parser("predict", help="rationale, emotion and action units of images")
    predict.add_argument(
        "images", nargs="+", help="image files, folders or videos; -: names on standard input"
    )
    _add_model(predict)
    output = predict.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object a line")
    output.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write a table with one row per face; a second call adds the files that it lacks",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace the table of --csv")
    predict.add_argument(
        "--null", action="store_true", help="names on standard input end in NUL (find -print0)"
    )
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


def _predict(arguments: argparse.Namespace) -> int:
    from vlmface.infer.command import PredictOptions, predict_command

    options = PredictOptions(
        images=arguments.images,
        model=arguments.model,
        batch_size=arguments.batch_size,
        box=arguments.box,
        faces=arguments.faces,
        as_json=arguments.json,
        csv=arguments.csv,
        overwrite=arguments.overwrite,
        null=arguments.null,
    )
    return predict_command(options, **_predictor_options(arguments))


def add_aus(commands: Commands) -> None:
    """`vlmface aus`."""
    aus = commands.add_parser(
        "aus", help="action units of the faces in images, from landmarks, without a model"
    )
    aus.add_argument("images", nargs="+", help="image files or folders; -: names on standard input")
    output = aus.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object a face")
    output.add_argument(
        "--csv", type=Path, metavar="FILE", help="write a table, a row for each face"
    )
    aus.add_argument("--overwrite", action="store_true", help="replace the table of --csv")
    aus.add_argument(
        "--faces",
        choices=("largest", "all"),
        default="largest",
        help="the faces of each image; all: small ones are searched for, too, which takes longer "
        "(default: largest)",
    )
    aus.set_defaults(run=_aus)


def _aus(arguments: argparse.Namespace) -> int:
    from vlmface.tools.measure_aus import AusOptions, aus_command

    return aus_command(
        AusOptions(
            images=arguments.images,
            as_json=arguments.json,
            csv=arguments.csv,
            overwrite=arguments.overwrite,
            largest=arguments.faces == "largest",
        )
    )


def add_serve(commands: Commands) -> None:
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


def _serve(arguments: argparse.Namespace) -> int:
    from vlmface.serving.plan import ServeOptions
    from vlmface.serving.vllm import serve_command

    options = ServeOptions(
        vllm="vllm",
        host=arguments.host,
        port=arguments.port,
        dtype=arguments.dtype,
        max_num_seqs=arguments.max_num_seqs,
        words=arguments.words,
    )
    return serve_command(arguments.runs, arguments.vllm, options, dry_run=arguments.dry_run)


def add_gateway(commands: Commands) -> None:
    """`vlmface gateway`."""
    gateway = commands.add_parser("gateway", help="serve a model over HTTP to many clients")
    _add_model(gateway)
    gateway.add_argument("--host", default="127.0.0.1", help="to listen at (default 127.0.0.1)")
    option(gateway, "--port", Port, default=8080, help="to listen at; 0: any free one")
    gateway.add_argument(
        "--client-keys-env",
        metavar="NAME",
        help="environment variable with the keys, one of which clients must send "
        "(default: anyone may send requests)",
    )
    _add_gateway_limits(gateway)
    gateway.add_argument(
        "--trusted-proxy", metavar="ADDRESS", help="of a proxy whose X-Forwarded-For is believed"
    )
    gateway.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="more names that clients may call it by, such as that of a proxy "
        "(default: --host and the names of this machine)",
    )
    gateway.set_defaults(run=_gateway)


def _add_gateway_limits(gateway: argparse.ArgumentParser) -> None:
    from vlmface.serving.gateway.settings import Settings

    rate_help = "requests a minute of one client (default: any number)"
    limits = (
        ("--rate", "rate", {"metavar": "N", "help": rate_help}),
        ("--max-mb", "max_mb", {"default": 10, "help": "of a request"}),
        ("--max-megapixels", "max_megapixels", {"default": 24, "help": "of a picture"}),
        ("--max-faces", "max_faces", {"default": 10, "help": "of a picture"}),
        ("--max-in-flight", "max_in_flight", {"default": 64, "help": "requests answered at once"}),
    )
    seconds = (
        ("--body-timeout", "body_timeout_s", 10, "seconds for a request to arrive"),
        ("--answer-timeout", "answer_timeout_s", 120, "seconds to answer it"),
        ("--drain", "drain_s", 30, "seconds to finish requests that have arrived"),
    )
    ranges = kinds(Settings)
    for flag, field, keywords in limits:
        option(gateway, flag, ranges[field], **keywords)
    for flag, field, default, text in seconds:
        option(gateway, flag, ranges[field], default=default, metavar="S", help=text)


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


def add_merge(commands: Commands) -> None:
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


def _merge(arguments: argparse.Namespace) -> int:
    from vlmface.tools.merge import merge_command

    return merge_command(
        arguments.run_dir, arguments.out, arguments.dtype, arguments.license, arguments.push
    )


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
    command.add_argument(
        "--evidence",
        choices=("measured", "withheld"),
        default="measured",
        help="of prompts that contain measured movements of the face; withheld: they are not "
        "measured, and the prompt says so (default: measured)",
    )


def _predictor_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """`Predictor.load`'s words for these."""
    from vlmface.utils import config

    return {
        "request": config.fields("request", arguments.request) if arguments.request else None,
        "prompt": arguments.prompt,
        "run_dir": arguments.run_dir,
        "served_model_name": arguments.served_model_name,
        "api_key_env": arguments.api_key_env,
        "evidence": arguments.evidence,
    }
