"""Make vlmface-tiny, the built-in base model, from nothing but rendered faces.

    python recipes/pretrain_tiny.py --output_dir runs/tiny

1. Geometry: a CLIP tower learns what the renderer knows for free (where points of the skin lie, how
   far they moved from rest, pose, gaze, parts), because a tower from scratch learns nothing under
   a language loss alone.
2. Language: tower, projector and Llama learn to answer plain questions on what is visible.
3. Words: the same, and requests to repeat random tokens, so that every token can be written.
Neither an action unit number nor an emotion word occurs. Every stage goes on from its last file.
About an hour and a half on two cores; the model card lies beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from tqdm import tqdm

from vlmface import encode
from vlmface.families import llava, tiny
from vlmface.prompts import load as load_prompt
from vlmface.synth import dataset as synth
from vlmface.synth import describe
from vlmface.synth.faces import Sample
from vlmface.synth.geometry import PART_CLASSES, landmark_vertices, load_geometry
from vlmface.taxonomy import SPACES

PATCH, SIZE = 12, 96  # pixels


class Geometry(nn.Module):
    """Heads that read geometry from patch features; thrown away after pretraining."""

    def __init__(self, width: int, landmarks: int, queries: int = 16) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * 0.5)
        self.attend = nn.MultiheadAttention(width, width // 32, batch_first=True)
        self.read = nn.Sequential(
            nn.Linear(queries * width, 512), nn.GELU(), nn.Linear(512, landmarks * 5 + 5)
        )
        self.parts = nn.Linear(width, PART_CLASSES)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        patches = self.norm(patches)
        read, _ = self.attend(
            self.query.expand(len(patches), -1, -1), patches, patches, need_weights=False
        )
        return self.read(read.flatten(1)), self.parts(patches)


def batch_of(
    data: dict[str, torch.Tensor], index: torch.Tensor, flip: torch.Tensor, scale: dict
) -> dict:
    """A batch with random mirror images and exposure; targets follow the mirror."""
    _, mirror = landmark_vertices()
    image = data["image"][index].permute(0, 3, 1, 2).float() / 127.5 - 1
    gain = 1 + 0.15 * torch.randn(len(index), 1, 1, 1).clamp(-2, 2)
    image = (image * gain + 0.1 * torch.randn(len(index), 3, 1, 1)).clamp(-1, 1)
    points = data["points"][index].float()
    shift = data["shift"][index].float() / scale["shift"]
    pose = data["pose"][index].float()
    parts = data["parts"][index].float() / 255
    sign = torch.tensor([1.0, -1.0])[flip.long()]
    image = torch.where(flip[:, None, None, None], image.flip(3), image)
    points = torch.where(flip[:, None, None], points[:, mirror] * torch.tensor([-1.0, 1.0]), points)
    shift = torch.where(
        flip[:, None, None], shift[:, mirror] * torch.tensor([-1.0, 1.0, 1.0]), shift
    )
    pose = pose * torch.stack([sign, torch.ones_like(sign), sign, sign, torch.ones_like(sign)], 1)
    parts = torch.where(flip[:, None, None, None], parts.flip(2), parts)
    return {
        "image": image,
        "points": points,
        "shift": shift,
        "pose": pose,
        "parts": parts.flatten(1, 2),
    }


def geometry_loss(heads: Geometry, patches: torch.Tensor, batch: dict) -> tuple[torch.Tensor, dict]:
    """Weighted sum of the geometry losses, and each of them in its own unit."""
    out, parts = heads(patches)
    k = batch["points"].shape[1]
    points = F.mse_loss(out[:, : 2 * k], batch["points"].flatten(1) * 2)
    shift = F.mse_loss(out[:, 2 * k : 5 * k], batch["shift"].flatten(1))
    pose = F.mse_loss(out[:, 5 * k :], batch["pose"])
    part = F.cross_entropy(parts.flatten(0, 1), batch["parts"].flatten(0, 1))
    total = 2 * points + shift + 0.3 * pose + 0.5 * part
    return total, {
        "points": points.item(),
        "shift": shift.item(),
        "pose": pose.item(),
        "parts": part.item(),
    }


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    wave = math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1 + wave))


class Log:
    """log.jsonl: one line every `every` steps, and the progress bar's text."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self.sums, self.count, self.start = path, every, {}, 0, time.time()

    def __call__(self, stage: str, step: int, values: dict, bar: tqdm) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        if (step + 1) % self.every == 0:
            means = {name: round(total / self.count, 4) for name, total in self.sums.items()}
            line = {
                "stage": stage,
                "step": step + 1,
                **means,
                "minutes": round((time.time() - self.start) / 60, 1),
            }
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            bar.set_postfix(means)
            self.sums, self.count = {}, 0


def is_forbidden(token: str) -> bool:
    """Whether a token is an emotion word or the letters AU: the base never writes those."""
    word = token.replace("\u0120", "").strip().lower()
    return word == "au" or SPACES["emotion8"].canonical(word) is not None


def language_rows(
    processor: Any, samples: list[Sample], copies: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Encoded rows: a question on each face, then `copies` requests to say a random row of tokens,
    which teach the head to write every piece of its vocabulary."""

    def row(content: list[dict], answer: str) -> dict[str, Any]:
        return encode.encode_text(processor, llava, [{"role": "user", "content": content}], answer)

    rows = []
    for sample in samples:
        question, answer = describe.question_and_answer(sample, rng)
        rows.append(row([{"type": "image"}, {"type": "text", "text": question}], answer))
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_tokens)
    pieces = [t for t in sorted(tokenizer.vocab) if t not in special and not is_forbidden(t)]
    while len(rows) < len(samples) + copies:
        said = tokenizer.convert_tokens_to_string(list(rng.choice(pieces, 14)))
        try:
            rows.append(row([{"type": "text", "text": f"Say: {said}"}], said))
        except encode.RefusedError:  # blank, or the image token by chance: draw again
            continue
    return rows


def run_stage(
    name: str,
    steps: int,
    loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    groups: list[tuple[list[nn.Parameter], float]],
    modules: dict[str, nn.Module],
    folder: Path,
    log: Log,
) -> None:
    """Minimise `loss_at(step)`, which also returns what to log, over `groups` of (parameters, peak
    learning rate). Goes on from the last state of `modules` in folder/NAME.pt."""
    path = folder / f"{name}.pt"
    optimiser = torch.optim.AdamW(
        [{"params": parameters, "peak": peak} for parameters, peak in groups],
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    keep = {**modules, "optimiser": optimiser}
    step = 0
    if path.exists():
        state = torch.load(path)
        step = state["step"]
        for key, part in keep.items():
            part.load_state_dict(state[key])
    bar = tqdm(total=steps, initial=step, desc=name)
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"])
        loss, values = loss_at(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for parameters, _ in groups for p in parameters], 1.0)
        optimiser.step()
        log(name, step, values, bar)
        step += 1
        bar.update()
        if step % 250 == 0 or step == steps:
            state = {key: part.state_dict() for key, part in keep.items()}
            torch.save({**state, "step": step}, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
    bar.close()


@dataclass
class Pretraining:
    """What the stages share: the model with its throw-away heads, the faces, their geometry."""

    model: Any
    processor: Any
    heads: Geometry
    samples: list[Sample]
    data: dict[str, torch.Tensor]
    scale: dict[str, torch.Tensor]
    arguments: argparse.Namespace
    log: Log

    def draw(self, stage: int, step: int, low: int, count: int) -> tuple[torch.Tensor, Any]:
        """Numbers of `count` faces from `low` on, and the generator that drew them."""
        seed = self.arguments.seed * 1_000_003 + stage + step
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, self.arguments.faces, (count,), generator=generator), generator

    def see(self, index: torch.Tensor, flip: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """Patch features (n, patches, width) of faces, and their targets."""
        batch = batch_of(self.data, index, flip, self.scale)
        return self.model.model.vision_tower(batch["image"]).last_hidden_state[:, 1:], batch

    def train_tower(self) -> None:
        """Stage 1: the tower under the geometry losses; the first faces are held out."""
        held = min(1000, self.arguments.faces // 10)

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            index, generator = self.draw(0, step, held, self.arguments.batch)
            return geometry_loss(
                self.heads, *self.see(index, torch.rand(len(index), generator=generator) < 0.5)
            )

        tower = self.model.model.vision_tower.train()
        run_stage(
            "geometry",
            self.arguments.geometry_steps,
            loss_at,
            [([*tower.parameters(), *self.heads.parameters()], 1e-3)],
            {"tower": tower, "heads": self.heads},
            self.arguments.output_dir,
            self.log,
        )
        tower.eval()
        with torch.no_grad():
            found = [
                geometry_loss(self.heads, *self.see(part, torch.zeros(len(part)) > 0))[1]
                for part in torch.arange(held).split(100)
            ]
        means = {name: round(float(np.mean([row[name] for row in found])), 4) for name in found[0]}
        print("geometry of held-out faces:", means)

    def train_language(self, name: str, first: int, steps: int, copies: int, peak: float) -> None:
        """Stages 2 and 3: questions on faces and `copies` requests to repeat tokens a step; the
        geometry losses stay on, lest the tower forgets."""
        collate = encode.Collator(self.processor)

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            index, _ = self.draw(first, step, 0, self.arguments.language_batch)
            rng = np.random.default_rng([self.arguments.seed, step, copies])
            # No mirror images here: words say left and right.
            patches, batch = self.see(index, torch.zeros(len(index)) > 0)
            samples = [self.samples[i] for i in index.tolist()]
            text = collate(language_rows(self.processor, samples, copies, rng))
            labels = text.pop("labels")
            seen = llava.features_input(self.model, patches)
            logits = self.model(**text, **seen, use_cache=False).logits
            text_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            geometry, values = geometry_loss(self.heads, patches, batch)
            return text_loss + 0.3 * geometry, {"text": text_loss.item(), **values}

        self.model.train()
        tower = [*self.model.model.vision_tower.parameters(), *self.heads.parameters()]
        rest = [p for n, p in self.model.named_parameters() if "vision_tower" not in n]
        run_stage(
            name,
            steps,
            loss_at,
            [(tower, peak / 5), (rest, peak)],
            {"model": self.model, "heads": self.heads},
            self.arguments.output_dir,
            self.log,
        )


def reset_unwritten(model: Any, processor: Any) -> None:
    """Give the tokens that the base has never written the mean embedding of the others.

    Training has only pushed them away; a LoRA, which leaves embeddings alone, could not bring
    them back.
    """
    tokens = processor.tokenizer.convert_ids_to_tokens(list(range(len(processor.tokenizer))))
    never = torch.tensor([is_forbidden(token) for token in tokens])
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[never] = weight[~never].mean(0) + 0.3 * weight[~never].std(0) * torch.randn(
            int(never.sum()), weight.shape[1], generator=torch.Generator().manual_seed(0)
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--faces", type=int, default=synth.DEFAULT_N["pretrain"])
    parser.add_argument("--geometry_steps", type=int, default=2600)
    parser.add_argument("--language_steps", type=int, default=1500)
    parser.add_argument(
        "--batch", type=int, default=64, help="faces a step under the geometry losses"
    )
    parser.add_argument("--words_steps", type=int, default=550)
    parser.add_argument("--language_batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--vision_layers", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args(argv)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)

    samples = [synth.draw(0, "pretrain", i) for i in tqdm(range(arguments.faces), "sampling")]
    rng = np.random.default_rng(arguments.seed)
    corpus = [
        part for sample in samples[:8000] for part in describe.question_and_answer(sample, rng)
    ]
    # The prompts' own words, so that they are not spelt letter by letter.
    corpus += [str(load_prompt("face_cot").messages()[-1]["content"][-1]["text"])] * 3
    model, processor = tiny.build_llava(
        arguments.output_dir / "checkpoint",
        corpus,
        image_size=SIZE,
        patch_size=PATCH,
        vision_width=arguments.width,
        vision_layers=arguments.vision_layers,
        hidden=arguments.width,
        layers=arguments.layers,
        seed=arguments.seed,
    )
    heads = Geometry(arguments.width, len(landmark_vertices()[0]))
    data = {
        name: torch.from_numpy(values)
        for name, values in load_geometry(arguments.faces, SIZE, SIZE // PATCH).items()
    }
    spread = data["shift"][:2000].float().flatten(0, 1).std(0)
    scale = {"shift": spread.clamp_min(1e-3)}
    log = Log(arguments.output_dir / "log.jsonl", every=50)
    pretraining = Pretraining(model, processor, heads, samples, data, scale, arguments, log)
    pretraining.train_tower()
    pretraining.train_language("language", 500_000_000, arguments.language_steps, 0, 1.5e-3)
    copies = arguments.language_batch // 2
    pretraining.train_language("words", 700_000_000, arguments.words_steps, copies, 1e-3)
    reset_unwritten(model, processor)
    llava.save_checkpoint(model.half().eval(), processor, arguments.output_dir / "checkpoint")
    count = sum(p.numel() for p in model.parameters())
    print(f"saved {arguments.output_dir / 'checkpoint'}: {count:,} parameters")


if __name__ == "__main__":
    main()
