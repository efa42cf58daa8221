"""What a person sees of GRPO while it runs: samples.html, and alarms."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlmface import facs
from vlmface.answers import listed
from vlmface.data.row_images import open_row_image
from vlmface.run_dir import read_log
from vlmface.utils import html
from vlmface.utils.files import atomic_write

SHOWN = 6  # faces on the page
_SPAN = 10  # log lines that are compared, at the start and now


def alarms(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What in a log looks like a reward that is hacked or a policy that collapses, in words.

    The first and the last ten lines are compared: the total reward rises while the emotion reward
    falls; answers shrink to less than half; one label is said in nearly all answers; most groups
    are dead (all their rewards equal), so that nothing is learnt from them.
    """
    if len(lines) < 2 * _SPAN:
        return []

    def mean(name: str, part: Sequence[Mapping[str, Any]]) -> float | None:
        known = [line[name] for line in part if line.get(name) is not None]
        return sum(known) / len(known) if known else None

    first, last = lines[:_SPAN], lines[-_SPAN:]
    was = {name: mean(name, first) for name in _WATCHED}
    now = {name: mean(name, last) for name in _WATCHED}
    found = []

    def moved(name: str) -> float:
        before, after = was[name], now[name]
        return 0.0 if before is None or after is None else after - before

    if moved("reward") > 0 and moved("rewards/emotion/mean") < -0.05:
        found.append(
            f"the reward rose by {moved('reward'):.2f}, but answers became worse: emotion fell "
            f"from {was['rewards/emotion/mean']:.2f} to {now['rewards/emotion/mean']:.2f}"
        )
    before, after = was["completions/mean_length"], now["completions/mean_length"]
    if before and after is not None and after < before / 2:
        found.append(f"answers shrank from {before:.0f} to {after:.0f} tokens")
    if (now["most_said"] or 0) > 0.8 and moved("most_said") > 0.2:
        found.append(f"{now['most_said']:.0%} of the answers say the same label")
    if (now["frac_reward_zero_std"] or 0) > 0.8:
        found.append(
            f"{now['frac_reward_zero_std']:.0%} of the groups are dead: all their answers earn the "
            "same"
        )
    return found


_WATCHED = (
    "reward",
    "rewards/emotion/mean",
    "completions/mean_length",
    "most_said",
    "frac_reward_zero_std",
)


class Watcher(TrainerCallback):
    """Writes samples.html every `every` steps and at the end; prints an alarm when it appears."""

    def __init__(self, run_dir: Path, trainer: Any, every: int) -> None:
        self.run_dir, self.trainer, self.every = run_dir, trainer, every
        self.sounding: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        found = alarms(read_log(self.run_dir))
        # The figures change at every step; the cause is the alarm.
        causes = {re.sub(r"[\d.%]+", "", text): text for text in found}
        fresh = [text for cause, text in causes.items() if cause not in self.sounding]
        self.sounding = set(causes)
        for text in fresh:
            print(f"alarm at step {state.global_step}: {text}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if state.is_world_process_zero and (step % self.every == 0 or step >= state.max_steps):
            write_samples(self.run_dir, self.trainer, step)


def write_samples(run_dir: Path, trainer: Any, step: int) -> None:
    """samples.html: the groups of the last generation batch, with images, answers and rewards."""
    judge, faces = trainer.judge, trainer.faces
    shown = []
    for group in trainer.groups[:SHOWN]:
        sample = judge.samples[group.index]
        truth = judge.prompt.truth(sample)
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
        shown.append(
            {
                "image": _data_url(faces[group.index]["image"]),
                "label": listed(truth) or "not annotated",
                "aus": ", ".join(map(facs.name, facs.top_down(present))) or "none",
                "coded": sample.aus is not None,
                "answers": sorted(answers, key=lambda entry: -entry["advantage"]),
            }
        )
    lines = read_log(run_dir)
    page = html.render(
        "samples.html.j2",
        step=step,
        groups=shown,
        names=list(trainer.reward_func_names),
        alarms=alarms(lines),
        log=lines[-1] if lines else {},
    )
    atomic_write(run_dir / "samples.html", page)


def _data_url(stored: Any) -> str:
    image = open_row_image(stored).convert("RGB")
    image.thumbnail((192, 192))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
