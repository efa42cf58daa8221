"""A CLIP that classifies pictures: its towers, the labels' texts, and the layers between them.

pictures (n, views x frames) -> image tower -> over time -> over views -> a feature
texts of the labels, or learnt contexts -> text tower -> a feature for each label
cosine of the two, times a scale -> logits; a linear head may take the texts' place
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vlmface.clip.adapters import add_adapters
from vlmface.clip.affect import AFFECT_HEADS
from vlmface.clip.contexts import Contexts
from vlmface.clip.model import Clip
from vlmface.clip.temporal import TIME, Fusion, OverTime
from vlmface.errors import UserError
from vlmface.label_texts import LabelTexts, check_lengths

# LoRA on the queries, keys and values, and on the MLP. Not through peft's layer for the whole
# attention: up to 0.21 it adds the output projection's part twice (peft#3774), and adds to and
# subtracts from the base's weights at every step, which rounding does not undo.
LORA_MODULES = {
    "image_tower": r"visual\..*\.(c_fc|c_proj)",
    "text_tower": r"(text\.)?transformer\..*\.(c_fc|c_proj)",
}
ATTENTION = "attn.in_proj_weight"
TIMM_LORA_MODULES = r"visual\..*\.(qkv|proj|fc1|fc2)"  # image towers of timm (SigLIP)


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is built; part of the manifest.

    Attributes:
        image_tower: how the image tower is trained.
        text_tower: how the text tower is trained; "prompts": learnt contexts in front of each text.
        head: "text" (cosine with the labels' features) or "linear" (weights that start from them).
        num_views: pictures of a row.
        num_frames: pictures of each view.
        temporal: how the frames' features are merged, see `temporal.TIME`.
        affect: the head for valence and arousal, see `affect`.
        num_context_tokens: number of learnt context vectors.
        class_specific: whether each text has contexts of its own.
        negative_weight: of the texts that describe what a label does not show.
        lora_rank: rank of LoRA in both towers.
        lora_alpha: scale of LoRA in both towers.
    """

    image_tower: Literal["frozen", "lora", "adapters", "full"] = "frozen"
    text_tower: Literal["frozen", "lora", "full", "prompts"] = "frozen"
    head: Literal["text", "linear"] = "text"
    num_views: int = 1
    num_frames: int = 1
    temporal: Literal["none", "mean", "transformer"] = "none"
    affect: Literal["none", "linear", "graph"] = "none"
    num_context_tokens: int = 8
    class_specific: bool = False
    negative_weight: float = 0.0
    lora_rank: int = 8
    lora_alpha: float = 16


class Classifier(nn.Module):
    """A CLIP with a head for labels."""

    tokens: torch.Tensor
    negative_tokens: torch.Tensor | None

    def __init__(self, clip: Clip, texts: LabelTexts, shape: ClassifierConfig) -> None:
        super().__init__()
        if shape.num_frames > 1 and shape.temporal == "none":
            raise UserError(
                f"num_frames is {shape.num_frames}, but temporal is none: say how frames become "
                f"one with temporal: {' | '.join(TIME[1:])}"
            )
        self.clip, self.texts, self.shape = clip, texts, shape
        self.model = clip.model
        positive = [text for descriptions in texts.positive.values() for text in descriptions]
        negative = [text for descriptions in texts.negative.values() for text in descriptions]
        check_lengths(clip.tokenizer, [*positive, *negative], texts.id)
        self.sizes = [len(descriptions) for descriptions in texts.positive.values()]
        self.negative_sizes = [len(descriptions) for descriptions in texts.negative.values()]
        self._register("tokens", clip.tokens(positive))
        self._register("negative_tokens", clip.tokens(negative) if negative else None)

        self._choose_weights()
        self.over_time = OverTime(shape.temporal, clip.width, shape.num_frames, shape.num_views)
        self.fusion = Fusion(clip.width, shape.num_views) if shape.num_views > 1 else None
        self.contexts = (
            Contexts(clip, positive, shape.num_context_tokens, class_specific=shape.class_specific)
            if shape.text_tower == "prompts"
            else None
        )
        labels = len(texts.space.labels)
        # Of a head in place of texts, and of a model that compares with a threshold.
        start = self._label_features().detach() if shape.head == "linear" else None
        self.linear = nn.Linear(clip.width, labels) if start is not None else None
        if self.linear is not None and start is not None:
            with torch.no_grad():
                self.linear.weight.copy_(start)
                self.linear.bias.zero_()
        self.threshold = nn.Parameter(torch.zeros(labels)) if texts.multi_label else None
        self.affect = None
        if shape.affect != "none":
            self.affect = AFFECT_HEADS[shape.affect](clip.width, labels)
        self._kept: torch.Tensor | None = None  # label features while nothing of theirs is trained
        self.to(clip.device)

    def _register(self, name: str, value: torch.Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    def _choose_weights(self) -> None:
        """Freeze untrained parameters and insert LoRA adapters."""
        shape = self.shape
        full = [tower for tower in ("image_tower", "text_tower") if getattr(shape, tower) == "full"]
        if shape.image_tower == "adapters":
            add_adapters(self.clip, shape.num_frames)
        self.adapter = add_lora(self.clip, shape)
        for name, parameter in self.model.named_parameters():
            if "lora_" not in name:
                parameter.requires_grad_(tower_of(name) in full or ".adapters." in name)

    # --- labels -----------------------------------------------------------------------------------

    def _label_features(self) -> torch.Tensor:
        """A normalised feature of each label (labels, width), minus what it is not."""
        if self.contexts is not None:
            features = self.contexts()
        else:
            features = self.clip.text_features(self.tokens)
        positive = F.normalize(_means(features, self.sizes), dim=-1)
        if self.shape.negative_weight and self.negative_tokens is not None:
            against = self.clip.text_features(self.negative_tokens)
            against = F.normalize(_means(against, self.negative_sizes), dim=-1, eps=1e-6)
            positive = positive - self.shape.negative_weight * against
        return positive

    def label_features(self) -> torch.Tensor:
        """`_label_features`, computed once if no weight that they depend on is trained, or in
        evaluation mode."""
        if self.training and self.shape.text_tower != "frozen":
            self._kept = None
            return self._label_features()
        if self._kept is None or self._kept.device != self.clip.device:
            with torch.no_grad():
                self._kept = self._label_features()
        return self._kept

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if mode and self.shape.text_tower != "frozen":
            self._kept = None
        return self

    # --- pictures ---------------------------------------------------------------------------------

    def image_features(self, squares: torch.Tensor) -> torch.Tensor:
        """(n, pictures, 3, side, side) uint8 -> (n, pictures, width), not normalised: a temporal
        transformer takes them as they are."""
        n, pictures = squares.shape[:2]
        flat = self.clip.image_features(squares.flatten(0, 1), normalize=False)
        return flat.unflatten(0, (n, pictures))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """`image_features` (n, views x frames, width) -> one feature (n, width), normalised."""
        shape = self.shape
        views = pictures.unflatten(1, (shape.num_views, shape.num_frames)).to(self.clip.dtype)
        merged = self.over_time(views)  # (n, views, width)
        if self.fusion is not None:
            return F.normalize(self.fusion(merged), dim=-1)
        return F.normalize(merged[:, 0], dim=-1)

    def forward(
        self, squares: torch.Tensor | None = None, features: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """{"logits" (n, labels), unscaled cosines or their like; "affect" (n, 2), valence and
        arousal, where there is a head for them}."""
        if features is None:
            assert squares is not None
            features = self.image_features(squares)
        image = self.features(features)
        if self.linear is not None:
            logits = F.linear(image, self.linear.weight, self.linear.bias / self.scale)
        else:
            logits = image @ self.label_features().T.to(image)
        if self.threshold is not None:
            # Cosines of one picture are all high or all low: what counts is how they differ.
            logits = logits - logits.mean(-1, keepdim=True) - self.threshold / self.scale
        if self.affect is None:
            return {"logits": logits}
        logits, affect = self.affect(image, logits, self.scale)
        return {"logits": logits, "affect": affect}

    @property
    def scale(self) -> torch.Tensor:
        """What logits are multiplied with before the softmax."""
        return self.model.logit_scale.exp()

    @torch.no_grad()  # not inference_mode: what it keeps of the labels is trained with later
    def answer(
        self, squares: torch.Tensor | None = None, features: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(probabilities (n, labels), which sum to 1 unless a picture may have several; valence and
        arousal (n, 2) or None)."""
        out = self(squares, features)
        scaled = (out["logits"] * self.scale).float()
        shares = scaled.sigmoid() if self.texts.multi_label else scaled.softmax(-1)
        return shares.cpu(), out["affect"].float().cpu() if "affect" in out else None

    # --- weights ----------------------------------------------------------------------------------

    @torch.no_grad()
    def interpolate(self, base: dict[str, torch.Tensor], alpha: float) -> None:
        """Weights between those of `base` (`trained.state` before training; 0) and now (1), as
        WiSE-FT does (Wortsman et al. 2022, arXiv:2109.01903)."""
        for name, parameter in self.named_parameters():
            if "lora_A" in name:  # the difference is lora_B times lora_A, and lora_B starts at 0
                continue
            if name in base:
                start = base[name].to(parameter)
                # Not lerp: at 1 it would be off by a rounding.
                moved = parameter if alpha == 1 else start + alpha * (parameter - start)
                parameter.copy_(moved)
        self._kept = None

    def merge(self) -> None:
        """Fold LoRA weights into the towers: equal up to rounding, and faster. Not to be undone."""
        for adapter in self.adapter:
            adapter.merge_and_unload()
        self.adapter = []
        self._kept = None

    def reset_cache(self) -> None:
        """Discard label features after other weights were loaded."""
        self._kept = None


def tower_of(name: str) -> str:
    """The part that a weight of an open_clip model belongs to: image_tower, text_tower or scale."""
    if name.startswith("visual."):
        return "image_tower"
    return "scale" if name in ("logit_scale", "logit_bias") else "text_tower"


def add_lora(clip: Clip, shape: Any) -> list[Any]:
    """Insert LoRA into the towers for which `shape` is lora, and freeze all other weights.

    Returns:
        [peft's model], or []: a list, so that a module that keeps it does not register its weights
        a second time.
    """
    towers = [tower for tower in ("image_tower", "text_tower") if getattr(shape, tower) == "lora"]
    if not towers:
        return []
    from peft import LoraConfig, get_peft_model

    attention = [
        name
        for name, _ in clip.model.named_parameters()
        if name.endswith(ATTENTION) and tower_of(name) in towers
    ]
    settings = LoraConfig(
        r=shape.lora_rank,
        lora_alpha=shape.lora_alpha,
        target_modules="|".join(f"({_lora_modules(clip, tower)})" for tower in towers),
        target_parameters=attention or None,
    )
    return [get_peft_model(clip.model, settings)]


def _lora_modules(clip: Clip, tower: str) -> str:
    if tower == "image_tower" and not hasattr(clip.model.visual, "transformer"):
        return TIMM_LORA_MODULES
    if tower == "text_tower" and not clip.reads_embedded:
        raise UserError(
            f"text_tower is lora, but the text tower of {clip.base} is a model of transformers: "
            "use text_tower: frozen or full"
        )
    return LORA_MODULES[tower]


def _means(features: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Mean of each run of `sizes` rows; zeros for a run of none."""
    parts = torch.split(features, list(sizes))
    zeros = features.new_zeros(features.shape[1])
    return torch.stack([part.mean(0) if len(part) else zeros for part in parts])
