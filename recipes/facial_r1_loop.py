"""Facial-R1's three stages in rounds: fine-tuning on rationales, GRPO, then new rationales by the
model itself, on which the next round is fine-tuned; and one page that compares the rounds.

    python recipes/facial_r1_loop.py                            # vlmface-tiny on rendered faces
    python recipes/facial_r1_loop.py --rounds 3 --output_dir runs/loop3

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlmface import config, distributed
from vlmface.errors import UserError
from vlmface.evaluate import compare
from vlmface.files import atomic_write

HERE = Path(__file__).resolve().parent


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
    distributed.check_alone("recipes/facial_r1_loop.py")
    settings = config.parse(Settings, argv, default="facial_r1_loop", usage=__doc__ or "")
    if settings.rounds < 1:
        raise UserError(f"rounds is {settings.rounds}, but must be 1 at least")
    folder = Path(settings.output_dir)
    config.remember(settings, folder, free=("overwrite", "output_dir", "rounds", "launch"),
                    anew=settings.overwrite)  # fmt: skip
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
    return 0


def stage(recipe: str, wanted: Mapping[str, Any], output: Path, launch: Sequence[str]) -> None:
    """Run, or go on with, a recipe in a process of its own. Raises UserError if it fails."""
    options = dict(wanted)
    words = ["--config", str(options.pop("config"))] if "config" in options else []
    for name, value in (options | {"output_dir": str(output)}).items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    start = list(launch) or [sys.executable]
    print(f"--- {output}: {recipe}", flush=True)
    done = subprocess.run([*start, str(HERE / f"{recipe}.py"), *words], check=False)
    if done.returncode:
        raise UserError(
            f"{recipe} stopped with exit code {done.returncode} (its message is above): see to it, "
            "then the same command goes on there"
        )


def mixed(sft: Mapping[str, Any], synthetic: Path, here: Path) -> dict[str, Any]:
    """The data of a later round: those of the first, and what the model wrote in the last."""
    first = {
        "data": sft.get("data", "synth"),
        "root": sft.get("data_root"),
        "options": dict(sft.get("data_options", {})),
    }
    if (n := sft.get("n_train")) is not None:
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
