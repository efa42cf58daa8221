"""The progress of GRPO for people: samples.html with completions, and warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlmface import facs
from vlmface.answers import join_labels
from vlmface.data.row_images import open_row_image
from vlmface.run_dir import read_log
from vlmface.utils import html
from vlmface.utils.files import atomic_write
from vlmface.utils.images import data_uri

MAX_FACES = 6  # on the page
_SIDE = 192  # pixels of a face on the page
_SPAN = 10  # log lines that are compared, at the start and now


def training_warnings(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Signs of reward hacking or of a collapsed policy in a log.

    The first and the last ten lines are compared: the total reward rises while the emotion reward
    falls; answers shrink to less than half; nearly all answers have the same label; in most groups
    all rewards are equal, so that they have no gradient.

    Args:
        lines: Of log.jsonl.

    Returns:
        Sentences with the figures.
    """
    lines = [line for line in lines if not any(key.startswith("eval_") for key in line)]
    if len(lines) < 2 * _SPAN:
        return []

    def mean(name: str, part: Sequence[Mapping[str, Any]]) -> float | None:
        values = [line[name] for line in part if line.get(name) is not None]
        return sum(values) / len(values) if values else None

    first, last = lines[:_SPAN], lines[-_SPAN:]
    initial = {name: mean(name, first) for name in _WATCHED}
    current = {name: mean(name, last) for name in _WATCHED}
    warnings = []

    def change(name: str) -> float:
        before, after = initial[name], current[name]
        return 0.0 if before is None or after is None else after - before

    if change("reward") > 0 and change("rewards/emotion/mean") < -0.05:
        warnings.append(
            f"the reward rose by {change('reward'):.2f}, but the emotion reward fell "
            f"from {initial['rewards/emotion/mean']:.2f} to {current['rewards/emotion/mean']:.2f}"
        )
    before, after = initial["completions/mean_length"], current["completions/mean_length"]
    if before and after is not None and after < before / 2:
        warnings.append(f"answers shrank from {before:.0f} to {after:.0f} tokens")
    if (current["top_label_share"] or 0) > 0.8 and change("top_label_share") > 0.2:
        warnings.append(f"{current['top_label_share']:.0%} of the answers have the same label")
    if (current["frac_reward_zero_std"] or 0) > 0.8:
        warnings.append(
            f"{current['frac_reward_zero_std']:.0%} of the groups have equal rewards, and so no "
            "gradient"
        )
    return warnings


_WATCHED = (
    "reward",
    "rewards/emotion/mean",
    "completions/mean_length",
    "top_label_share",
    "frac_reward_zero_std",
)


class CompletionLogger(TrainerCallback):
    """Writes samples.html regularly, and prints new warnings.

    Args:
        run_dir: The folder of the run.
        trainer: A GroupTrainer.
        every: Steps between two pages.
    """

    def __init__(self, run_dir: Path, trainer: Any, every: int) -> None:
        self.run_dir, self.trainer, self.every = run_dir, trainer, every
        self.active: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        # The figures change at every step; warnings are equal if they differ in figures only.
        warnings = training_warnings(read_log(self.run_dir))
        causes = {re.sub(r"[\d.%]+", "", text): text for text in warnings}
        new = [text for cause, text in causes.items() if cause not in self.active]
        self.active = set(causes)
        for text in new:
            print(f"warning at step {state.global_step}: {text}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if state.is_world_process_zero and (step % self.every == 0 or step >= state.max_steps):
            write_samples(self.run_dir, self.trainer, step)


def write_samples(run_dir: Path, trainer: Any, step: int) -> None:
    """Write samples.html: the groups of the last generation batch with their rewards.

    Args:
        run_dir: The folder of the run.
        trainer: A GroupTrainer.
        step: The current step.
    """
    scorer, faces = trainer.scorer, trainer.faces
    groups = []
    for group in trainer.groups[:MAX_FACES]:
        sample = scorer.samples[group.index]
        truth = scorer.prompt.target_labels(sample)
        present = [label.au for label in sample.aus or () if label.present]
        answers = [
            {
                "text": text,
                "status": answer.status,
                "right": bool(truth) and answer.labels == truth,
                "advantage": advantage,
                "rewards": {name: values[k] for name, values in group.rewards.items()},
            }
            for k, (text, answer, advantage) in enumerate(
                zip(group.texts, group.answers, group.advantages, strict=True)
            )
        ]
        groups.append(
            {
                "image": data_uri(
                    open_row_image(faces[group.index]["image"]), image_format="PNG", max_side=_SIDE
                ),
                "label": join_labels(truth) or "not annotated",
                "aus": ", ".join(map(facs.name, facs.top_down(present))) or "none",
                "coded": sample.aus is not None,
                "answers": sorted(answers, key=lambda entry: -entry["advantage"]),
            }
        )
    lines = read_log(run_dir)
    page = html.render(
        "samples.html.j2",
        step=step,
        groups=groups,
        names=list(trainer.reward_func_names),
        warnings=training_warnings(lines),
        log=lines[-1] if lines else {},
    )
    atomic_write(run_dir / "samples.html", page)
