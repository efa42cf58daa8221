"""What the YAML of a CLIP recipe may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vlmface.clip.classifier import Shape
from vlmface.data import crops
from vlmface.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all recipes that train a CLIP are told: which one, on which data, and how."""

    base: str
    data: str
    output_dir: str
    data_root: str | None = None
    data_split: str = "train"
    data_options: dict[str, Any] = field(default_factory=dict)
    n_train: int | None = None
    seed: int = 0
    lora_rank: int = 8
    lora_alpha: float = 16
    augment: Literal["none", "flip", "face"] = "none"
    epochs: float = 10
    batch_size: int = 64
    gradient_accumulation: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    learning_rates: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    schedule: Literal["cosine", "linear", "constant", "steps"] = "cosine"
    milestones: list[int] = field(default_factory=list)
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    cache_gib: float = 2.0
    num_processes: int | None = None
    dataloader_workers: int = 0
    logging_steps: int = 10
    save_steps: int = 200
    eval_batch_size: int = 100
    report_to: str = "none"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """One run of `recipes/clip_finetune.py`; the files in recipes/configs explain every field."""

    benchmark: str
    prompt: str
    limits: str
    benchmark_root: str | None = None
    n_eval: int | None = None
    crop: list[dict[str, Any]] | dict[str, Any] | None = None
    frames: int = 1
    validation_share: float = 0.0
    validation_split: str | None = None
    image: Literal["frozen", "lora", "adapters", "full"] = "frozen"
    text: Literal["frozen", "lora", "full", "prompts"] = "frozen"
    head: Literal["text", "linear"] = "text"
    time: Literal["none", "mean", "transformer"] = "none"
    affect: Literal["none", "linear", "graph"] = "none"
    affect_weight: float = 1.0
    contexts: int = 8
    class_specific: bool = False
    negative_weight: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced", "effective"] = "none"
    margins: Literal["none", "ldam"] = "none"
    wise_alpha: float | str = 1.0
    select: Literal["last", "best"] = "last"

    def shape(self, views: int) -> Shape:
        """The classifier that is asked for, for so many views of a row."""
        return Shape(
            image=self.image, text=self.text, head=self.head, views=views, frames=self.frames,
            time=self.time, affect=self.affect, contexts=self.contexts,
            class_specific=self.class_specific, negative_weight=self.negative_weight,
            lora_rank=self.lora_rank, lora_alpha=self.lora_alpha,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ContextSettings(Settings):
    """One run of `recipes/context_emotion.py --model clip-caer`: several views of a row. `ablation`
    trains the face alone, the context alone and both."""

    model: Literal["clip-caer"] = "clip-caer"
    ablation: bool = False


PARTS = ("image", "text", "prompts", "time", "fusion", "head", "affect", "scale")


def check_training(settings: Training) -> None:
    """Refuse what cannot be trained, as far as it is not about labels. Raises UserError."""
    if odd := [name for name in settings.learning_rates if name not in PARTS]:
        raise UserError(f"learning_rates has {', '.join(odd)}: its parts are {', '.join(PARTS)}")
    if not 0 < settings.layer_decay <= 1:
        raise UserError(f"layer_decay is {settings.layer_decay}, expected above 0 and up to 1")
    if settings.schedule == "steps" and not settings.milestones:
        raise UserError("schedule is steps, but there are no milestones (epochs): [10, 15], say")
    if settings.save_steps % settings.logging_steps:
        raise UserError(
            f"save_steps {settings.save_steps} is no multiple of logging_steps "
            f"{settings.logging_steps}: the log of a resumed run would differ"
        )


def check(settings: Settings) -> None:
    """Refuse what cannot be trained before anything is rendered or evaluated. Raises UserError."""
    check_training(settings)
    if not 0 <= settings.validation_share < 0.9:
        raise UserError(
            f"validation_share is {settings.validation_share}, expected 0 up to 0.9 of the people"
        )
    if settings.validation_split in (settings.data_split, "test"):
        raise UserError(
            f"validation_split is {settings.validation_split}, but what is chosen on test or "
            "training rows is no choice: name a validation split, or set validation_share"
        )
    if settings.validation_split and settings.validation_share:
        raise UserError(
            f"validation_split is {settings.validation_split} and validation_share "
            f"{settings.validation_share}: set one of them"
        )
    validated = settings.validation_share or settings.validation_split
    if settings.wise_alpha == "auto" and not validated:
        raise UserError(
            "wise_alpha is auto, which is chosen on held-out people: set validation_share, 0.1 "
            "say, or validation_split"
        )
    if settings.select == "best" and not validated:
        raise UserError(
            "select is best, which is chosen on held-out people: set validation_share, 0.1 say, "
            "or validation_split"
        )
    if isinstance(settings.wise_alpha, str) and settings.wise_alpha != "auto":
        raise UserError(f"wise_alpha is {settings.wise_alpha!r}, expected 0 to 1, or auto")
    if not isinstance(settings.wise_alpha, str) and not 0 <= settings.wise_alpha <= 1:
        raise UserError(f"wise_alpha is {settings.wise_alpha}, expected 0 to 1, or auto")
    nothing = settings.image == settings.text == "frozen" and settings.head == "text"
    if nothing and settings.time != "transformer" and len(crops.parse(settings.crop)) <= 1:
        raise UserError(
            "nothing would be trained: image and text are frozen and the head is the texts; set "
            "head: linear (a probe), text: prompts, or image: lora"
        )
