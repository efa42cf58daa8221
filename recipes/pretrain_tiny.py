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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from joblib import Parallel, delayed
from torch import nn
from tqdm import tqdm

from vlmface import files
from vlmface.families import llava, tiny
from vlmface.prompts import load as load_prompt
from vlmface.synth import dataset as synth
from vlmface.synth import describe
from vlmface.synth.faces import Sample
from vlmface.synth.geometry import PART_CLASSES, known_geometry, landmark_vertices
from vlmface.taxonomy import SPACES

SHARD, GRID, SIZE = 200, 8, 96


def make_shard(path: Path, start: int) -> None:
    """Render SHARD faces of the pretrain split with their geometry."""
    rows = [
        known_geometry(synth.draw(0, "pretrain", i).face, SIZE, GRID)
        for i in range(start, start + SHARD)
    ]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays["points"], arrays["shift"] = arrays["points"].astype("f2"), arrays["shift"].astype("f2")
    arrays["parts"] = (arrays["parts"] * 255).round().astype("u1")
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def faces(folder: Path, count: int) -> dict[str, torch.Tensor]:
    """Images and geometry of the first `count` pretrain faces, rendered where missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k:05d}.npz" for k in range(-(-count // SHARD))]
    jobs = [delayed(make_shard)(p, k * SHARD) for k, p in enumerate(paths) if not p.exists()]
    for _ in tqdm(
        Parallel(-1, return_as="generator_unordered")(jobs), "rendering", len(jobs), unit="shard"
    ):
        pass
    shards = [np.load(path) for path in paths]
    return {
        name: torch.from_numpy(np.concatenate([shard[name] for shard in shards])[:count])
        for name in shards[0]
    }


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


def save_state(path: Path, **state: object) -> None:
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def train_tower(model, heads, data, scale, arguments, log) -> None:
    """Stage 1: the tower under the geometry losses."""
    tower, path = model.model.vision_tower, arguments.output_dir / "geometry.pt"
    parameters = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    step, steps, held = 0, arguments.geometry_steps, min(1000, arguments.faces // 10)
    if path.exists():
        state = torch.load(path)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    bar = tqdm(total=steps, initial=step, desc="geometry")
    tower.train()
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, 1e-3)
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        index = torch.randint(held, arguments.faces, (arguments.batch,), generator=generator)
        batch = batch_of(data, index, torch.rand(len(index), generator=generator) < 0.5, scale)
        patches = tower(batch["image"]).last_hidden_state[:, 1:]
        loss, values = geometry_loss(heads, patches, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        log("geometry", step, values, bar)
        step += 1
        bar.update()
        if step % 500 == 0 or step == steps:
            save_state(
                path,
                tower=tower.state_dict(),
                heads=heads.state_dict(),
                optimiser=optimiser.state_dict(),
                step=step,
            )
    tower.eval()
    with torch.no_grad():
        losses = []
        for at in range(0, held, 100):
            index = torch.arange(at, min(at + 100, held))
            batch = batch_of(data, index, torch.zeros(len(index), dtype=torch.bool), scale)
            losses.append(
                geometry_loss(heads, tower(batch["image"]).last_hidden_state[:, 1:], batch)[1]
            )
    if losses:
        means = {
            f"held_out_{name}": float(np.mean([row[name] for row in losses])) for name in losses[0]
        }
        print(
            "geometry on held-out people:", {name: round(value, 4) for name, value in means.items()}
        )
    bar.close()


def is_forbidden(token: str) -> bool:
    """Whether a token is an emotion word or the letters AU: the base never writes those."""
    word = token.replace("\u0120", "").strip().lower()
    return word == "au" or SPACES["emotion8"].canonical(word) is not None


def language_rows(
    processor: Any,
    samples: list[Sample],
    copies: int,
    rng: np.random.Generator,
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, target ids): a question on each face, then `copies` requests to say a random
    row of tokens, which teach the head to write every piece of its vocabulary."""
    tokenizer, image_tokens = processor.tokenizer, (SIZE // 12) ** 2

    def row(content: list[dict], answer: str) -> tuple[list[int], list[int]]:
        messages = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        prompt = prompt.replace(tiny.IMAGE, tiny.IMAGE * image_tokens)
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        target = tokenizer(f" {answer}", add_special_tokens=False).input_ids
        return ids, [*target, tokenizer.eos_token_id]

    rows = []
    for sample in samples:
        question, answer = describe.question_and_answer(sample, rng)
        rows.append(row([{"type": "image"}, {"type": "text", "text": question}], answer))
    special = set(tokenizer.all_special_tokens)
    pieces = [t for t in sorted(tokenizer.vocab) if t not in special and not is_forbidden(t)]
    for _ in range(copies):
        said = tokenizer.convert_tokens_to_string(list(rng.choice(pieces, 14)))
        rows.append(row([{"type": "text", "text": f"Say: {said}"}], said))
    return rows


def train_language(
    stage: str, steps: int, copies: int, peak: float, model, heads, processor, data, samples, scale,
    arguments, log,
) -> None:  # fmt: skip
    """Stages 2 and 3: plain questions and answers (and copies, in text-only rows); the geometry
    losses stay on, lest the tower forgets."""
    path = arguments.output_dir / f"{stage}.pt"
    tower = list(model.model.vision_tower.parameters()) + list(heads.parameters())
    rest = [p for n, p in model.named_parameters() if "vision_tower" not in n]
    optimiser = torch.optim.AdamW(
        [{"params": tower, "peak": peak / 5}, {"params": rest, "peak": peak}],
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    step = 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    pad = processor.tokenizer.pad_token_id
    bar = tqdm(total=steps, initial=step, desc=stage)
    model.train()
    first = 500_000_000 if stage == "language" else 700_000_000
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"])
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + first + step)
        rng = np.random.default_rng([arguments.seed, step, copies])
        count = (arguments.language_batch,)
        index = torch.randint(0, arguments.faces, count, generator=generator)
        # No mirror images here: words say left and right.
        batch = batch_of(data, index, torch.zeros(len(index), dtype=torch.bool), scale)
        rows = language_rows(processor, [samples[i] for i in index.tolist()], copies, rng)
        longest = max(len(a) + len(b) for a, b in rows)
        ids = torch.full((len(rows), longest), pad)
        labels = torch.full((len(rows), longest), -100)
        for row, (prompt_ids, target) in enumerate(rows):
            end = len(prompt_ids) + len(target)
            ids[row, :end] = torch.tensor(prompt_ids + target)
            labels[row, len(prompt_ids) : end] = torch.tensor(target)
        patches = model.model.vision_tower(batch["image"]).last_hidden_state[:, 1:]
        words = model.model.multi_modal_projector(patches)
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == processor.image_token_id)[..., None], words)
        mask = (ids != pad).long()
        hidden = model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask
        ).last_hidden_state
        wanted = labels[:, 1:] != -100
        logits = model.lm_head(hidden[:, :-1][wanted])
        text_loss = F.cross_entropy(logits, labels[:, 1:][wanted])
        geometry, values = geometry_loss(heads, patches, batch)
        optimiser.zero_grad()
        (text_loss + 0.3 * geometry).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        log(stage, step, {"text": text_loss.item(), **values}, bar)
        step += 1
        bar.update()
        if step % 250 == 0 or step == steps:
            save_state(
                path,
                model=model.state_dict(),
                heads=heads.state_dict(),
                optimiser=optimiser.state_dict(),
                step=step,
            )
    bar.close()


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
    parser.add_argument("--faces", type=int, default=15000)
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
        vision_width=arguments.width,
        vision_layers=arguments.vision_layers,
        hidden=arguments.width,
        layers=arguments.layers,
        seed=arguments.seed,
    )
    heads = Geometry(arguments.width, len(landmark_vertices()[0]))
    data = faces(files.cache_dir() / "geometry" / f"v{synth.VERSION}", arguments.faces)
    spread = data["shift"][:2000].float().flatten(0, 1).std(0)
    scale = {"shift": spread.clamp_min(1e-3)}
    log = Log(arguments.output_dir / "log.jsonl", every=50)
    train_tower(model, heads, data, scale, arguments, log)
    parts = (model, heads, processor, data, samples, scale, arguments, log)
    train_language("language", arguments.language_steps, 0, 1.5e-3, *parts)
    train_language("words", arguments.words_steps, arguments.language_batch // 2, 1e-3, *parts)
    reset_unwritten(model, processor)
    llava.save_checkpoint(model.half().eval(), processor, arguments.output_dir / "checkpoint")
    count = sum(p.numel() for p in model.parameters())
    print(f"saved {arguments.output_dir / 'checkpoint'}: {count:,} parameters")


if __name__ == "__main__":
    main()
