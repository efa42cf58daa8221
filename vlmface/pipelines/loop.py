"""Facial-R1's three stages in rounds: fine-tuning, GRPO, and new rationales by the model itself."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vlmface import prompts
from vlmface.benchmarks import load_benchmark
from vlmface.errors import UserError
from vlmface.evaluate import compare
from vlmface.evaluate.answering import scored_prompts
from vlmface.pipelines.synthesize import Settings as SynthesisSettings
from vlmface.run_dir import open_run, start_run
from vlmface.train.grpo import Settings as GRPOSettings
from vlmface.train.settings import SFTSettings
from vlmface.utils import config, subprocesses
from vlmface.utils.files import atomic_write
from vlmface.utils.ranges import Checked, Count

T = TypeVar("T")


@dataclass(frozen=True)
class Settings(Checked):
    """One run of recipes/facial_r1_loop.py.

    Args:
        output_dir: folder of the rounds
        sft: fields of the first stage, recipes/sft_cot.py, over its `config`
        grpo: fields of the second stage, recipes/grpo.py, over its `config`
        synthesize: fields of the third stage, recipes/synthesize.py, over its `config`
        rounds: may be raised later: finished rounds are kept
        launch: how sft and grpo are started, such as [accelerate, launch]; empty: one process
        overwrite: replace the run in output_dir
    """

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
        sft = self._build_stage("sft", SFTSettings)
        grpo = self._build_stage("grpo", GRPOSettings)
        self._build_stage("synthesize", SynthesisSettings)
        for name in ("benchmark", "benchmark_root", "n_eval"):
            of_sft, of_grpo = getattr(sft, name), getattr(grpo, name)
            if of_sft != of_grpo:
                raise UserError(
                    f"sft has {name} {of_sft!r} and grpo {of_grpo!r}: the rounds' page compares "
                    "both on the same faces, so set them alike"
                )
        _check_faces(sft, grpo)
        if self.launch and shutil.which(self.launch[0]) is None:
            raise UserError(f"launch is {self.launch}: there is no program {self.launch[0]!r}")

    def _build_stage(self, name: str, cls: type[T]) -> T:
        """The settings of a stage as its recipe would have them. Raises UserError."""
        fields = dict(getattr(self, name))
        if set_by_loop := [field for field in SET_BY_LOOP if field in fields]:
            raise UserError(
                f"{name} has {', '.join(set_by_loop)}, which the loop sets: leave it out"
            )
        file = config.find_config(str(fields.pop("config", DEFAULTS[name])))
        placeholders = {"output_dir": ""} | ({STARTS[name]: ""} if name in STARTS else {})
        try:
            values = config.read_yaml(file) | placeholders | fields
            settings = config.from_dict(cls, values, where=file.name)
            config.refuse_unused(settings, fields)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        return settings


def _check_faces(sft: SFTSettings, grpo: GRPOSettings) -> None:
    """Refuse stages whose prompts or test faces do not go together. Raises UserError."""
    if len(sft.prompts) != 1:
        raise UserError(f"sft has prompt {sft.prompt}, but grpo trains one: give one")
    prompt, benchmark = prompts.load(sft.prompts[0]), load_benchmark(sft.benchmark)
    scored_prompts(benchmark, [prompt])
    if grpo.prompt not in (None, prompt.id):
        raise UserError(
            f"grpo has prompt {grpo.prompt}, but starts from a run with {prompt.id}: leave it out"
        )
    of_sft, of_grpo = (
        stage.benchmark_root or benchmark.root_beside(stage.dataset_root) for stage in (sft, grpo)
    )
    if of_sft != of_grpo:
        raise UserError(
            f"sft is evaluated on {of_sft} and grpo on {of_grpo}: the rounds' page compares "
            "both on the same faces, so set benchmark_root"
        )


# Fields of the stages that the loop sets; that of the model that a stage starts from; and the
# configurations of stages without `config`.
SET_BY_LOOP = ("output_dir", "init_from", "model", "overwrite")
STARTS = {"grpo": "init_from", "synthesize": "model"}
DEFAULTS = {"sft": "sft_cot_tiny", "grpo": "grpo_tiny", "synthesize": "synthesize_tiny"}
FREE = ("rounds", "launch")  # settings that may differ when a loop is resumed


# --- the rounds -----------------------------------------------------------------------------------


def run(settings: Settings) -> int:
    """Run all rounds, each from where it was stopped.

    Args:
        settings: Of the loop.

    Returns:
        The exit code.

    Raises:
        UserError: A stage failed.
    """
    with open_run(settings, last=None, free=FREE):
        start_run(settings, dict, FREE)
        for number in range(1, settings.rounds + 1):
            run_round(settings, number)
    return 0


def run_round(settings: Settings, number: int) -> None:
    """Run one round, and write the page of all so far."""
    run_dir = Path(settings.output_dir)
    folder = run_dir / f"round{number}"
    sft = dict(settings.sft)
    if number > 1:
        sft |= mixed_data(sft, run_dir / f"round{number - 1}" / "synthetic", folder)
    run_stage("sft_cot", sft, folder / "sft", settings.launch)
    grpo = settings.grpo | {"init_from": str(folder / "sft")}
    run_stage("grpo", grpo, folder / "grpo", settings.launch)
    if number < settings.rounds:
        synthesize = settings.synthesize | {"model": str(folder / "grpo")}
        run_stage("synthesize", synthesize, folder / "synthetic", [])
    write_page(run_dir, number)


def run_stage(
    recipe: str, fields: Mapping[str, Any], output_dir: Path, launch: Sequence[str]
) -> None:
    """Run, or resume, a recipe in a process of its own. Raises UserError if it fails."""
    print(f"--- {output_dir}: {recipe}", flush=True)
    start = list(launch) or [sys.executable]
    command = [*start, "-m", "vlmface", "train", recipe, *arguments(fields, output_dir)]
    if code := subprocesses.run(command):
        raise UserError(
            f"{recipe} stopped with exit code {code} (its message is above): correct that, then "
            "run the same command again to resume"
        )


def arguments(fields: Mapping[str, Any], output_dir: Path) -> list[str]:
    """The command line of a recipe."""
    options = dict(fields)
    words = ["--config", str(options.pop("config"))] if "config" in options else []
    for name, value in (options | {"output_dir": str(output_dir)}).items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def mixed_data(fields: Mapping[str, Any], synthetic: Path, folder: Path) -> dict[str, Any]:
    """Write the mixture of a later round: the data of the first, and what the model wrote in the
    last.

    Args:
        fields: Of the stage sft.
        synthetic: The rationales of the last round.
        folder: Of this round.

    Returns:
        Fields of the stage that name the mixture; `limitations` stay those of the first round.
    """
    stored = config.read_yaml(config.find_config(str(fields.get("config", DEFAULTS["sft"]))))
    values = stored | dict(fields)
    options = dict(values.get("dataset_options") or {})
    if (n := values.get("n_train")) is not None:
        options["n"] = n
    first = {"dataset": values["dataset"], "root": values.get("dataset_root"), "options": options}
    sources = [
        {key: value for key, value in first.items() if value},
        {"dataset": "rationales", "options": {"folder": str(synthetic.resolve())}},
    ]
    path = folder / "mixture.yaml"
    text = yaml.safe_dump({"sources": sources}, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)
    limitations = fields.get("limitations")
    if limitations is None and values["dataset"] == stored.get("dataset"):
        limitations = stored.get("limitations")
    return {
        "dataset": str(path),
        "dataset_root": None,
        "dataset_options": {},
        "n_train": None,
        "limitations": limitations,
    }


# --- the page -------------------------------------------------------------------------------------


def write_page(folder: Path, rounds: int) -> None:
    """compare.html of all stages so far, the first round's result first."""
    numbers = range(1, rounds + 1)
    runs = [compare.read(folder / f"round{n}" / "grpo", f"round {n}") for n in numbers]
    runs += [compare.read(folder / f"round{n}" / "sft", f"round {n}, before GRPO") for n in numbers]
    notes = [
        {"title": f"Written after round {n}", **_written(path)}
        for n in numbers
        if (path := folder / f"round{n}" / "synthetic" / "summary.json").exists()
    ]
    result = compare.compare(runs)
    page = compare.write(result, folder, title=f"Facial-R1 loop, {rounds} rounds", notes=notes)
    print(compare.markdown(result))
    print(f"page: {page}", flush=True)


def _written(path: Path) -> dict[str, Any]:
    """The summary of a synthesis, for the page."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    counts, vote, quality = summary["counts"], summary["vote"], summary["quality"]
    facts = {
        "faces": counts["rows"],
        "kept texts": counts["kept"],
        "distinct texts": quality["distinct"],
        "answers that agree": f"{vote['kept']['agreement']:.1%} of the kept, "
        f"{vote['all']['agreement']:.1%} of all",
        "the model was told the truth": "yes" if summary["rationale_saw_label"] else "no",
        "rejected": ", ".join(f"{n} {why}" for why, n in counts["rejected_by"].items()) or "none",
    }
    if vote["all"]["checked"]:
        facts["voted emotion is the annotated one"] = (
            f"{vote['kept']['right'] or 0:.1%} of the kept, {vote['all']['right']:.1%} of all"
        )
    return {"facts": facts}
