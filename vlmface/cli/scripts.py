"""Commands that run a recipe, an evaluation or the demo, which parse their words themselves."""

from __future__ import annotations

import ast
import importlib
import textwrap
from collections.abc import Callable, Iterable, Sequence

from vlmface.errors import UserError, did_you_mean
from vlmface.registry import load_file
from vlmface.resources import resource
from vlmface.utils import distributed

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
    "landmarks": (
        "vlmface.evaluate.landmarks",
        "score the action units that landmarks alone show, to hold a model against",
    ),
    "compare": ("", "compare several runs on the same faces; also `vlmface compare`"),
    "score": ("", "score the answers of another system; also `vlmface score`"),
}


def train(words: Sequence[str]) -> int:
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


def evaluate(words: Sequence[str]) -> int:
    """`vlmface eval EVALUATION [--field value ...]`."""
    name = _first(words, "eval EVALUATION [--field value ...]", _list_evaluations)
    if name is None:
        return 0
    if name not in EVALUATIONS:
        hint = did_you_mean(name, EVALUATIONS)
        raise UserError(f"there is no evaluation {name!r}{hint}: {_known(EVALUATIONS)}")
    return int(importlib.import_module(EVALUATIONS[name][0]).main(list(words[1:])))


def direct_command(words: Sequence[str]) -> Sequence[str]:
    """`eval compare ...` as `compare ...`, for evaluations that are commands themselves."""
    if len(words) > 1 and words[0] == "eval":
        module = EVALUATIONS.get(words[1], ("not an evaluation",))[0]
        return words if module else words[1:]
    return words


def demo(words: Sequence[str]) -> int:
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
