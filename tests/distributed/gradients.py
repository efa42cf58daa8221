"""Gradients of one step in two processes against those in one, at the same global batch.

    python tests/distributed/gradients.py [CASE ...] [--json FILE]

Each case is a recipe with settings. The processes are forked from one that has imported everything
(see launches.py); they leave as soon as the gradients of the first step are written down, on their
way from the loss to the optimizer, and before they would be clipped. A difference is relative to
the largest gradient of the run, if that is above 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import launches
import numpy as np
import torch
import transformers
from launches import build_base, launched_environments
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.scripts import ROOT, environment

EACH = 4  # rows of each of two processes
SHARED = {
    "n_train": 2 * EACH,
    "n_eval": 2,
    "epochs": 1,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_steps": 100,
    "max_grad_norm": 1e9,
}
SFT = {"train_embeddings": "false", "cache_features": "false", "max_new_tokens": 1}
LORA = SFT | {
    "vision_tower": "lora",
    "projector": "full",
    "language_model": "lora",
    "lora_dropout": 0,
}
FULL = SFT | {"vision_tower": "full", "projector": "full", "language_model": "full"}
VIEWS = "[{size: 32, margin: 0.1, view: face}, {size: 32, margin: 0.1, view: face_masked}]"
CLIP = {"augment": "none"}
CAER = CLIP | {"model": "clip-caer", "checkpoint_selection": "last", "validation_split": None}
TABLE = {"dataset": "table", "dataset_root": "TABLE"}
GRPO = {
    "init_from": "BASE",
    "prompt": "face_cot",
    "num_generations": 4,
    "max_steps": 1,
    "max_new_tokens": 12,
    "epochs": None,
    "rewards": "{repetition: 1, length_penalty: {words: 4}}",
    "language_model": "full",
    "projector": "full",
    "cache_features": "false",
    "max_logprob_drift": 1,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft_cot full": ("sft_cot", FULL),
    "sft_cot lora": ("sft_cot", LORA),
    "sft_attributes": ("sft_attributes", LORA),
    "sft weights": (
        "sft_attributes",
        FULL | TABLE | {"prompt": "facescan_emotion", "label_weight_power": 1},
    ),
    "sft votes": (
        "sft_attributes",
        FULL
        | {
            "prompt": "facescan_emotion",
            "dataset_options": "{annotators: 3}",
            "soft_labels": "true",
            "label_weight_power": 0.5,
        },
    ),
    "sft augmented": (
        "sft_cot",
        FULL | {"corruption_share": 0.8, "corruptions": "[noise, hand]", "augment": "flip"},
    ),
    "context_vlm": ("context_emotion", FULL | {"views": VIEWS}),
    "context_clip": ("context_emotion", CAER),
    "context_clip full": (
        "context_emotion",
        CAER | {"image_tower": "full", "text_tower": "full"},
    ),
    "clip lora": ("clip_finetune", CLIP),
    "clip full": ("clip_finetune", CLIP | {"image_tower": "full", "text_tower": "full"}),
    "clip probe": (
        "clip_finetune",
        CLIP | {"image_tower": "frozen", "text_tower": "frozen", "head": "linear"},
    ),
    "clip prompts": ("clip_finetune", CLIP | {"text_tower": "prompts", "image_tower": "frozen"}),
    "clip adapters": ("clip_finetune", CLIP | {"image_tower": "adapters"}),
    "clip time": (
        "clip_finetune",
        CLIP
        | {
            "config": "clip_temporal_tiny",
            "num_frames": 4,
            "validation_split": None,
            "checkpoint_selection": "last",
        },
    ),
    "clip weights": ("clip_finetune", CLIP | TABLE | {"label_weight_power": 1}),
    "clip weights ldam": (
        "clip_finetune",
        CLIP
        | TABLE
        | {"label_weight_power": 0.5, "margins": "ldam", "head": "linear", "label_smoothing": 0},
    ),
    "clip affect": ("clip_finetune", CLIP | TABLE | {"affect": "linear"}),
    "clip affect graph": (
        "clip_finetune",
        CLIP | TABLE | {"affect": "graph", "label_weight_power": 1},
    ),
    "clip several labels": (
        "clip_finetune",
        CLIP
        | {
            "dataset": "emotic",
            "dataset_root": "EMOTIC",
            "benchmark": "emotic",
            "prompt": "clip_emotic",
            "views": "[{size: 32, view: person}]",
            "label_weight_power": 1,
            "each": 1,
            "n_train": 2,
        },
    ),
    "clip negatives": (
        "clip_finetune",
        CLIP | {"prompt": "clip_signs_contrast", "negative_weight": 0.3},
    ),
    "clip_captions full": ("clip_captions", CLIP | {"n_eval": None, "n_probe": 8}),
    "clip_captions lora": (
        "clip_captions",
        CLIP | {"n_eval": None, "n_probe": 8, "image_tower": "lora", "text_tower": "lora"},
    ),
    "clip_captions frozen image": (
        "clip_captions",
        CLIP
        | {
            "n_eval": None,
            "n_probe": 8,
            "image_tower": "frozen",
            "learning_rates": "{scale: 0.0005}",
        },
    ),
    **{
        f"grpo {kind}": ("grpo", GRPO | {"loss_type": kind})
        for kind in ("dapo", "grpo", "dr_grpo", "bnpo")
    },
    "grpo batch": ("grpo", GRPO | {"scale_rewards": "batch", "beta": 0.1}),
}


class WriteDown(transformers.TrainerCallback):
    """Writes the gradients down on rank 0, and leaves."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = {
            name.removeprefix("module."): parameter.grad.clone()
            for name, parameter in kwargs["model"].named_parameters()
            if parameter.requires_grad and parameter.grad is not None
        }
        if state.is_world_process_zero:
            torch.save(found, Path(args.output_dir).parent / "gradients.pt")
        sys.stdout.flush()
        os._exit(0)


def install() -> None:
    """Let every trainer write its gradients down. Completions depend on the face alone, since which
    process draws them must not matter here, and their rewards on their letters: by the real ones a
    random model's completions are all worth the same."""
    from vlmface.infer import sampling
    from vlmface.train.group_trainer import GroupTrainer
    from vlmface.train.rewards import RewardScorer

    original = transformers.Trainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(WriteDown())

    def answered(self: Any, parts: Any, batches: Any) -> list[Any]:
        found = []
        for rows in parts:
            drawn = []
            for row in rows:
                one = self._sample(self._prompts([row]), row)
                for k, (ids, likely) in enumerate(zip(one.ids, one.log_probs, strict=True)):
                    length = 3 + (7 * row + k * k) % 10  # a random model would never stop
                    del ids[length:], likely[length:]
                drawn.append(one)
            names = ("ids", "log_probs", "complete")
            found.append(
                sampling.Rollout(*([x for one in drawn for x in getattr(one, n)] for n in names))
            )
        return found

    def functions(self: Any) -> list[Any]:
        def letters(completions: Any, **_: Any) -> list[float]:
            return [zlib.crc32(one[-1]["content"].encode()) % 7 / 7 for one in completions]

        return [letters for _ in self.rewards]

    transformers.Trainer.__init__ = init  # type: ignore[method-assign]
    RewardScorer.functions = functions  # type: ignore[method-assign]
    GroupTrainer._rollouts = answered  # type: ignore[method-assign]


def write_table(folder: Path) -> Path:
    """A table of pictures whose labels are far from equally frequent, the two processes' shares of
    a batch included, with valence and arousal of some."""
    lines = ["image,emotion,valence,arousal"]
    for k in range(2 * EACH):
        pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        numbers = f"{k / 10 - 0.4},{0.3 - k / 20}" if k % 3 else ","
        emotion = {1: "fear", 6: "fear", 3: "neutral"}.get(k, "anger")
        lines.append(f"{k}.png,{emotion},{numbers}")
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def prepare(folder: Path) -> dict[str, Path]:
    """What settings name in capitals."""
    from helpers.checkpoints import build_clip
    from miniatures import emotic

    (folder / "table").mkdir()
    emotic.write(folder / "emotic")
    return {
        "BASE": build_base(folder / "base"),
        "CLIP": build_clip(folder / "clip"),
        "TABLE": write_table(folder / "table"),
        "EMOTIC": folder / "emotic",
    }


def words(case: str, names: dict[str, Path], processes: int, out: Path) -> list[str]:
    recipe, changes = CASES[case]
    of_clip = recipe.startswith("clip") or changes.get("model") == "clip-caer"
    settings: dict[str, Any] = dict(SHARED)
    if recipe != "grpo":
        settings["base_model"] = names["CLIP" if of_clip else "BASE"]
    settings |= changes | {"output_dir": out}
    settings["batch_size"] = 2 * settings.pop("each", EACH) // processes
    config = settings.pop("config", None)
    argv = [] if config is None else ["--config", config]
    for name, value in settings.items():
        if value is not None or name not in SHARED:
            argv += [f"--{name}", str(names.get(value, value)) if value is not None else "null"]
    return argv


def difference(one: dict[str, Any], two: dict[str, Any]) -> tuple[float, float]:
    """(largest difference, relative to the largest gradient above 1; that gradient)."""
    if one.keys() != two.keys() or not one:
        raise AssertionError(f"other weights: {one.keys() ^ two.keys()}")
    largest = max(float(value.abs().max()) for value in one.values())
    if not largest:
        raise AssertionError("all gradients are zero, which says nothing")
    most = max(float((one[name] - two[name]).abs().max()) for name in one)
    return most / max(1.0, largest), largest


def measure(case: str, names: dict[str, Path], launched: list[dict[str, str]], folder: Path) -> Any:
    """`difference`, or the end of the output where a run failed."""
    recipe = ROOT / f"recipes/{CASES[case][0]}.py"
    children, found = {}, []
    for number, environments in ((1, [environment()]), (2, launched)):
        out, log = folder / f"run{number}", folder / f"log{number}"
        shutil.rmtree(out, ignore_errors=True)
        log.unlink(missing_ok=True)
        argv = words(case, names, number, out)
        children[number] = launches.start(environments, argv, log, recipe)
    codes = {n: [launches.code_of(child) for child in pids] for n, pids in children.items()}
    for number in children:
        file = folder / f"run{number}" / "gradients.pt"
        if any(codes[number]) or not file.is_file():
            log = folder / f"log{number}"
            return f"{number} process(es): {codes[number]}\n{log.read_text()[-3000:]}"
        found.append(torch.load(file))
    return difference(*found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="write {case: difference} there")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())  # not a context manager: forked processes leave through here
    names = prepare(folder)
    launched = launched_environments("ddp", folder)
    launches.preload("ddp", launches.words(names["BASE"], folder / "alone"), folder)
    install()
    found: dict[str, Any] = {}
    for case in arguments.cases or CASES:
        result = measure(case, names, launched, folder)
        found[case] = result if isinstance(result, str) else result[0]
        shown = result if isinstance(result, str) else "{:.1e} (largest {:.1e})".format(*result)
        print(f"{case}: {shown}", flush=True)
    shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(isinstance(one, float) and one < 1e-5 for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
