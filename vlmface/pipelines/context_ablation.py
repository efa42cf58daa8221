"""What a person feels or does, from the face, from what is around it, or from both.

A run of recipes/context_emotion.py trains one model on several views of an image, or, with
`ablation`, three models: on the face alone, on the context alone, and on both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.evaluate import compare, report
from vlmface.metrics.metric import METRICS, of_kind, scored_blocks
from vlmface.metrics.shares import in_brackets
from vlmface.pipelines import sft
from vlmface.run_dir import open_run, start_run
from vlmface.train import checks
from vlmface.train.settings import SFTSettings
from vlmface.utils import distributed
from vlmface.utils.files import atomic_write
from vlmface.utils.ranges import Unused

if TYPE_CHECKING:
    from vlmface.train.clip.settings import ContextSettings

RECIPE = "context_emotion"
ARMS = ("face", "scene", "both")  # folders of an ablation's runs
ABLATION = "ablation"  # name of the files that compare them


@dataclass(frozen=True, kw_only=True)
class Settings(SFTSettings):
    """One run of recipes/context_emotion.py with a vision-language model.

    Args:
        model: vlm: a vision-language model; clip-caer: a CLIP, with settings of its own
        ablation: train on the face alone, the context alone and both, and compare them
        single_view_prompts: prompts of the ablation's runs on one view, {face: ID, scene: ID}
    """

    model: Literal["vlm"] = "vlm"
    scoring: Literal["generate", "likelihood", "both"] = "likelihood"
    ablation: bool = False
    single_view_prompts: dict[str, Any] = field(default_factory=dict)

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from super().unused()
        if not self.ablation:
            yield Unused("single_view_prompts", "ablation is false", None)


T = TypeVar("T", Settings, "ContextSettings")


# --- runs -----------------------------------------------------------------------------------------


def run_vlm(settings: Settings) -> int:
    """Train a vision-language model on the views, or three of them for an ablation.

    Returns:
        The exit code.

    Raises:
        UserError: The settings do not fit the launch, the model, the data or the folder.
    """
    if not settings.ablation:
        return sft.run(RECIPE, settings)
    distributed.check_processes(settings.num_processes)
    checks.check_machine(settings)
    return run_ablation(
        settings, ablation_runs(settings), lambda run_settings: sft.run(RECIPE, run_settings)
    )


def run_clip(settings: ContextSettings) -> int:
    """Train a CLIP that joins the views, or three of them for an ablation.

    Returns:
        The exit code.

    Raises:
        UserError: The settings do not fit the launch, the model, the data or the folder.
    """
    from vlmface.pipelines import clip  # needs open_clip

    if not settings.ablation:
        return clip.run(RECIPE, settings)
    distributed.check_processes(settings.num_processes)
    checks.machine(settings)
    return run_ablation(
        settings, clip_ablation_runs(settings), lambda run_settings: clip.run(RECIPE, run_settings)
    )


def run_ablation(settings: T, runs: Mapping[str, T], train: Callable[[T], int]) -> int:
    """Train one model after the other in its own folder, and compare them.

    Args:
        settings: Of the ablation.
        runs: {folder: settings of its run}.
        train: Trains and evaluates one run.

    Returns:
        The exit code.
    """
    folder = Path(settings.output_dir)
    page = f"{ABLATION}.html"
    with open_run(settings, last=page) as is_open:
        if not is_open:
            return 0
        start_run(settings, dict)
        for name, run_settings in runs.items():
            views = ", ".join(view.view for view in crops.parse_views(run_settings.views))
            print(f"--- {name}: {views}", flush=True)
            train(run_settings)
        print(markdown_table(write_ablation(folder)))
        print(f"page: {folder / page}")
    return 0


# --- the runs of an ablation ----------------------------------------------------------------------


def split_views(views: crops.Views) -> dict[str, list[crops.View]]:
    """The views of each run of an ablation. Raises UserError in one of several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "an ablation trains three models one after the other in one process: start each by "
            "itself under accelerate launch (views and prompt differ), then `vlmface compare` them"
        )
    of_face = subject_of_views(views) == "face"
    alone = [v for v in views if (v.is_face if of_face else v.view == "person")]
    return {
        "face": alone,
        "scene": [view for view in views if view not in alone],
        "both": list(views),
    }


def subject_of_views(views: crops.Views) -> Literal["face", "person"]:
    """What the views show from near: the face or, where none does, the person."""
    return "face" if any(view.is_face for view in views) else "person"


def ablation_runs(settings: Settings) -> dict[str, Settings]:
    """The runs of an ablation by folder: the same data and seed, shown the views that cut out the
    face (or, where none does, the person), those that show what is around, or all. Raises
    UserError."""
    if len(settings.prompts) != 1:
        raise UserError(f"prompt is {settings.prompt}: an ablation has one prompt of both views")
    runs = {}
    for name, views in split_views(crops.parse_views(settings.views)).items():
        prompt = settings.prompts[0] if name == "both" else settings.single_view_prompts.get(name)
        if not views or not isinstance(prompt, str):
            raise UserError(
                f"the ablation's run {name} has {len(views)} view(s) and prompt {prompt!r}: give "
                "views a view that shows the face and one that does not cut it out, and "
                "single_view_prompts: {face: PROMPT, scene: PROMPT}"
            )
        runs[name] = replace(
            settings,
            ablation=False,
            views=crops.views_as_dicts(views),
            prompt=prompt,
            output_dir=str(Path(settings.output_dir) / name),
        )
        sft.load_prompts(runs[name])
    return runs


def clip_ablation_runs(settings: ContextSettings) -> dict[str, ContextSettings]:
    """`ablation_runs` of a CLIP, whose texts are the same for all. Raises UserError."""
    runs = {}
    for name, views in split_views(crops.parse_views(settings.views)).items():
        if not views:
            raise UserError(
                f"the ablation's run {name} has no view: give views a view that shows the face or "
                "the person and one that shows what is around"
            )
        rates = dict(settings.learning_rates)
        if len(views) == 1:  # nothing to fuse
            rates.pop("fusion", None)
        runs[name] = replace(
            settings,
            ablation=False,
            views=crops.views_as_dicts(views),
            learning_rates=rates,
            output_dir=str(Path(settings.output_dir) / name),
        )
    return runs


def write_ablation(folder: str | Path) -> dict[str, Any]:
    """Write ablation.json, ablation.md and ablation.html of the finished runs of `ablation_runs` in
    their folder; returns `compare.compare` of them."""
    folder = Path(folder)
    runs = {arm: compare.read(folder / arm) for arm in ARMS}
    subject = subject_of_views(crops.parse_views(runs["face"].settings["views"]))
    names = {"face": f"{subject} only", "scene": "context only", "both": "both"}
    result = compare.compare([replace(run, name=names[arm]) for arm, run in runs.items()])
    compare.write(result, folder, name=ABLATION, title=f"What it takes: {result['benchmark']}")
    atomic_write(folder / f"{ABLATION}.md", markdown_table(result))
    return result


def markdown_table(result: Mapping[str, Any]) -> str:
    """Accuracy and UAR of each arm (mAP, and Jaccard index of what was said, where a face may have
    several labels), per cent with 95 % intervals, and the differences between them on the same
    rows, as markdown."""
    # The label that is asked for comes first; valence and arousal may follow.
    first = next(iter(scored_blocks(result["runs"][0]["scores"])))
    title = first.title
    keys = {
        metric.key: metric.title
        for metric in of_kind(METRICS.built_in.values(), first.kind)
        if metric.main and first.get(metric) is not None
    }
    lines = ["| shown | " + " | ".join(keys.values()) + " |", "| --- |" + " --- |" * len(keys)]
    for run in result["runs"]:
        block = report.score_blocks(run["scores"])[title]
        cells = [
            f"{100 * block[key]:.1f}{in_brackets(block['ci95'].get(key), '.1f', scale=100)}"
            for key in keys
        ]
        lines.append(f"| {run['name']} | " + " | ".join(cells) + " |")
    tested = "accuracy" in keys
    heads = [*keys.values(), "sign-flip test, Holm"] if tested else [*keys.values()]
    lines += ["", "| difference | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for pair in result["pairs"]:
        change = report.score_blocks(pair)[title]
        cells = [
            f"{100 * change[key]['difference']:+.1f}"
            + in_brackets(change[key].get("ci95"), "+.1f", scale=100)
            for key in keys
        ]
        if tested:
            p = change["accuracy"].get("p_holm")
            cells.append(str(change["accuracy"]["no_ci95"]) if p is None else f"p = {p:.2g}")
        lines.append(f"| {pair['second']} − {pair['first']} | " + " | ".join(cells) + " |")
    n = result["runs"][0]["scores"]["n"]
    return "\n".join(lines) + f"\n\nn = {n}; per cent, 95 % intervals.\n"
