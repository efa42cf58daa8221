"""Facial-R1's three stages in rounds: fine-tuning on rationales, GRPO, then new rationales by the
model itself, on which the next round is fine-tuned; and one page that compares the rounds.

    python recipes/facial_r1_loop.py                            # vlmface-tiny on rendered faces
    python recipes/facial_r1_loop.py --rounds 3 --output_dir runs/loop3

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import yaml

from vlmface import children, config, prompts
from vlmface.errors import UserError
from vlmface.evaluate import compare
from vlmface.evaluate.answering import scored_prompts
from vlmface.evaluate.benchmarks import load_benchmark
from vlmface.files import atomic_write
from vlmface.run_dir import begin, open_run
from vlmface.train import grpo, rewards, sft

HERE = Path(__file__).resolve().parent
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """The file recipes/configs/facial_r1_loop.yaml explains every field."""

    output_dir: str
    sft: dict[str, Any]
    grpo: dict[str, Any]
    synthesize: dict[str, Any]
    rounds: int = 2
    launch: list[str] = field(default_factory=list)
    overwrite: bool = False


def main(argv: Sequence[str]) -> int:
    settings = config.parse(Settings, argv, default="facial_r1_loop", usage=__doc__ or "")
    if settings.rounds < 1:
        raise UserError(f"rounds is {settings.rounds}, but must be 1 at least")
    check(settings)
    free = ("rounds", "launch")
    with open_run(settings, last=None, free=free):
        begin(settings, dict, free)
        run(settings)
    return 0


def check(settings: Settings) -> None:
    """Refuse what would stop the loop after hours. Raises UserError."""
    if settings.launch and shutil.which(settings.launch[0]) is None:
        raise UserError(f"launch is {settings.launch}: there is no program {settings.launch[0]}")
    first = stage_settings("sft_cot", settings.sft, sft.Settings)
    second = stage_settings("grpo", settings.grpo | {"start": "-"}, grpo.Settings)
    if settings.rounds > 1:
        wanted = settings.synthesize | {"model": "-"}
        stage_settings("synthesize", wanted, load_recipe("synthesize").Settings)
    grpo.check(second)
    rewards.parse(second.rewards)
    prompt = prompts.load(first.prompts[0])
    if second.prompt not in (None, prompt.id):
        raise UserError(
            f"grpo has prompt {second.prompt}, but starts from a run with {prompt.id}: leave it out"
        )
    # All stages are compared on the same faces.
    for name in ("benchmark", "n_eval"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise UserError(
                f"sft has {name} {one!r}, grpo {other!r}: the page compares them on the same "
                "faces, so give both the same"
            )
    benchmark = load_benchmark(first.benchmark)
    scored_prompts(benchmark, [prompt])
    roots = [s.benchmark_root or benchmark.root_beside(s.data_root) for s in (first, second)]
    if roots[0] != roots[1]:
        raise UserError(
            f"sft is evaluated on {roots[0]}, grpo on {roots[1]}: the page compares them on the "
            "same faces, so give both the same benchmark_root"
        )


def stage_settings(recipe: str, wanted: Mapping[str, Any], kind: type[T]) -> T:
    """The settings that a recipe will read from the command line of `stage`. Raises UserError."""
    if own := {"output_dir", "overwrite"} & set(wanted):
        raise UserError(
            f"the stage {recipe} has {', '.join(sorted(own))}: the loop decides that; leave it "
            "out, and give it to the loop itself"
        )
    words = stage_words(wanted, Path("-"))
    try:
        return config.parse(kind, words, default=f"{recipe}_tiny", usage="")
    except UserError as error:
        raise UserError(f"stage {recipe}: {error}") from error


def load_recipe(name: str) -> ModuleType:
    """The script of another recipe as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def run(settings: Settings) -> None:
    """All rounds, each from where it was stopped. Raises UserError if a stage fails."""
    folder = Path(settings.output_dir)
    for number in range(1, settings.rounds + 1):
        here = folder / f"round{number}"
        own = dict(settings.sft)
        if number > 1:
            own |= mixed(own, folder / f"round{number - 1}" / "synthetic", here)
        stage("sft_cot", own, here / "sft", settings.launch)
        stage("grpo", settings.grpo | {"start": str(here / "sft")}, here / "grpo", settings.launch)
        if number < settings.rounds:
            wanted = settings.synthesize | {"model": str(here / "grpo")}
            stage("synthesize", wanted, here / "synthetic", [])
        write_page(folder, number)


def stage(recipe: str, wanted: Mapping[str, Any], output: Path, launch: Sequence[str]) -> None:
    """Run, or go on with, a recipe in a process of its own. Raises UserError if it fails."""
    start = list(launch) or [sys.executable]
    print(f"--- {output}: {recipe}", flush=True)
    code = children.run([*start, str(HERE / f"{recipe}.py"), *stage_words(wanted, output)])
    if code:
        raise UserError(
            f"{recipe} stopped with exit code {code} (its message is above): see to it, then the "
            "same command goes on there"
        )


def stage_words(wanted: Mapping[str, Any], output: Path) -> list[str]:
    """The command line of a recipe."""
    options = dict(wanted)
    words = ["--config", str(options.pop("config"))] if "config" in options else []
    for name, value in (options | {"output_dir": str(output)}).items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def mixed(first_stage: Mapping[str, Any], synthetic: Path, here: Path) -> dict[str, Any]:
    """The data of a later round: those of the first, and what the model wrote in the last."""
    first = {
        "data": first_stage.get("data", "synth"),
        "root": first_stage.get("data_root"),
        "options": dict(first_stage.get("data_options", {})),
    }
    if (n := first_stage.get("n_train")) is not None:
        first["options"] |= {"n": n}
    sources = [
        {key: value for key, value in first.items() if value},
        {"data": "rationales", "options": {"folder": str(synthetic.resolve())}},
    ]
    path = here / "mixture.yaml"
    text = yaml.safe_dump({"sources": sources}, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)
    return {"data": str(path), "data_root": None, "data_options": {}, "n_train": None}


# --- the page -------------------------------------------------------------------------------------


def write_page(folder: Path, rounds: int) -> None:
    """compare.html of all stages so far, the first round's result first."""
    numbers = range(1, rounds + 1)
    runs = [compare.read(folder / f"round{n}" / "grpo", f"round {n}") for n in numbers]
    runs += [compare.read(folder / f"round{n}" / "sft", f"round {n}, before GRPO") for n in numbers]
    notes = [{"title": f"Written after round {n}", **_written(path)} for n in numbers
             if (path := folder / f"round{n}" / "synthetic" / "summary.json").exists()]  # fmt: skip
    result = compare.compare(runs)
    page = compare.write(result, folder, title=f"Facial-R1 loop, {rounds} rounds", notes=notes)
    print(compare.markdown(result))
    print(f"page: {page}", flush=True)


def _written(path: Path) -> dict[str, Any]:
    """What a synthesis says of itself, for the page."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    counts, vote, quality = summary["counts"], summary["vote"], summary["quality"]
    facts = {
        "faces": counts["rows"],
        "kept texts": counts["kept"],
        "distinct texts": quality["distinct"],
        "answers that agree": f"{vote['kept']['agreement']:.1%} of the kept, "
        f"{vote['all']['agreement']:.1%} of all",
        "the model was told the truth": "yes" if summary["saw_label"] else "no",
        "rejected": ", ".join(f"{n} {why}" for why, n in counts["rejected_by"].items()) or "none",
    }
    if vote["all"]["checked"]:
        facts["voted emotion is the annotated one"] = (
            f"{vote['kept']['right'] or 0:.1%} of the kept, {vote['all']['right']:.1%} of all"
        )
    return {"facts": facts}


if __name__ == "__main__":
    config.command(main)
