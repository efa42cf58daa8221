"""Settings of the recipes that fine-tune a vision-language model, in groups that recipes share.

The `Args:` section of each class holds the meaning of every field, once: `--help` and the comments
in recipes/configs/*.yaml are these texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from vlmface import data, prompts
from vlmface.errors import UserError
from vlmface.train import adapter_settings, checks, validation
from vlmface.utils.ranges import (
    Checked,
    Count,
    Describes,
    Natural,
    NotNegative,
    Positive,
    Range,
    Seed,
    Share,
    Unused,
    Warmup,
    kinds,
)

Policy = Literal["frozen", "lora", "full"]


# --- groups ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunSettings(Checked):
    """The folder of a run and how it is kept.

    Args:
        output_dir: folder of the run
        seed: of all random choices; the same seed gives the same run
        num_processes: processes the run must be started with; null: any number
        logging_steps: steps between two lines of log.jsonl
        save_steps: steps between two checkpoints; a killed run loses at most this many
        report_to: none, or trackers: trackio, tensorboard, wandb, ... (see docs/training.md)
        overwrite: replace the run in output_dir as soon as the new one trains
    """

    output_dir: str
    seed: Seed = 0
    num_processes: Count | None = None
    logging_steps: Count = 10
    save_steps: Count = 50
    report_to: str | list[str] = "none"
    overwrite: bool = False

    @property
    def trackers(self) -> list[str]:
        """The names of the trackers."""
        names = self.report_to.split(",") if isinstance(self.report_to, str) else self.report_to
        return [name for text in names if (name := text.strip()) not in ("none", "")]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Checked):
    """How the model is measured before and after training, and described.

    Args:
        limitations: limitations, for the model card and the reports; null: a neutral sentence
        benchmark: name in eval/benchmarks, or a YAML file
        benchmark_root: folder of the benchmark's data set; null: dataset_root
        n_eval: rows to evaluate on; null: as the benchmark says
        eval_batch_size: rows per batch of the evaluation
    """

    limitations: Annotated[str | None, Describes("dataset")] = None
    benchmark: str
    benchmark_root: str | None = None
    n_eval: Count | None = None
    eval_batch_size: Count = 16


@dataclass(frozen=True, kw_only=True)
class SelectionSettings(Checked):
    """Validation rows, and which checkpoint is kept by what is measured on them.

    Args:
        validation_split: split to validate on; null: `validation`, or people are held out
        validation_share: share of the training rows, by people, to hold out instead of a split
        n_validation: validation rows to read; null: all
        metric_for_best_model: metric whose best checkpoint is kept; null: the last one is kept
        early_stopping_patience: stop after so many evaluations without a better one; null: never
    """

    validation_split: str | None = None
    validation_share: Annotated[float, Range(above=0, below=0.9)] | None = None
    n_validation: Count | None = None
    metric_for_best_model: str | None = None
    early_stopping_patience: Count | None = None

    @property
    def validation_steps(self) -> dict[str, int]:
        """{field: steps} of what is measured while the model trains."""
        names = ("eval_steps", "eval_generate_steps")
        steps = {name: getattr(self, name, None) for name in names}
        return {name: value for name, value in steps.items() if value is not None}

    @property
    def uses_validation_rows(self) -> bool:
        """Whether anything is measured on validation rows."""
        return bool(self.validation_steps)

    def unused_selection(self, *choosing: str) -> Iterator[Unused]:
        """The fields that have no effect.

        Args:
            choosing: Further fields that may need validation rows.
        """
        every = ("eval_steps", "eval_generate_steps")
        steps = tuple(name for name in every if hasattr(self, name))
        why = f"{' and '.join(steps)} {'is' if len(steps) == 1 else 'are'} null"
        if not self.uses_validation_rows:
            reasons = ", ".join([why, *(f"{name} is {getattr(self, name)}" for name in choosing)])
            for name in ("validation_split", "validation_share", "n_validation"):
                yield Unused(name, reasons, (*steps, *choosing))
        if not self.validation_steps:
            yield Unused("metric_for_best_model", why, steps)
        if self.metric_for_best_model is None:
            why = "metric_for_best_model is null"
            yield Unused("early_stopping_patience", why, ("metric_for_best_model",))


@dataclass(frozen=True, kw_only=True)
class ValidationSettings(SelectionSettings):
    """What is measured on validation rows while a vision-language model trains.

    Args:
        eval_generate_steps: steps between two evaluations of generated answers; null: none
        n_generate: validation rows that answers are generated for
    """

    eval_generate_steps: Count | None = None
    n_generate: Count = 64

    def unused_validation(self) -> Iterator[Unused]:
        """The fields of validation that have no effect."""
        yield from self.unused_selection()
        if self.eval_generate_steps is None:
            yield Unused("n_generate", "eval_generate_steps is null", ("eval_generate_steps",))


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Checked):
    """The optimizer, its learning rate and the size of a step.

    Args:
        batch_size: rows per process and micro-step
        gradient_accumulation: micro-steps per optimizer step
        learning_rate: peak learning rate; LoRA takes about ten times the rate of full training
        lr_scheduler: of the learning rate after the warm-up
        warmup_steps: share of all steps below 1, or number of steps
        weight_decay: of AdamW
        max_grad_norm: gradients are clipped to this norm; 0: they are not
        gradient_checkpointing: compute activations twice, which takes less memory
    """

    batch_size: Count = 16
    gradient_accumulation: Count = 1
    learning_rate: Positive = 1e-4
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Warmup = 0
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    gradient_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class DatasetSettings(Checked):
    """The rows that a recipe trains on.

    Args:
        dataset: name of a data set, or the YAML file of one or of a mixture
        dataset_root: folder of the data set as its owners distribute it; null: it is rendered
        dataset_split: split to train on
        dataset_options: options of the data set, such as {seed: 1}
        n_train: rows to read; null: the whole split
    """

    dataset: str
    dataset_root: str | None = None
    dataset_split: str = "train"
    dataset_options: dict[str, Any] = field(default_factory=dict)
    n_train: Count | None = None

    @classmethod
    def implied(cls, stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Of the YAML file of a data set: it is the benchmark, all of its training rows are read,
        and recipes with a label space take its labels and its prompt, except where the settings
        file names a prompt for any labels."""
        name = overrides.get("dataset", stored.get("dataset"))
        if not isinstance(name, str) or not data.is_dataset_file(name):
            return {}
        values: dict[str, Any] = {"benchmark": name, "n_train": None}
        if "label_space" in kinds(cls):
            module = data.dataset_module(name)
            values["label_space"] = module.label_space_name
            if stored.get("prompt") not in prompts.GENERATED:
                values["prompt"] = module.prompt
        chosen = overrides if "dataset" in overrides else {**stored, **overrides}
        return {
            name: value
            for name, value in values.items()
            if name in kinds(cls) and name not in chosen
        }


@dataclass(frozen=True, kw_only=True)
class BalanceSettings(Checked):
    """How much rare labels count.

    Args:
        label_weight_power: weight of a label in the loss: 1 / its frequency, to this power; 0: none
        balance_by: rows of each prompt: all, or as many of each label, some of them repeated
    """

    label_weight_power: NotNegative = 0.0
    balance_by: Literal["none", "labels"] = "none"

    def unused_balance(self) -> Iterator[Unused]:
        """Weights of labels that are equally frequent."""
        if self.balance_by == "labels":
            why = "balance_by is labels, which makes all labels equally frequent"
            yield Unused("label_weight_power", why, ("balance_by",))


@dataclass(frozen=True, kw_only=True)
class VoteSettings(Checked):
    """How much the disagreement of annotators counts.

    Args:
        soft_labels: learn the distribution of label_votes, where a row has them, not one label
    """

    soft_labels: bool = False


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Checked):
    """Random changes of the training images, other ones in each epoch.

    Args:
        augment: flip: half of the images are mirrored, and so are the sides in their rationales
        corruption_share: share of the images that are corrupted, as in eval/robustness.py
        corruptions: names of corruptions; empty: all
    """

    augment: Literal["none", "flip"] = "none"
    corruption_share: Share = 0.0
    corruptions: list[str] = field(default_factory=list)

    @property
    def augments(self) -> bool:
        """Whether images are changed."""
        return self.augment != "none" or self.corruption_share > 0

    def unused_augmentation(self) -> Iterator[Unused]:
        """Corruptions that are not used, and features of images that change."""
        if not self.corruption_share:
            yield Unused("corruptions", "corruption_share is 0", ("corruption_share",))
        if self.augments:
            why = "augment and corruption_share change the images in every epoch"
            yield Unused("cache_features", why, ("augment", "corruption_share"))


@dataclass(frozen=True)
class Lora:
    """How a model is trained, part by part, and its adapters, as peft names them.

    Args:
        trainable: {part: frozen | lora | full}.
        rank: Rank of the adapters.
        alpha: Their scale, over the rank.
        dropout: In front of the adapters.
        variant: rslora, dora, or None.
        modules: Names of layers, or ["all"].
        train_embeddings: Whether the embeddings of all tokens are trained too.
    """

    trainable: dict[str, str]
    rank: int
    alpha: float
    modules: list[str]
    dropout: float = 0.0
    variant: str | None = None
    train_embeddings: bool = False


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Checked):
    """Which parts of a vision-language model are trained, and how.

    Args:
        vision_tower: how the vision tower is trained
        projector: how the projector between them is trained
        language_model: how the language model is trained
        lora_rank: rank of the adapters
        lora_alpha: the adapters are scaled by lora_alpha / lora_rank
        lora_target_modules: layers with an adapter: [all] linear ones, or names such as q_proj
    """

    vision_tower: Policy = "frozen"
    projector: Policy = "full"
    language_model: Policy = "lora"
    lora_rank: Count = 8
    lora_alpha: Positive = 16
    lora_target_modules: list[str] = field(default_factory=lambda: ["all"])

    @property
    def trainable(self) -> dict[str, str]:
        """{part: how it is trained}."""
        return {
            "vision_tower": self.vision_tower,
            "projector": self.projector,
            "language_model": self.language_model,
        }

    @property
    def lora(self) -> Lora:
        """How the model is trained."""
        return Lora(
            trainable=self.trainable,
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            modules=self.lora_target_modules,
        )

    @property
    def uses_lora(self) -> bool:
        """Whether some part is trained under LoRA."""
        return "lora" in self.trainable.values()

    def check_trainable(self) -> None:
        """Refuse to train nothing. Raises UserError."""
        if set(self.trainable.values()) == {"frozen"}:
            raise UserError(
                "nothing would be trained: vision_tower, projector and language_model are all "
                "frozen; set language_model: lora, say"
            )

    def unused_lora(self, *names: str) -> Iterator[Unused]:
        """The fields of LoRA, if no part is trained under LoRA."""
        if not self.uses_lora:
            why = "vision_tower, projector and language_model are without LoRA"
            for name in ("lora_rank", "lora_alpha", "lora_target_modules", *names):
                yield Unused(name, why, ("vision_tower", "projector", "language_model"))


# --- supervised fine-tuning -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SFTSettings(
    RunSettings,
    EvaluationSettings,
    ValidationSettings,
    OptimizerSettings,
    PolicySettings,
    BalanceSettings,
    VoteSettings,
    AugmentationSettings,
    DatasetSettings,
):
    """One run of recipes/sft_cot.py, recipes/sft_labels.py or recipes/sft_attributes.py.

    Args:
        base_model: checkpoint folder, or model id on the hub
        init_from: run, or folder of a LoRA adapter of the base, that is trained further
        eval_steps: steps between two measurements of the validation loss; null: none
        prompt: name in prompts/ or a YAML file; several: each is trained on and scored
        label_space: asked for instead of the prompts' own; null: their own
        balance_by: rows of each prompt: all, as many of each prompt, or also of each label
        text_only_data: JSONL of {question, answer} without images, mixed in; null: none
        views: views of each image, such as [{size: 224, view: face}]; null: the image
        num_frames: of a video, for each view; 1: the middle one
        lora_dropout: dropout in front of the adapters
        lora_variant: rslora: scaled by alpha / sqrt(rank); dora: direction and length apart
        train_embeddings: also train the embeddings of all tokens
        quantization: nf4: language model in 4 bits under its LoRA (needs vlmface[qlora])
        epochs: passes over all rows
        max_length: tokens of images, prompt and answer; longer rows are skipped, and counted
        max_pixels: of an image, for families with free resolutions; null: the processor's own
        compile: torch.compile
        liger: Liger kernels, on GPUs (needs vlmface[liger])
        cache_features: frozen tower, one process: compute its output once per image
        dataloader_workers: processes that load batches; 0: the training process
        scoring: read answers as generated, or by the likelihood of each label, or both
        max_new_tokens: generated answers are cut here, and scored as they stand
    """

    base_model: str
    init_from: str | None = None
    eval_steps: Count | None = None
    prompt: str | list[str]
    label_space: str | None = None
    balance_by: Literal["none", "tasks", "labels"] = "none"  # type: ignore[assignment]
    text_only_data: str | None = None
    views: list[dict[str, Any]] | None = None
    num_frames: Count = 1
    lora_dropout: Annotated[float, Range(min=0, below=1)] = 0.05
    lora_variant: Literal["rslora", "dora"] | None = None
    train_embeddings: bool = False
    quantization: Literal["nf4"] | None = None
    epochs: Positive = 1
    max_length: Count = 512
    max_pixels: Count | None = None
    compile: bool = False
    liger: bool = False
    cache_features: bool = False
    dataloader_workers: Natural = 0
    scoring: Literal["generate", "likelihood", "both"] = "generate"
    max_new_tokens: Count = 256

    @classmethod
    def implied(cls, stored: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Of the YAML file of a data set, and of the adapter in `init_from`: its shape, where the
        settings file has another one."""
        of_adapter = adapter_settings.implied(cls, stored, overrides)
        return super().implied(stored, overrides) | of_adapter

    @property
    def prompts(self) -> list[str]:
        """The names of the prompts."""
        names = self.prompt.split(",") if isinstance(self.prompt, str) else self.prompt
        return [name.strip() for name in names]

    @property
    def lora(self) -> Lora:
        """How the model is trained."""
        return replace(
            super().lora,
            dropout=self.lora_dropout,
            variant=self.lora_variant,
            train_embeddings=self.train_embeddings,
        )

    def check(self) -> None:
        """Refuse what cannot be trained. Raises UserError."""
        checks.saved_when_logged(self)
        checks.dataset_options(self)
        validation.check(self)
        checks.corruptions(self.corruptions)
        self.check_trainable()

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from checks.unused_roots(self)
        yield from checks.unused_warmup(self)
        yield from self.unused_validation()
        yield from self.unused_lora("lora_dropout", "lora_variant", "train_embeddings")
        if self.vision_tower != "frozen":
            why = f"vision_tower is {self.vision_tower}, so its features change at every step"
            yield Unused("cache_features", why, ("vision_tower",))
        yield from self.unused_balance()
        yield from self.unused_augmentation()
        if self.balance_by == "tasks" and len(self.prompts) == 1:
            yield Unused("balance_by", "there is one prompt", ("prompt",))
