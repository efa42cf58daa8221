"""`python app/demo.py`: load the models and serve the page."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vlmface import manifest
from vlmface.demo import security_middleware
from vlmface.errors import UserError
from vlmface.infer.endpoint import is_url
from vlmface.utils.config import ArgumentParser, option
from vlmface.utils.ranges import Port

if TYPE_CHECKING:
    from vlmface.demo.model_choices import ModelCard
    from vlmface.infer.predictor import Predictor

DEFAULT_RUN = "runs/sft_cot"  # the output folder of the default recipe


def main(argv: Sequence[str]) -> int:
    """Serve the demo until it is interrupted; returns the exit code.

    Args:
        argv: The arguments of the command line.
    """
    arguments = _parser().parse_args(argv)
    model = arguments.model if arguments.model is not None else _default_model()
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="vlmface-demo-"))
        security_middleware.harden_gradio_env(temporary)
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise UserError(f"the demo needs pip install 'vlmface[demo]' ({error})") from error
        from vlmface.demo import app
        from vlmface.demo.state import Demo
        from vlmface.infer.predictor import Predictor

        predictors, cards = [], []
        for run_or_url, run_dir, prompt in (
            (model, arguments.run_dir, arguments.prompt),
            (arguments.compare, arguments.compare_run, arguments.compare_prompt),
        ):
            if run_or_url is None:
                continue
            predictor = Predictor.load(
                run_or_url, run_dir=run_dir, prompt=prompt, evidence=arguments.evidence
            )
            predictors.append(stack.enter_context(predictor))
            cards.append(_model_card(predictor, run_or_url, run_dir))
        demo = Demo(predictors, cards, Path(temporary))
        stack.callback(demo.close)
        app.serve(demo, arguments.host, arguments.port, arguments.allowed_hosts)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="demo.py", description="Try a trained model in the browser.")
    parser.add_argument(
        "--model",
        metavar="RUN|URL",
        help=f"run folder, URL of a server, or base model with --prompt (default {DEFAULT_RUN})",
    )
    parser.add_argument(
        "--run-dir", metavar="RUN", help="for a server: the folder of the run that it serves"
    )
    parser.add_argument("--prompt", help="use this prompt only; a base model needs one")
    parser.add_argument(
        "--evidence",
        choices=("measured", "withheld"),
        default="measured",
        help="of prompts that contain measured movements of the face (default: measured)",
    )
    parser.add_argument("--compare", metavar="RUN|URL", help="a second model to compare with")
    parser.add_argument("--compare-run", metavar="RUN", help="--run_dir for the second model")
    parser.add_argument("--compare-prompt", metavar="PROMPT", help="--prompt for the second model")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine only)",
    )
    option(parser, "--port", Port, default=7860)
    parser.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="more host names that the demo answers to, such as that of a proxy",
    )
    return parser


def _default_model() -> str:
    if not manifest.is_run(DEFAULT_RUN):
        raise UserError(
            f"{DEFAULT_RUN} has no finished run: train one with `accelerate launch "
            "recipes/sft_cot.py`, or choose a model with --model RUN (a server: --model URL "
            "--run-dir RUN; the untrained base: --model vlmface-tiny --prompt face_cot)"
        )
    return DEFAULT_RUN


def _model_card(predictor: Predictor, model: str, run_dir: str | None) -> ModelCard:
    from vlmface.demo import model_choices

    is_server = is_url(model)
    run_dir = run_dir if is_server else (model if manifest.is_run(model) else None)
    return model_choices.model_card(predictor, run_dir, server=is_server)
