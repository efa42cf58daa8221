"""Settings of the recipes that train a CLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vlmface import label_texts
from vlmface.clip.classifier import ClassifierConfig
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.train import checks
from vlmface.train.settings import (
    BalanceSettings,
    DatasetSettings,
    EvaluationSettings,
    OptimizerSettings,
    RunSettings,
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

PARTS = ("image", "text", "prompts", "time", "fusion", "head", "affect", "scale")


@dataclass(frozen=True, kw_only=True)
class Training(RunSettings, OptimizerSettings, DatasetSettings, ABC):
    """What all recipes that train a CLIP share: the model, and how it is trained.

    Args:
        base: NAME/TAG of open_clip, hf-hub:OWNER/NAME, a folder, or vlmface-clip-tiny
        lora_rank: rank of the adapters
        lora_alpha: the adapters are scaled by lora_alpha / lora_rank
        augment: flip: mirrored; face: also turned, scaled, shifted, brighter or darker; or none
        epochs: passes over all rows
        optimizer: AdamW, or SGD with momentum
        learning_rates: {part: rate}, where a part has another rate than learning_rate
        layer_decay: the rate of each block of the image tower is this times that of the next
        schedule: of the learning rate; steps: a tenth after each milestone
        milestones: epochs after which the rate is a tenth, with schedule: steps
        cache_gib: decoded images that are kept in memory
        dataloader_workers: processes that load batches; 0: the training process
        eval_batch_size: rows per batch of the evaluation
    """

    base: str
    lora_rank: Count = 8
    lora_alpha: Positive = 16
    augment: Literal["none", "flip", "face"] = "none"
    epochs: Positive = 10
    batch_size: Count = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    learning_rates: dict[str, Positive] = field(default_factory=dict)
    layer_decay: PositiveShare = 1.0
    schedule: Literal["cosine", "linear", "constant", "steps"] = "cosine"  # type: ignore[assignment]
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
        checks.data_options(self)
        if odd := [name for name in self.learning_rates if name not in PARTS]:
            raise UserError(
                f"learning_rates has {', '.join(odd)}: its parts are {', '.join(PARTS)}"
            )
        if still := [name for name in self.learning_rates if name not in self.trained_parts]:
            raise UserError(
                f"learning_rates has {', '.join(still)}, but has no effect there: trained are "
                f"{', '.join(part for part in PARTS if part in self.trained_parts)}"
            )
        if self.schedule == "steps" and not self.milestones:
            raise UserError("schedule is steps, but milestones (epochs) is empty: [10, 15], say")
        if late := [epoch for epoch in self.milestones if epoch >= self.epochs]:
            raise UserError(
                f"milestones has {', '.join(map(str, late))}, but the run ends after "
                f"{self.epochs:g} epochs: leave these out, or raise epochs"
            )

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from checks.unused_warmup(self)
        if self.schedule != "steps":
            yield Unused("milestones", f"schedule is {self.schedule}", ("schedule",))
        image, text = self.policies
        towers = ("image", "text")
        if "lora" not in (image, text):
            yield Unused("lora_rank", "image and text are without LoRA", towers)
            yield Unused("lora_alpha", "image and text are without LoRA", towers)
        if image == "frozen":
            yield Unused("layer_decay", "image is frozen", ("image",))
        if image == "frozen" and text == "frozen":
            yield Unused("gradient_checkpointing", "image and text are frozen", towers)
        if image == "frozen" and self.augment == "none":
            why = "image is frozen and augment is none, so its features are computed once"
            yield Unused("dataloader_workers", why, ("image", "augment"))


@dataclass(frozen=True, kw_only=True)
class Settings(Training, BalanceSettings, VoteSettings, EvaluationSettings):
    """One run of recipes/clip_finetune.py.

    Args:
        prompt: the texts of the labels: name in prompts/clip/, or a YAML file
        crop: views of each image, such as {size: 224, margin: 0.2, show: face}; null: the image
        frames: of a video, for each view; 1: the middle one
        validation_share: share of the people to hold out, for `select` and `wise_alpha`
        validation_split: or a split of the data set for that; null: none
        image: how the image tower is trained
        text: how the text tower is trained; prompts: as CoOp
        head: text: cosine with the labels' texts; linear: a layer that starts from them
        time: how frames become one
        affect: a head for valence and arousal
        affect_weight: of its loss
        contexts: learnt tokens, with text: prompts
        class_specific: each label has contexts of its own
        negative_weight: of the loss on negative texts (FineCLIPER)
        label_smoothing: share of the target that is spread over all labels
        margins: of the logits, larger for rare labels (LDAM)
        wise_alpha: share of the trained weights in the result (WiSE-FT), or auto
        select: the last epoch, or the best by UAR on held-out rows
    """

    prompt: str
    crop: list[dict[str, Any]] | dict[str, Any] | None = None
    frames: Count = 1
    validation_share: Annotated[float, Range(min=0, below=0.9)] = 0.0
    validation_split: str | None = None
    image: Literal["frozen", "lora", "adapters", "full"] = "frozen"
    text: Literal["frozen", "lora", "full", "prompts"] = "frozen"
    head: Literal["text", "linear"] = "text"
    time: Literal["none", "mean", "transformer"] = "none"
    affect: Literal["none", "linear", "graph"] = "none"
    affect_weight: Positive = 1.0
    contexts: Count = 8
    class_specific: bool = False
    negative_weight: NotNegative = 0.0
    label_smoothing: Annotated[float, Range(min=0, below=1)] = 0.0
    margins: Literal["none", "ldam"] = "none"
    wise_alpha: Share | Literal["auto"] = 1.0
    select: Literal["last", "best"] = "last"

    @property
    def policies(self) -> tuple[str, str]:
        return self.image, self.text

    @property
    def views(self) -> int:
        """How many views of a row are shown."""
        return max(1, len(crops.parse_views(self.crop)))

    @property
    def trained_parts(self) -> set[str]:
        trains = {
            "image": self.image != "frozen",
            "text": self.text in ("lora", "full"),
            "prompts": self.text == "prompts",
            "time": self.time == "transformer",
            "fusion": self.views > 1,
            # The thresholds of several labels count as a head.
            "head": self.head == "linear" or label_texts.load(self.prompt).several,
            "affect": self.affect != "none",
        }
        return {part for part, does in trains.items() if does}

    def shape(self, views: int) -> ClassifierConfig:
        """The configuration of the classifier, for a number of views of a row."""
        return ClassifierConfig(
            image=self.image,
            text=self.text,
            head=self.head,
            views=views,
            frames=self.frames,
            time=self.time,
            affect=self.affect,
            contexts=self.contexts,
            class_specific=self.class_specific,
            negative_weight=self.negative_weight,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
        )

    def check(self) -> None:
        """Refuse what cannot be trained. Raises UserError."""
        super().check()
        if self.validation_split in (self.data_split, "test"):
            raise UserError(
                f"validation_split is {self.validation_split}, but selection on test or "
                "training rows is biased: name a validation split, or set validation_share"
            )
        if self.validation_split and self.validation_share:
            raise UserError(
                f"validation_split is {self.validation_split} and validation_share "
                f"{self.validation_share}: set one of them"
            )
        validated = self.validation_share or self.validation_split
        for name, chooses in (("wise_alpha", self.wise_alpha), ("select", self.select)):
            if chooses in ("auto", "best") and not validated:
                raise UserError(
                    f"{name} is {chooses}, which is chosen on held-out people: set "
                    "validation_share, 0.1 say, or validation_split"
                )
        if self.frames > 1 and self.time == "none":
            raise UserError(
                f"frames is {self.frames}, but time is none: say how frames become one with "
                "time: mean | transformer"
            )
        if not self.trained_parts - {"affect"}:
            raise UserError(
                "nothing would be trained: image and text are frozen and the head is the texts; "
                "set head: linear (a probe), text: prompts, or image: lora"
            )

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from super().unused()
        yield from checks.unused_roots(self)
        if self.head == "linear":
            yield Unused("text", "head is linear, so no text is read", ("head",))
        if self.affect == "none":
            yield Unused("affect_weight", "affect is none", ("affect",))
        if self.text != "prompts":
            yield Unused("contexts", f"text is {self.text}", ("text",))
            yield Unused("class_specific", f"text is {self.text}", ("text",))
        if self.frames == 1:
            yield Unused("time", "frames is 1", ("frames",))
        texts = label_texts.load(self.prompt)
        if not any(texts.negative.values()):
            why = f"prompt {texts.id} has no negative texts"
            yield Unused("negative_weight", why, ("prompt",))
        if texts.several:
            why = f"a picture may have several labels of {texts.space.id}"
            yield Unused("margins", why, ("prompt",))
            yield Unused("soft_labels", why, ("prompt",))
        elif self.soft_labels:
            why = "with soft_labels a picture has no one true label"
            yield Unused("margins", why, ("soft_labels",))
        yield from self.unused_balance()
        if self.select == "last" and self.wise_alpha != "auto":
            why = "select is last and wise_alpha is a number, so nothing is chosen on held-out rows"
            yield Unused("validation_share", why, ("select", "wise_alpha"))
            yield Unused("validation_split", why, ("select", "wise_alpha"))


@dataclass(frozen=True, kw_only=True)
class ContextSettings(Settings):
    """One run of recipes/context_emotion.py with a CLIP that joins several views.

    Args:
        model: clip-caer: a CLIP; vlm: a vision-language model, with settings of its own
        ablation: train on the face alone, the context alone and both, and compare them
    """

    model: Literal["clip-caer"] = "clip-caer"
    ablation: bool = False
