"""What a person feels or does, from the face, from what is around it, or from both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vlmface import label_spaces, prompts
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.evaluate import compare, report
from vlmface.metrics.shares import in_brackets
from vlmface.prompts import Prompt
from vlmface.train.clip.settings import ContextSettings
from vlmface.train.settings import VLMSettings
from vlmface.utils.files import atomic_write
from vlmface.utils.ranges import Unused

ARMS = ("face", "scene", "both")  # folders of an ablation's runs
ABLATION = "ablation"  # name of the files that hold the arms side by side


@dataclass(frozen=True)
class Settings(VLMSettings):
    """One run of `recipes/context_emotion.py` with a vision-language model. `label_space`: what the
    prompt asks for, null for its own; `mode`: how answers are read (answering.MODES). `ablation`
    trains the face alone, the context alone and both; `alone` names the prompts of the first two,
    {"face": ID, "scene": ID}."""

    model: Literal["vlm"] = "vlm"
    label_space: str | None = None
    mode: Literal["generate", "score", "both"] = "score"
    ablation: bool = False
    alone: dict[str, Any] = field(default_factory=dict)

    @property
    def views(self) -> crops.Views:
        return crops.parse_views(self.crop)

    def unused(self) -> Iterator[Unused]:
        yield from super().unused()
        if not self.ablation:
            yield Unused("alone", "ablation is false", None)

    def load_prompt(self) -> Prompt:
        """The prompt, about the label space that is asked for. Raises UserError if there are
        several, or if it is about another number of pictures than is shown."""
        if len(self.prompts) != 1:
            raise UserError(f"prompt is {self.prompt}: a run has one prompt here")
        prompt = prompts.load(self.prompts[0])
        if self.label_space is not None:
            prompt = prompt.asking_for(label_spaces.space(self.label_space))
        prompts.check_images([prompt], len(self.views), self.frames)
        return prompt


def split(views: crops.Views) -> dict[str, list[crops.View]]:
    """The views of each run of an ablation. Raises UserError in one of several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "an ablation trains three models one after the other in one process: start each by "
            "itself under accelerate launch (crop and prompt differ), then `vlmface compare` them"
        )
    of_face = near(views) == "face"
    alone = [one for one in views if (one.is_face if of_face else one.show == "person")]
    return {
        "face": alone,
        "scene": [one for one in views if one not in alone],
        "both": list(views),
    }


def near(views: crops.Views) -> Literal["face", "person"]:
    """What the views show from near: the face or, where none does, the person."""
    return "face" if any(one.is_face for one in views) else "person"


def arms(settings: Settings) -> dict[str, Settings]:
    """The runs of an ablation by folder: the same data and seed, shown the views that cut out the
    face (or, where none does, the person), those that show what is around, or all. Raises
    UserError."""
    found = {}
    for name, chosen in split(settings.views).items():
        prompt = settings.prompt if name == "both" else settings.alone.get(name)
        if not chosen or not isinstance(prompt, str):
            raise UserError(
                f"the ablation's run {name} has {len(chosen)} view(s) and prompt {prompt!r}: give "
                "crop a view that shows the face and one that does not cut it out, and alone: "
                "{face: PROMPT, scene: PROMPT}"
            )
        found[name] = replace(
            settings,
            ablation=False,
            crop=crops.views_as_dict(chosen),
            prompt=prompt,
            output_dir=str(Path(settings.output_dir) / name),
        )
        found[name].load_prompt()
    return found


def clip_arms(settings: ContextSettings) -> dict[str, ContextSettings]:
    """`arms` of a CLIP, whose texts are the same for all. Raises UserError."""
    found = {}
    for name, chosen in split(crops.parse_views(settings.crop)).items():
        if not chosen:
            raise UserError(
                f"the ablation's run {name} has no view: give crop a view that shows the face or "
                "the person and one that shows what is around"
            )
        rates = dict(settings.learning_rates)
        if len(chosen) == 1:  # nothing to fuse
            rates.pop("fusion", None)
        found[name] = replace(
            settings,
            ablation=False,
            crop=crops.views_as_dict(chosen),
            learning_rates=rates,
            output_dir=str(Path(settings.output_dir) / name),
        )
    return found


def conclude(folder: str | Path) -> dict[str, Any]:
    """Write ablation.json, ablation.md and ablation.html of the finished runs of `arms` in their
    folder; returns `compare.compare` of them."""
    folder = Path(folder)
    read = {arm: compare.read(folder / arm) for arm in ARMS}
    shown = near(crops.parse_views(read["face"].settings["crop"]))
    names = {"face": f"{shown} only", "scene": "context only", "both": "both"}
    result = compare.compare([replace(run, name=names[arm]) for arm, run in read.items()])
    compare.write(result, folder, name=ABLATION, title=f"What it takes: {result['benchmark']}")
    atomic_write(folder / f"{ABLATION}.md", table(result))
    return result


def table(result: Mapping[str, Any]) -> str:
    """Accuracy and UAR of each arm (mAP, and Jaccard index of what was said, where a face may have
    several labels), per cent with 95 % intervals, and the differences between them on the same
    rows, as markdown."""
    # The label that is asked for comes first; valence and arousal may follow.
    title, first = next(iter(report.score_blocks(result["runs"][0]["scores"]).items()))
    keys = {
        key: report.SCORES[key]
        for key in ("accuracy", "uar", "map", "jaccard")
        if first.get(key) is not None
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
