"""Settings that the recipes which fine-tune a vision-language model share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vlmface.errors import UserError
from vlmface.train import checks
from vlmface.utils.ranges import (
    Checked,
    Count,
    Describes,
    Natural,
    NotNegative,
    Positive,
    Range,
    Seed,
    Unused,
    Warmup,
)

Policy = Literal["frozen", "lora", "full"]


@dataclass(frozen=True)
class VLMSettings(Checked):
    """What the recipes that fine-tune a vision-language model share; the files in recipes/configs
    explain every field."""

    base: str
    data: str
    benchmark: str
    prompt: str | list[str]
    output_dir: str
    limits: Annotated[str | None, Describes("data")] = None
    data_root: str | None = None
    data_split: str = "train"
    data_options: dict[str, Any] = field(default_factory=dict)
    benchmark_root: str | None = None
    n_train: Count | None = None
    n_eval: Count | None = None
    crop: dict[str, Any] | list[dict[str, Any]] | None = None
    frames: Count = 1
    seed: Seed = 0
    tower: Policy = "frozen"
    projector: Policy = "full"
    llm: Policy = "lora"
    lora_rank: Count = 8
    lora_alpha: Positive = 16
    lora_dropout: Annotated[float, Range(min=0, below=1)] = 0.05
    lora_variant: Literal["rslora", "dora"] | None = None
    lora_modules: list[str] = field(default_factory=lambda: ["all"])
    train_embeddings: bool = False
    quantize: Literal["nf4"] | None = None
    epochs: Positive = 1
    batch_size: Count = 16
    gradient_accumulation: Count = 1
    learning_rate: Positive = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Warmup = 0
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0  # 0: not clipped
    max_length: Count = 512
    max_pixels: Count | None = None
    max_new_tokens: Count = 256
    gradient_checkpointing: bool = False
    compile: bool = False
    liger: bool = False
    cache_features: bool = False
    num_processes: Count | None = None
    dataloader_workers: Natural = 0
    logging_steps: Count = 10
    save_steps: Count = 50
    eval_batch_size: Count = 16
    report_to: str = "none"
    overwrite: bool = False

    @property
    def prompts(self) -> list[str]:
        named = self.prompt.split(",") if isinstance(self.prompt, str) else self.prompt
        return [name.strip() for name in named]

    @property
    def policy(self) -> dict[str, str]:
        return {"tower": self.tower, "projector": self.projector, "llm": self.llm}

    @property
    def uses_lora(self) -> bool:
        return "lora" in self.policy.values()

    def check(self) -> None:
        """Refuse what cannot be trained. Raises UserError."""
        checks.saved_when_logged(self)
        checks.data_options(self)
        if set(self.policy.values()) == {"frozen"}:
            raise UserError(
                "nothing would be trained: tower, projector and llm are all frozen; set llm: lora, "
                "say"
            )

    def unused(self) -> Iterator[Unused]:
        yield from checks.unused_roots(self)
        yield from checks.unused_warmup(self)
        if not self.uses_lora:
            why = "tower, projector and llm are without LoRA"
            for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_variant", "lora_modules",
                         "train_embeddings"):  # fmt: skip
                yield Unused(name, why, ("tower", "projector", "llm"))
        if self.tower != "frozen":
            why = f"tower is {self.tower}, so its features change at every step"
            yield Unused("cache_features", why, ("tower",))


@dataclass(frozen=True)
class SFTSettings(VLMSettings):
    """One run of `recipes/sft_cot.py`."""

    text_data: str | None = None


@dataclass(frozen=True)
class AttributeSettings(SFTSettings):
    """One run of `recipes/sft_attributes.py`."""

    balance: Literal["none", "tasks", "labels"] = "none"

    def unused(self) -> Iterator[Unused]:
        yield from super().unused()
        if self.balance == "tasks" and len(self.prompts) == 1:
            yield Unused("balance", "there is one prompt", ("prompt",))
