"""`python app/demo.py`: load the models, open the page, wait."""

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
from vlmface.utils.config import option
from vlmface.utils.ranges import Port

if TYPE_CHECKING:
    from vlmface.demo.model_choices import Card
    from vlmface.infer.predictor import Predictor

RUN = "runs/sft_cot"  # where the default recipe leaves its model


def main(argv: Sequence[str]) -> int:
    """Serve the demo until it is interrupted; returns the exit code."""
    arguments = _grammar().parse_args(argv)
    model = _model(arguments.model)
    with ExitStack() as closing:
        temporary = closing.enter_context(tempfile.TemporaryDirectory(prefix="vlmface-demo-"))
        security_middleware.close_gradio(temporary)
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise UserError(f"the demo needs pip install 'vlmface[demo]' ({error})") from error
        from vlmface.demo import app
        from vlmface.demo.state import Demo
        from vlmface.infer.predictor import Predictor

        predictors, cards = [], []
        for one, run, prompt in (
            (model, arguments.run, arguments.prompt),
            (arguments.compare, arguments.compare_run, arguments.compare_prompt),
        ):
            if one is None:
                continue
            predictor = Predictor.load(one, run=run, prompt=prompt)
            predictors.append(closing.enter_context(predictor))
            cards.append(_card(predictor, one, run))
        demo = Demo(predictors, cards, Path(temporary))
        closing.callback(demo.close)
        app.serve(demo, arguments.host, arguments.port, arguments.allowed_hosts)
    return 0


def _grammar() -> argparse.ArgumentParser:
    grammar = argparse.ArgumentParser(
        prog="demo.py", description="Ask a trained model about faces, in the browser."
    )
    grammar.add_argument(
        "--model",
        metavar="RUN|URL",
        help=f"run folder, server, or a base with --prompt (default {RUN})",
    )
    grammar.add_argument("--run", metavar="RUN", help="of a server: the run folder that it serves")
    grammar.add_argument("--prompt", help="ask this prompt alone; a base model needs one")
    grammar.add_argument("--compare", metavar="RUN|URL", help="a second model, side by side")
    grammar.add_argument("--compare_run", metavar="RUN", help="as --run, of the second model")
    grammar.add_argument("--compare_prompt", metavar="PROMPT", help="as --prompt, of the second")
    grammar.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine alone)",
    )
    option(grammar, "--port", Port, default=7860)
    grammar.add_argument(
        "--allowed_hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="more names in the address bar that the demo answers to, such as that of a proxy",
    )
    return grammar


def _model(given: str | None) -> str:
    if given is not None:
        return given
    if not manifest.is_run(RUN):
        raise UserError(
            f"there is no finished run in {RUN}: train one with `accelerate launch "
            "recipes/sft_cot.py`, or say which model to show with --model RUN (a server: --model "
            "URL --run RUN; the untrained base: --model vlmface-tiny --prompt face_cot)"
        )
    return RUN


def _card(predictor: Predictor, model: str, run: str | None) -> Card:
    from vlmface.demo import model_choices

    described = run if is_url(model) else (model if manifest.is_run(model) else None)
    return model_choices.card(predictor, described, server=is_url(model))
