"""Settings of the recipes that train a CLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vlmface import label_spaces, label_texts
from vlmface.clip.classifier import ClassifierConfig
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.train import checks, validation
from vlmface.train.settings import (
    BalanceSettings,
    DatasetSettings,
    EvaluationSettings,
    OptimizerSettings,
    RunSettings,
    SelectionSettings,
    VoteSettings,
)
from vlmface.utils.ranges import (
    Count,
    Natural,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Share,
    Unused,
)

PARTS = ("image_tower", "text_tower", "prompts", "temporal", "fusion", "head", "affect", "scale")


@dataclass(frozen=True, kw_only=True)
class Training(RunSettings, OptimizerSettings, DatasetSettings, ABC):
    """What all recipes that train a CLIP share: the model, and how it is trained.

    Args:
        base_model: NAME/TAG of open_clip, hf-hub:OWNER/NAME, a folder, or vlmface-clip-tiny
        lora_rank: rank of the adapters
        lora_alpha: the adapters are scaled by lora_alpha / lora_rank
        augment: flip: mirrored; face: also turned, scaled, shifted, brighter or darker; or none
        epochs: passes over all rows
        optimizer: AdamW, or SGD with momentum
        learning_rates: {part: rate}, where a part has another rate than learning_rate
        layer_decay: the rate of each block of the image tower is this times that of the next
        lr_scheduler: of the learning rate; steps: a tenth after each milestone
        milestones: epochs after which the rate is a tenth, with lr_scheduler: steps
        cache_gib: decoded images that are kept in memory
        dataloader_workers: processes that load batches; 0: the training process
        eval_batch_size: rows per batch of the evaluation
    """

    base_model: str
    lora_rank: Count = 8
    lora_alpha: Positive = 16
    augment: Literal["none", "flip", "face"] = "none"
    epochs: Positive = 10
    batch_size: Count = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    learning_rates: dict[str, Positive] = field(default_factory=dict)
    layer_decay: PositiveShare = 1.0
    lr_scheduler: Literal["cosine", "linear", "constant", "steps"] = "cosine"  # type: ignore[assignment]
    milestones: list[Count] = field(default_factory=list)
    cache_gib: NotNegative = 2.0
    dataloader_workers: Natural = 0
    save_steps: Count = 200
    eval_batch_size: Count = 100

    @property
    @abstractmethod
    def trained_parts(self) -> set[str]:
        """Which of PARTS are trained."""

    @property
    @abstractmethod
    def policies(self) -> tuple[str, str]:
        """How the image and the text tower are trained."""

    def check(self) -> None:
        """Refuse what cannot be trained, as far as it is not about labels. Raises UserError."""
        checks.saved_when_logged(self)
        checks.dataset_options(self)
        if odd := [name for name in self.learning_rates if name not in PARTS]:
            raise UserError(
                f"learning_rates has {', '.join(odd)}: its parts are {', '.join(PARTS)}"
            )
        if still := [name for name in self.learning_rates if name not in self.trained_parts]:
            raise UserError(
                f"learning_rates has {', '.join(still)}, but has no effect there: trained are "
                f"{', '.join(part for part in PARTS if part in self.trained_parts)}"
            )
        if self.lr_scheduler == "steps" and not self.milestones:
            raise UserError(
                "lr_scheduler is steps, but milestones (epochs) is empty: [10, 15], say"
            )
        if late := [epoch for epoch in self.milestones if epoch >= self.epochs]:
            raise UserError(
                f"milestones has {', '.join(map(str, late))}, but the run ends after "
                f"{self.epochs:g} epochs: leave these out, or raise epochs"
            )

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from checks.unused_warmup(self)
        if self.lr_scheduler != "steps":
            yield Unused("milestones", f"lr_scheduler is {self.lr_scheduler}", ("lr_scheduler",))
        image, text = self.policies
        towers = ("image_tower", "text_tower")
        if "lora" not in (image, text):
            yield Unused("lora_rank", "image_tower and text_tower are without LoRA", towers)
            yield Unused("lora_alpha", "image_tower and text_tower are without LoRA", towers)
        if image == "frozen":
            yield Unused("layer_decay", "image_tower is frozen", ("image_tower",))
        if image == "frozen" and text == "frozen":
            yield Unused("gradient_checkpointing", "image_tower and text_tower are frozen", towers)
        if image == "frozen" and self.augment == "none":
            why = "image_tower is frozen and augment is none, so its features are computed once"
            yield Unused("dataloader_workers", why, ("image_tower", "augment"))


@dataclass(frozen=True, kw_only=True)
class Settings(Training, BalanceSettings, VoteSettings, EvaluationSettings, SelectionSettings):
    """One run of recipes/clip_finetune.py.

    Args:
        prompt: the texts of the labels: name in prompts/clip/, a YAML file, or label
        label_space: what the texts are about; prompt: label writes them for it; null: their own
        views: views of each image, such as [{size: 224, view: face}]; null: the image
        num_frames: of a video, for each view; 1: the middle one
        eval_steps: steps between two measurements of validation loss and metrics; null: none
        image_tower: how the image tower is trained
        text_tower: how the text tower is trained; prompts: as CoOp
        head: text: cosine with the labels' texts; linear: a layer that starts from them
        temporal: how frames become one
        affect: a head for valence and arousal
        affect_weight: of its loss
        num_context_tokens: learnt tokens, with text_tower: prompts
        class_specific: each label has contexts of its own
        negative_weight: of the loss on negative texts (FineCLIPER)
        label_smoothing: share of the target that is spread over all labels
        margins: of the logits, larger for rare labels (LDAM)
        wise_ft_alpha: share of the trained weights in the result (WiSE-FT), or auto
        checkpoint_selection: the last epoch, or the best by UAR on held-out rows
    """

    prompt: str
    label_space: str | None = None
    views: list[dict[str, Any]] | None = None
    num_frames: Count = 1
    eval_steps: Count | None = None
    image_tower: Literal["frozen", "lora", "adapters", "full"] = "frozen"
    text_tower: Literal["frozen", "lora", "full", "prompts"] = "frozen"
    head: Literal["text", "linear"] = "text"
    temporal: Literal["none", "mean", "transformer"] = "none"
    affect: Literal["none", "linear", "graph"] = "none"
    affect_weight: Positive = 1.0
    num_context_tokens: Count = 8
    class_specific: bool = False
    negative_weight: NotNegative = 0.0
    label_smoothing: Annotated[float, Range(min=0, below=1)] = 0.0
    margins: Literal["none", "ldam"] = "none"
    wise_ft_alpha: Share | Literal["auto"] = 1.0
    checkpoint_selection: Literal["last", "best"] = "last"

    @classmethod
    def implied(cls, stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Of the YAML file of a data set: its label space, with texts that are written for it."""
        values = super().implied(stored, overrides)
        return values | ({"prompt": label_texts.GENERATED} if "prompt" in values else {})

    @property
    def texts(self) -> label_texts.LabelTexts:
        """The texts of the labels. Raises UserError."""
        named = self.label_space
        return label_texts.load(self.prompt, None if named is None else label_spaces.space(named))

    @property
    def policies(self) -> tuple[str, str]:
        return self.image_tower, self.text_tower

    @property
    def num_views(self) -> int:
        """How many views of a row are shown."""
        return max(1, len(crops.parse_views(self.views)))

    @property
    def uses_validation_rows(self) -> bool:
        """Whether anything is measured or chosen on validation rows."""
        chooses = self.checkpoint_selection == "best" or self.wise_ft_alpha == "auto"
        return super().uses_validation_rows or chooses

    @property
    def trained_parts(self) -> set[str]:
        trains = {
            "image_tower": self.image_tower != "frozen",
            "text_tower": self.text_tower in ("lora", "full"),
            "prompts": self.text_tower == "prompts",
            "temporal": self.temporal == "transformer",
            "fusion": self.num_views > 1,
            # The thresholds of several labels count as a head.
            "head": self.head == "linear" or self.texts.multi_label,
            "affect": self.affect != "none",
        }
        return {part for part, does in trains.items() if does}

    def shape(self, views: int) -> ClassifierConfig:
        """The configuration of the classifier, for a number of views of a row."""
        return ClassifierConfig(
            image_tower=self.image_tower,
            text_tower=self.text_tower,
            head=self.head,
            num_views=views,
            num_frames=self.num_frames,
            temporal=self.temporal,
            affect=self.affect,
            num_context_tokens=self.num_context_tokens,
            class_specific=self.class_specific,
            negative_weight=self.negative_weight,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
        )

    def check(self) -> None:
        """Refuse what cannot be trained. Raises UserError."""
        super().check()
        validation.check(self)
        if self.checkpoint_selection == "best" and self.metric_for_best_model is not None:
            raise UserError(
                "checkpoint_selection is best, which keeps the best epoch, and "
                f"metric_for_best_model is {self.metric_for_best_model}, which keeps the best "
                "evaluation: set one of them"
            )
        if self.num_frames > 1 and self.temporal == "none":
            raise UserError(
                f"num_frames is {self.num_frames}, but temporal is none: say how frames become one "
                "with temporal: mean | transformer"
            )
        if not self.trained_parts - {"affect"}:
            raise UserError(
                "nothing would be trained: image_tower and text_tower are frozen and the head is "
                "the texts; set head: linear (a probe), text_tower: prompts, or image_tower: lora"
            )

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from super().unused()
        yield from checks.unused_roots(self)
        if self.head == "linear":
            yield Unused("text_tower", "head is linear, so no text is read", ("head",))
        if self.affect == "none":
            yield Unused("affect_weight", "affect is none", ("affect",))
        if self.text_tower != "prompts":
            yield Unused("num_context_tokens", f"text_tower is {self.text_tower}", ("text_tower",))
            yield Unused("class_specific", f"text_tower is {self.text_tower}", ("text_tower",))
        if self.num_frames == 1:
            yield Unused("temporal", "num_frames is 1", ("num_frames",))
        texts = self.texts
        if not any(texts.negative.values()):
            why = f"prompt {texts.id} has no negative texts"
            yield Unused("negative_weight", why, ("prompt",))
        if texts.multi_label:
            why = f"a picture may have several labels of {texts.space.id}"
            yield Unused("margins", why, ("prompt",))
            yield Unused("soft_labels", why, ("prompt",))
        elif self.soft_labels:
            why = "with soft_labels a picture has no one true label"
            yield Unused("margins", why, ("soft_labels",))
        yield from self.unused_balance()
        yield from self.unused_selection("checkpoint_selection", "wise_ft_alpha")


@dataclass(frozen=True, kw_only=True)
class ContextSettings(Settings):
    """One run of recipes/context_emotion.py with a CLIP that joins several views.

    Args:
        model: clip-caer: a CLIP; vlm: a vision-language model, with settings of its own
        ablation: train on the face alone, the context alone and both, and compare them
    """

    model: Literal["clip-caer"] = "clip-caer"
    ablation: bool = False
