"""The command line of `vlmface rationale build`; imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface.resources import is_yaml

if TYPE_CHECKING:
    from vlmface.rationale.types import BuildSettings


def add_build(parser: argparse.ArgumentParser) -> None:
    """Add the options of `BuildSettings` to a parser.

    Args:
        parser: Of the command.
    """
    parser.set_defaults(run=build_command)
    add = parser.add_argument
    add("--dataset", required=True, help="name of the data set, or a .yaml file")
    add("--dataset-root", help="folder of your copy, as its owners distribute it (synth has none)")
    add("--dataset-split", default="train")
    add("--n", help="number of faces (default: all)")
    add(
        "--dataset-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="options of the data set, such as seed=1",
    )
    add(
        "--output-dir",
        required=True,
        help="folder to write: data set, README.md, rationale.html",
    )
    add("--writer", choices=("rules", "teacher", "model"), default="rules")
    add("--label-space", default="emotion8")
    add(
        "--aus",
        metavar="landmarks|MODULE:FUNCTION",
        help="estimator for faces without annotated AUs: that of the package (vlmface aus), or "
        "your own function, image -> {au: 0..5}",
    )
    add(
        "--au-threshold",
        default=1.0,
        help="least intensity of an estimated AU that is present (default 1)",
    )
    add("--overwrite", action="store_true", help="replace an earlier build")

    group = parser.add_argument_group("rule writer")
    add = group.add_argument
    add("--style", default="varied", help="varied (default), or plain for very small models")
    add("--seed", default=0)
    _add_endpoint(parser)
    _add_model_writer(parser)
    _add_verifier(parser)


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "teacher and model writers",
        "Pictures are sent to the endpoint, if one is given, and to no other machine.",
    )
    add = group.add_argument
    add("--endpoint", metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1")
    add("--model", help="the model's name at the endpoint, or the run folder of a model writer")
    label = group.add_mutually_exclusive_group()
    label.add_argument(
        "--with-label",
        dest="show_label",
        action="store_true",
        default=None,
        help="send the emotion to the teacher",
    )
    label.add_argument(
        "--without-label",
        dest="show_label",
        action="store_false",
        default=None,
        help="do not send it; texts that conclude another emotion are rejected",
    )
    add("--prompt", help="teacher prompt, prompts/teacher/NAME.yaml, or the model's own prompt")
    add("--api-key-env", metavar="NAME", help="environment variable that holds the API key")
    add("--concurrency", default=8, help="requests at a time (default 8)")
    add("--timeout", default=120.0, help="seconds for one request (default 120)")
    add("--attempts", default=6, help="tries of one request (default 6)")
    add("--repairs", default=1, help="retries of a text with faults (default 1)")
    add(
        "--request",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="fields of each request, such as temperature=0; null removes a field",
    )
    add("--image-side", default=768, help="larger pictures are reduced to this")
    add("--price-in", help="price of a million prompt tokens")
    add("--price-out", help="price of a million completion tokens")


def _add_model_writer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "model writer", "A trained model answers each face several times; recipes/synthesize.py."
    )
    add = group.add_argument
    add("--num-samples", default=8, help="answers to each face (default 8)")
    add("--temperature", default=1.0)
    add("--top-p", default=1.0)
    add(
        "--label-source",
        choices=("annotated", "vote"),
        default="annotated",
        help="vote: ignore the annotated labels",
    )
    add("--min-agreement", default=0.5, help="share of the answers (default 0.5)")
    add(
        "--max-label-ratio",
        help="most texts of an emotion, as a multiple of those of the rarest one",
    )
    add("--batch-size", default=16, help="faces at a time, without an endpoint")


def _add_verifier(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("verifier")
    add = group.add_argument
    add("--min-precision", default=1.0, help="of the AUs named (default 1)")
    add("--min-recall", default=1.0, help="of the AUs that are present (default 1)")
    add("--max-words", default=150)
    add(
        "--duplicates",
        choices=("report", "reject"),
        default="report",
        help="count texts that nearly repeat an earlier one (default), or reject them",
    )
    add("--duplicate-threshold", default=0.85, help="least similarity of near duplicates")
    add("--num-page-examples", default=12, help="faces on the page, kept and rejected each")


def build_command(arguments: argparse.Namespace) -> int:
    """Run the build and print its summary; returns the exit code."""
    from vlmface import data
    from vlmface.rationale.build import build
    from vlmface.rationale.types import BuildSettings
    from vlmface.utils import config

    values = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(BuildSettings)}
    values["dataset_options"] = data.parse_options(arguments.dataset, arguments.dataset_options)
    values["request"] = config.fields("request", arguments.request) if arguments.request else {}
    settings = config.from_dict(BuildSettings, values, where="the command line")
    return print_summary(build(settings), settings)


def print_summary(summary: Mapping[str, Any], settings: BuildSettings) -> int:
    """Print the result of a build.

    Args:
        summary: From `build`.
        settings: Of the build.

    Returns:
        The exit code: 2 if faces got no answer.
    """
    counts, cost, vote = summary["counts"], summary["cost"], summary["vote"]
    rejected = ", ".join(f"{n} {reason}" for reason, n in counts["rejected_by"].items())
    skipped = ", ".join(f"{n} {reason}" for reason, n in counts["skipped"].items())
    print(f"kept:     {counts['kept']} of {counts['rows']} faces")
    if skipped:
        print(f"skipped:  {skipped}")
    if rejected:
        print(f"rejected: {counts['rejected']} ({rejected})")
    if vote and vote["all"]["checked"]:
        print(
            f"voted:    the annotated emotion for {vote['all']['right']:.1%} of "
            f"{vote['all']['checked']} faces, {vote['kept']['right'] or 0:.1%} of the kept ones"
        )
    if counts["retried"]:
        print(f"repaired: {counts['repaired']} of {counts['retried']} retried")
    if cost:
        price = "" if cost["price"] is None else f", cost {cost['price']:g}"
        print(
            f"used:     {cost['prompt_tokens']} prompt and {cost['completion_tokens']} completion "
            f"tokens in {cost['requests']} requests{price}"
        )
    if unanswered := counts["rejected_by"].get("no_answer", 0):
        print(
            f"error: {unanswered} faces got no answer and are skipped; the reasons are in "
            f"{settings.output_dir}/rejected.jsonl",
            file=sys.stderr,
        )
    print(f"written:  {settings.output_dir} (data set, README.md, rationale.html)")
    print(f"next:     {_training_command(settings)}")
    return 2 if unanswered else 0


def _training_command(settings: BuildSettings) -> str:
    """The command that trains on the texts; those about a data set's YAML file with its labels."""
    options = f'--dataset_options "{{folder: {settings.output_dir}}}"'
    command = f"vlmface train sft_cot --dataset rationales {options}"
    if is_yaml(settings.dataset):
        command += f" --label_space {settings.dataset} --benchmark {settings.dataset}"
        command += f" --output_dir runs/{Path(settings.dataset).stem}_cot"
    return command
