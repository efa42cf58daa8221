"""Make vlmface-tiny, the built-in base model, from nothing but rendered faces.

    python recipes/pretrain_tiny.py --output_dir runs/tiny

1. Teacher: a small convolutional network learns what the renderer knows for free (where points of
   the skin lie, how they moved from rest, pose, gaze, parts of the face).
2. Geometry: the CLIP tower learns the same, and what the teacher's features say of each patch. A
   transformer from scratch learns nothing under a language loss alone, and slowly on its own.
3. Language: tower, projector and Llama learn to answer plain questions on what is visible.
4. Words: the same, and requests to repeat random tokens, so that every token can be written.
Neither an action unit number nor an emotion word occurs. Every stage resumes from its last file.
`--datasets synth synth_v2` takes half of the faces from version 2, which is closer to photographs.
About an hour and a half on two cores; the model card lies beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from tqdm import tqdm

from vlmface import encode, families
from vlmface.label_spaces import SPACES
from vlmface.prompts import load as load_prompt
from vlmface.synth import dataset as synth
from vlmface.synth import face_descriptions, pretrain_faces
from vlmface.synth.faces import Sample
from vlmface.synth.geometry import PART_CLASSES, landmark_vertices
from vlmface.utils import distributed
from vlmface.utils.config import ArgumentParser, option, run_main
from vlmface.utils.ranges import Count, Seed

STAGES = ("teacher", "geometry", "language", "words")
PATCH, SIZE = 12, 96  # pixels
LLAVA = families.get("llava")
MODES = 24  # of skin movement; the next one moves the skin by less than a twentieth of a millimetre
TEACHER_WIDTH = 160
MUON_RATE, ADAM_RATE = 0.02, 1e-3  # peaks
WEIGHTS = {"points": 2.0, "modes": 1.0, "pose": 0.3, "parts": 0.5}
MIRRORED = torch.tensor([-1.0, 1.0, 1.0])  # x, y, z


class Geometry(nn.Module):
    """Heads that read geometry from patch features; thrown away after pretraining."""

    def __init__(self, width: int, landmarks: int, queries: int = 16) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * 0.5)
        self.attend = nn.MultiheadAttention(width, width // 32, batch_first=True)
        self.read = nn.Sequential(
            nn.Linear(queries * width, 512), nn.GELU(), nn.Linear(512, landmarks * 2 + MODES + 5)
        )
        self.parts = nn.Linear(width, PART_CLASSES)
        self.norm = nn.LayerNorm(width)
        self.teacher = nn.Linear(width, TEACHER_WIDTH)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """points (n, landmarks, 2), modes (n, MODES), pose (n, 5), parts (n, patches, classes)."""
        patches = self.norm(patches)
        read, _ = self.attend(
            self.query.expand(len(patches), -1, -1), patches, patches, need_weights=False
        )
        return *split(self.read(read.flatten(1))), self.parts(patches)

    def like_teacher(self, patches: torch.Tensor) -> torch.Tensor:
        """What the patches say of the teacher's features: (n, patches, TEACHER_WIDTH)."""
        return self.teacher(self.norm(patches))


def split(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The points, modes and pose in a row of outputs."""
    return out[:, : -MODES - 5].unflatten(1, (-1, 2)), out[:, -MODES - 5 : -5], out[:, -5:]


class Teacher(nn.Module):
    """A convolutional network that learns the geometry several times faster than a transformer, and
    whose features on the same grid of patches then tell the tower what to look for."""

    def __init__(self, landmarks: int, grid: int) -> None:
        super().__init__()
        widths = ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 128, 1))
        width = TEACHER_WIDTH
        self.body = nn.Sequential(
            *(convolution(*block) for block in widths),
            nn.AdaptiveAvgPool2d(grid),
            convolution(128, width, 1),
            convolution(width, width, 1),
        )
        self.read = nn.Sequential(
            convolution(width, width, 2),
            nn.Flatten(),
            nn.Linear(width * (-(-grid // 2)) ** 2, 512),
            nn.ReLU(),
            nn.Linear(512, landmarks * 2 + MODES + 5),
        )
        self.parts = nn.Conv2d(width, PART_CLASSES, 1)
        self.scale = nn.BatchNorm1d(width, affine=False)  # of the features that are handed on

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Features of each patch with mean 0 and variance 1: (n, patches, TEACHER_WIDTH)."""
        feature_map = self.body(image.contiguous(memory_format=torch.channels_last)).flatten(2)
        return self.scale(feature_map).transpose(1, 2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `Geometry`."""
        feature_map = self.body(image.contiguous(memory_format=torch.channels_last))
        self.scale(feature_map.detach().flatten(2))  # keeps its running mean and variance
        return *split(self.read(feature_map)), self.parts(feature_map).flatten(2).transpose(1, 2)


def convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Targets:
    """Batches of faces with random changes of the picture that the known geometry follows.

    How the skin moved is told by its principal modes, each scaled to unit variance: in the plain
    displacements a dropped jaw would drown the lips.
    """

    def __init__(self, data: dict[str, torch.Tensor]) -> None:
        self.data = data
        _, self.mirror = landmark_vertices()
        some = data["shift"][:4000].float()
        both = torch.cat([some, some[:, self.mirror] * MIRRORED]).flatten(1)
        self.mean_shape = both.mean(0)
        _, size, axes = torch.linalg.svd(both - self.mean_shape, full_matrices=False)
        self.axes = (axes[:MODES] / size[:MODES, None]).T * len(both) ** 0.5

    def plain(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """The faces as they were rendered."""
        return {
            "image": self.data["image"][index].permute(0, 3, 1, 2).float() / 127.5 - 1,
            "points": self.data["points"][index].float(),
            "modes": (self.data["shift"][index].float().flatten(1) - self.mean_shape) @ self.axes,
            "pose": self.data["pose"][index].float(),
            "parts": self.data["parts"][index].permute(0, 3, 1, 2).float() / 255,
            "mirrored": torch.zeros(len(index), dtype=torch.bool),
        }

    def changed(self, index: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The faces under another exposure, turned, moved and scaled in the picture, and half of
        them seen in a mirror."""
        batch, n = self.plain(index), len(index)

        def within(*ranges: float) -> torch.Tensor:
            return (torch.rand(n, len(ranges), generator=generator) * 2 - 1) * torch.tensor(ranges)

        flip = batch["mirrored"] = torch.rand(n, generator=generator) < 0.5
        shift = self.data["shift"][index[flip]].float()[:, self.mirror] * MIRRORED
        batch["image"][flip] = batch["image"][flip].flip(3)
        batch["parts"][flip] = batch["parts"][flip].flip(3)
        batch["points"][flip] = batch["points"][flip][:, self.mirror] * MIRRORED[:2]
        batch["modes"][flip] = (shift.flatten(1) - self.mean_shape) @ self.axes
        batch["pose"][flip] *= torch.tensor([-1.0, 1.0, -1.0, -1.0, 1.0])
        # A place of the new picture shows the place `inner` @ place + `moved` of the old one.
        turn, grow, moved = within(10.0)[:, 0], 1 + within(0.12)[:, 0], within(0.08, 0.08)
        c, s = torch.cos(torch.deg2rad(turn)) / grow, torch.sin(torch.deg2rad(turn)) / grow
        inner = torch.stack([c, s, -s, c], 1).unflatten(1, (2, 2))
        for name in ("image", "parts"):
            grid = F.affine_grid(
                torch.cat([inner, moved[:, :, None]], 2), list(batch[name].shape), False
            )
            batch[name] = F.grid_sample(batch[name], grid, "bilinear", "reflection", False)
        batch["points"] = (batch["points"] - moved[:, None]) @ inner.inverse().transpose(1, 2)
        batch["pose"][:, 2] += turn / 10
        contrast, colours = 1 + within(0.3), within(0.15, 0.15, 0.15)
        image = batch["image"] * contrast[:, :, None, None] + colours[:, :, None, None]
        noise = torch.randn(image.shape, generator=generator) * within(0.05).abs()[:, :, None, None]
        batch["image"] = (image + noise).clamp(-1, 1)
        return batch


def geometry_loss(
    predictions: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted sum of the geometry losses, and each of them in its own unit."""
    points, modes, pose, parts = predictions
    losses = {
        "points": F.mse_loss(points, batch["points"] * 2),
        "modes": F.mse_loss(modes, batch["modes"]),
        "pose": F.mse_loss(pose, batch["pose"]),
        "parts": F.cross_entropy(parts.transpose(1, 2), batch["parts"].flatten(2)),
    }
    weighted = (WEIGHTS[name] * loss for name, loss in losses.items())
    total = sum(weighted, start=torch.zeros(()))
    return total, {name: loss.item() for name, loss in losses.items()}


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    wave = math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1 + wave))


class Log:
    """log.jsonl: one line every `every` steps, and the progress bar's text."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self.count, self.start = path, every, 0, time.time()
        self.sums: dict[str, float] = {}

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
            self.note(line)
            bar.set_postfix(means)
            self.sums, self.count = {}, 0

    def note(self, line: dict[str, Any]) -> None:
        """Write one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def is_forbidden(token: str) -> bool:
    """Whether a token is an emotion word or the letters AU: the base never writes those."""
    word = token.replace("\u0120", "").strip().lower()
    return word == "au" or SPACES["emotion8"].match(word) is not None


def in_mirror(sample: Sample) -> Sample:
    """The sample as words tell of it when it is seen in a mirror: turned to the other side."""
    view = replace(sample.face.view, yaw=-sample.face.view.yaw)
    return replace(sample, face=replace(sample.face, view=view))


def language_rows(
    processor: Any, samples: list[Sample], copies: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Encoded rows: a question on each face, then `copies` requests to say a random row of tokens,
    which teach the head to write every piece of its vocabulary."""

    def row(content: list[dict], answer: str) -> dict[str, Any]:
        return encode.encode_text(processor, LLAVA, [{"role": "user", "content": content}], answer)

    rows = []
    for sample in samples:
        question, answer = face_descriptions.question_and_answer(sample, rng)
        rows.append(row([{"type": "image"}, {"type": "text", "text": question}], answer))
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_tokens)
    pieces = [t for t in sorted(tokenizer.vocab) if t not in special and not is_forbidden(t)]
    while len(rows) < len(samples) + copies:
        text = tokenizer.convert_tokens_to_string(list(rng.choice(pieces, 14)))
        try:
            rows.append(row([{"type": "text", "text": f"Say: {text}"}], text))
        except encode.SkippedSampleError:  # blank, or the image token by chance: draw again
            continue
    return rows


def optimisers(groups: list[tuple[nn.Module, float]]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside transformer layers, AdamW for all else, their peak rates scaled
    for each module. At 400 steps of 64 faces Muon had a third of AdamW's error at the landmarks."""
    matrices, other_parameters = [], []
    for module, scale in groups:
        parameters = list(module.named_parameters())
        inner = [p for name, p in parameters if "layers." in name and p.ndim == 2]
        others = [p for name, p in parameters if not ("layers." in name and p.ndim == 2)]
        matrices.append({"params": inner, "peak": MUON_RATE * scale})
        other_parameters.append({"params": others, "peak": ADAM_RATE * scale})
    adam = torch.optim.AdamW(other_parameters, weight_decay=0.05, betas=(0.9, 0.98))
    matrices = [group for group in matrices if group["params"]]
    return [adam, torch.optim.Muon(matrices, weight_decay=0.05)] if matrices else [adam]


@dataclass
class Pretraining:
    """What the stages share: the model with its throw-away heads, the faces, their geometry."""

    model: Any
    processor: Any
    heads: Geometry
    samples: list[Sample]
    targets: Targets
    arguments: argparse.Namespace
    log: Log

    def draw(self, stage: int, step: int, low: int, count: int) -> tuple[torch.Tensor, Any]:
        """Numbers of `count` faces from `low` on, and the generator that drew them."""
        seed = self.arguments.seed * 1_000_003 + stage + step
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, self.arguments.faces, (count,), generator=generator), generator

    def see(self, image: torch.Tensor) -> torch.Tensor:
        """The tower's patch features (n, patches, width)."""
        return self.model.model.vision_tower(image).last_hidden_state[:, 1:]

    @property
    def held(self) -> int:
        """So many faces, the first ones, are held out of the geometry stages."""
        return min(1000, self.arguments.faces // 10)

    def hold_to_account(
        self, name: str, look: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    ) -> None:
        """Log the geometry losses on the held-out faces, as they were rendered."""
        losses = []
        with torch.no_grad():
            for index in torch.arange(self.held).split(100):
                batch = self.targets.plain(index)
                losses.append(geometry_loss(look(batch["image"]), batch)[1])
        means = {key: round(float(np.mean([row[key] for row in losses])), 4) for key in losses[0]}
        self.log.note({"stage": f"{name}, held-out faces", **means})

    def train_teacher(self) -> Teacher:
        """Stage 1: a convolutional network under the geometry losses."""
        teacher = Teacher(len(self.targets.mirror), SIZE // PATCH)

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            index, generator = self.draw(900_000_000, step, self.held, self.arguments.batch)
            batch = self.targets.changed(index, generator)
            return geometry_loss(teacher(batch["image"]), batch)

        steps = self.arguments.teacher_steps
        self.run_stage("teacher", steps, loss_at, [(teacher, 2.0)], {"teacher": teacher})
        self.hold_to_account("teacher", teacher.eval())
        return teacher

    def run_stage(
        self,
        name: str,
        steps: int,
        loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
        groups: list[tuple[nn.Module, float]],
        modules: dict[str, nn.Module],
    ) -> None:
        """Minimise `loss_at(step)`, which also returns what to log, over `groups` of (module,
        scale of its learning rates). Resumes from the last state of `modules` in NAME.pt."""
        folder = self.arguments.output_dir
        path = folder / f"{name}.pt"
        steppers = optimisers(groups)
        keep = modules | {f"optimiser {i}": stepper for i, stepper in enumerate(steppers)}
        step = 0
        if path.exists():
            state = torch.load(path)
            step = state["step"]
            for key, part in keep.items():
                part.load_state_dict(state[key])
        if step < steps:  # later stages, if there are any, stand on a shorter one
            for later in STAGES[STAGES.index(name) + 1 :]:
                (folder / f"{later}.pt").unlink(missing_ok=True)
        bar = tqdm(total=steps, initial=step, desc=name)
        while step < steps:
            for group in (group for stepper in steppers for group in stepper.param_groups):
                group["lr"] = learning_rate(step, steps, group["peak"])
            loss, values = loss_at(step)
            for stepper in steppers:
                stepper.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for module, _ in groups for p in module.parameters()], 1.0)
            for stepper in steppers:
                stepper.step()
            self.log(name, step, values, bar)
            step += 1
            bar.update()
            if step % 250 == 0 or step == steps:
                state = {key: part.state_dict() for key, part in keep.items()}
                torch.save({**state, "step": step}, path.with_suffix(".part"))
                os.replace(path.with_suffix(".part"), path)
        bar.close()

    def train_tower(self, teacher: Teacher) -> None:
        """Stage 2: the tower under the geometry losses, and towards the teacher's features."""

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            index, generator = self.draw(0, step, self.held, self.arguments.batch)
            batch = self.targets.changed(index, generator)
            patches = self.see(batch["image"])
            loss, values = geometry_loss(self.heads(patches), batch)
            with torch.no_grad():
                targets = teacher.features(batch["image"])
            alike = F.mse_loss(self.heads.like_teacher(patches), targets)
            return loss + 2 * alike, {**values, "teacher": alike.item()}

        tower = self.model.model.vision_tower.train()
        self.run_stage(
            "geometry",
            self.arguments.geometry_steps,
            loss_at,
            [(tower, 1.0), (self.heads, 1.0)],
            {"tower": tower, "heads": self.heads},
        )
        tower.eval()
        self.hold_to_account("geometry", lambda image: self.heads(self.see(image)))

    def train_language(self, name: str, first: int, steps: int, copies: int, rate: float) -> None:
        """Stages 3 and 4: questions on faces and `copies` requests to repeat tokens a step; the
        geometry losses stay on, lest the tower forgets."""
        collate = encode.Collator(self.processor, LLAVA)

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            index, generator = self.draw(first, step, 0, self.arguments.language_batch)
            rng = np.random.default_rng([self.arguments.seed, step, copies])
            batch = self.targets.changed(index, generator)
            patches = self.see(batch["image"])
            samples = [
                in_mirror(self.samples[i]) if mirrored else self.samples[i]
                for i, mirrored in zip(index.tolist(), batch["mirrored"].tolist(), strict=True)
            ]
            text = collate(language_rows(self.processor, samples, copies, rng))
            labels = text.pop("labels")
            inputs = LLAVA.inputs_from_features(self.model, list(patches))
            logits = self.model(**text, **inputs, use_cache=False).logits
            text_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            geometry, values = geometry_loss(self.heads(patches), batch)
            return text_loss + 0.3 * geometry, {"text": text_loss.item(), **values}

        self.model.train()
        core = self.model.model
        self.run_stage(
            name,
            steps,
            loss_at,
            [
                (core.vision_tower, rate / 5),
                (self.heads, rate / 5),
                (core.multi_modal_projector, rate),
                (core.language_model, rate),  # its embeddings are the head as well
            ],
            {"model": self.model, "heads": self.heads},
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


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/tiny"))
    parser.add_argument(
        "--datasets",
        nargs="+",
        choices=pretrain_faces.SETS,
        default=["synth"],
        help="rendered sets that the faces are from, in equal shares (default: synth)",
    )
    option(parser, "--faces", Count, default=synth.DEFAULT_N["pretrain"])
    option(parser, "--teacher-steps", Count, default=2600)
    option(parser, "--geometry-steps", Count, default=4000)
    option(parser, "--language-steps", Count, default=1300)
    option(parser, "--batch", Count, default=64, help="faces a step under the geometry losses")
    option(parser, "--words-steps", Count, default=400)
    option(parser, "--language-batch", Count, default=32)
    option(parser, "--seed", Seed, default=0)
    option(parser, "--width", Count, default=160)
    option(parser, "--vision-layers", Count, default=5)
    option(parser, "--layers", Count, default=4)
    return parser


def main(argv: Sequence[str]) -> int:
    distributed.check_alone("recipes/pretrain_tiny.py")
    arguments = _parser().parse_args(argv)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)

    faces = pretrain_faces.load(arguments.datasets, arguments.faces, SIZE, SIZE // PATCH)
    samples = faces.samples
    data = {name: torch.from_numpy(values) for name, values in faces.geometry.items()}
    rng = np.random.default_rng(arguments.seed)
    corpus = [
        part
        for sample in samples[:8000]
        for part in face_descriptions.question_and_answer(sample, rng)
    ]
    # The prompts' own words, so that they are not spelt letter by letter.
    corpus += [str(load_prompt("face_cot").messages()[-1]["content"][-1]["text"])] * 3
    model, processor = LLAVA.build_tiny(
        arguments.output_dir / "checkpoint",
        corpus,
        image_size=SIZE,
        patch_size=PATCH,
        vision_width=arguments.width,
        vision_layers=arguments.vision_layers,
        hidden=arguments.width,
        layers=arguments.layers,
        mlp=512,
        vocab_size=1024,
        seed=arguments.seed,
    )
    heads = Geometry(arguments.width, len(landmark_vertices()[0]))
    log = Log(arguments.output_dir / "log.jsonl", every=50)
    pretraining = Pretraining(model, processor, heads, samples, Targets(data), arguments, log)
    pretraining.train_tower(pretraining.train_teacher())
    pretraining.train_language("language", 500_000_000, arguments.language_steps, 0, 1.0)
    copies = arguments.language_batch // 2
    pretraining.train_language("words", 700_000_000, arguments.words_steps, copies, 0.7)
    reset_unwritten(model, processor)
    LLAVA.save_checkpoint(model.half().eval(), processor, arguments.output_dir / "checkpoint")
    count = sum(p.numel() for p in model.parameters())
    print(f"saved {arguments.output_dir / 'checkpoint'}: {count:,} parameters")
    return 0


if __name__ == "__main__":
    run_main(main)
