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
from typing import Any

import yaml

from vlmface import prompts
from vlmface.benchmarks import load_benchmark
from vlmface.errors import UserError
from vlmface.evaluate import compare
from vlmface.evaluate.answering import scored_prompts
from vlmface.run_dir import open_run, start_run
from vlmface.train import grpo
from vlmface.train.settings import SFTSettings
from vlmface.utils import config, distributed, subprocesses
from vlmface.utils.files import atomic_write
from vlmface.utils.ranges import Checked, Count

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Settings(Checked):
    """The file recipes/configs/facial_r1_loop.yaml explains every field."""

    output_dir: str
    sft: dict[str, Any]
    grpo: dict[str, Any]
    synthesize: dict[str, Any]
    rounds: Count = 2
    launch: list[str] = field(default_factory=list)
    overwrite: bool = False

    def check(self) -> None:
        """Refuse stages that their recipes would refuse, or that cannot be compared, before the
        first of them starts. Raises UserError."""
        stages = {"sft": SFTSettings, "grpo": grpo.Settings, "synthesize": _synthesis()}
        made: dict[str, Any] = {}
        for name, kind in stages.items():
            fields = dict(getattr(self, name))
            if odd := [word for word in SET_HERE if word in fields]:
                raise UserError(f"{name} has {', '.join(odd)}, which the loop sets: leave it out")
            file = config.find(str(fields.pop("config", DEFAULTS[name])))
            given = {"output_dir": "", **({} if name == "sft" else {STARTS[name]: ""}), **fields}
            try:
                made[name] = config.build(kind, config.read(file) | given, where=file.name)
                config.refuse_unused(made[name], fields)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        for name in ("benchmark", "benchmark_root", "n_eval"):
            of_sft, of_grpo = (getattr(made[stage], name) for stage in ("sft", "grpo"))
            if of_sft != of_grpo:
                raise UserError(
                    f"sft has {name} {of_sft!r} and grpo {of_grpo!r}: the rounds' page compares "
                    "both on the same faces, so set them alike"
                )
        _check_faces(made["sft"], made["grpo"])
        if self.launch and shutil.which(self.launch[0]) is None:
            raise UserError(f"launch is {self.launch}: there is no program {self.launch[0]!r}")


def _check_faces(first: SFTSettings, second: grpo.Settings) -> None:
    """Refuse stages whose prompts or test faces do not go together. Raises UserError."""
    prompt, benchmark = prompts.load(first.prompts[0]), load_benchmark(first.benchmark)
    scored_prompts(benchmark, [prompt])
    if second.prompt not in (None, prompt.id):
        raise UserError(
            f"grpo has prompt {second.prompt}, but starts from a run with {prompt.id}: leave it out"
        )
    roots = [s.benchmark_root or benchmark.root_beside(s.data_root) for s in (first, second)]
    if roots[0] != roots[1]:
        raise UserError(
            f"sft is evaluated on {roots[0]} and grpo on {roots[1]}: the rounds' page compares "
            "both on the same faces, so set benchmark_root"
        )


# What the loop sets of its stages, and the configurations that they have without `config`.
SET_HERE = ("output_dir", "start", "model", "overwrite")
STARTS = {"grpo": "start", "synthesize": "model"}
DEFAULTS = {"sft": "sft_cot_tiny", "grpo": "grpo_tiny", "synthesize": "synthesize_tiny"}


def _synthesis() -> Any:
    """The settings of recipes/synthesize.py, a script beside this one."""
    spec = importlib.util.spec_from_file_location("synthesize", HERE / "synthesize.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where types are looked up by name
    spec.loader.exec_module(module)
    return module.Settings


def main(argv: Sequence[str]) -> int:
    distributed.check_alone("recipes/facial_r1_loop.py")
    settings = config.parse(Settings, argv, default="facial_r1_loop", usage=__doc__ or "")
    free = ("rounds", "launch")
    with open_run(settings, last=None, free=free):
        start_run(settings, dict, free)
        run(settings)
    return 0


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
    code = subprocesses.run([*start, str(HERE / f"{recipe}.py"), *stage_words(wanted, output)])
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


def mixed(own: Mapping[str, Any], synthetic: Path, here: Path) -> dict[str, Any]:
    """The data of a later round: those of the first, and what the model wrote in the last. The
    `limits` of the first hold for these too."""
    stored = config.read(config.find(str(own.get("config", DEFAULTS["sft"]))))
    wanted = stored | dict(own)
    first = {
        "data": wanted["data"],
        "root": wanted.get("data_root"),
        "options": dict(wanted.get("data_options") or {}),
    }
    if (n := wanted.get("n_train")) is not None:
        first["options"] |= {"n": n}
    sources = [
        {key: value for key, value in first.items() if value},
        {"data": "rationales", "options": {"folder": str(synthetic.resolve())}},
    ]
    path = here / "mixture.yaml"
    text = yaml.safe_dump({"sources": sources}, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)
    limits = own.get("limits")
    if limits is None and wanted["data"] == stored.get("data"):
        limits = stored.get("limits")
    return {"data": str(path), "data_root": None, "data_options": {}, "n_train": None,
            "limits": limits}  # fmt: skip


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
