"""GRPO with verifiable rewards: from a run that answers already, on rollouts of our own.

`Settings` is what the recipe's YAML may say; `Start` is the model it begins with; `train` runs, or
goes on with, the training of a run folder.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlmface import encode, families, manifest, prompts
from vlmface.adapter import attach
from vlmface.answers import Answer
from vlmface.data import row_images
from vlmface.errors import RefusedError, UserError
from vlmface.families import parts
from vlmface.run_dir import read_log
from vlmface.schema import FaceSample
from vlmface.train import checks, rewards, sft
from vlmface.train.rows import image_columns
from vlmface.train.settings import Policy, SFTSettings
from vlmface.utils import distributed
from vlmface.utils.ranges import (
    Checked,
    Count,
    Describes,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Unused,
    Warmup,
)

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Settings(Checked):
    """One run of `recipes/grpo.py`; the files in recipes/configs explain every field."""

    start: str
    data: str
    benchmark: str
    rewards: dict[str, Any]
    output_dir: str
    limits: Annotated[str | None, Describes("data")] = None
    prompt: str | None = None
    data_root: str | None = None
    data_split: str = "train"
    data_options: dict[str, Any] = field(default_factory=dict)
    benchmark_root: str | None = None
    n_train: Count | None = None
    n_eval: Count | None = None
    label_power: NotNegative = 0.0
    tower: Policy = "frozen"
    projector: Policy = "frozen"
    llm: Policy = "lora"
    lora_rank: Count = 8
    lora_alpha: Positive = 16
    lora_modules: list[str] = field(default_factory=lambda: ["all"])
    group_size: Annotated[int, Range(min=2)] = 8  # a completion is compared with the others
    temperature: Positive = 1.0
    top_p: PositiveShare = 1.0
    max_new_tokens: Count = 256
    max_length: Count | None = None
    max_drift: Positive = 0.05
    vllm: str | None = None
    beta: NotNegative = 0.0
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    iterations: Count = 1
    clip_low: Annotated[float, Range(above=0, below=1)] = 0.2
    clip_high: Positive = 0.2
    batch_size: Count = 4
    gradient_accumulation: Count = 1
    max_steps: Count = 100
    learning_rate: Positive = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    warmup_steps: Warmup = 0
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0  # 0: not clipped
    gradient_checkpointing: bool = False
    cache_features: bool = True
    num_processes: Count | None = None
    logging_steps: Count = 1
    save_steps: Count = 20
    samples_every: Count = 20
    eval_batch_size: Count = 16
    seed: Seed = 0
    report_to: str = "none"
    overwrite: bool = False

    @property
    def policy(self) -> dict[str, str]:
        return {"tower": self.tower, "projector": self.projector, "llm": self.llm}

    def check(self) -> None:
        """Refuse settings that cannot work together. Raises UserError."""
        checks.data_options(self)
        checks.warmup(self, self.max_steps)
        rewards.parse(self.rewards)
        if set(self.policy.values()) == {"frozen"}:
            raise UserError(
                "nothing would be trained: tower, projector and llm are all frozen; set llm: lora, "
                "say"
            )
        if self.top_p < 1 and self.iterations > 1:
            raise UserError(
                f"top_p {self.top_p} with iterations {self.iterations}: later updates compare "
                "with the whole distribution, not with what top_p left of it. Set one of them to 1"
            )
        if self.max_length is not None and self.max_new_tokens >= self.max_length:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}, but max_length is {self.max_length}: no "
                "room is left for a prompt"
            )
        checks.saved_when_logged(self)
        if self.save_steps % self.iterations:
            raise UserError(
                f"save_steps is {self.save_steps}, but must be a multiple of iterations "
                f"({self.iterations}): a resumed run would differ"
            )

    def unused(self) -> Iterator[Unused]:
        yield from checks.unused_roots(self)
        yield from checks.unused_warmup(self)
        if "lora" not in self.policy.values():
            for name in ("lora_rank", "lora_alpha", "lora_modules"):
                why = "tower, projector and llm are without LoRA"
                yield Unused(name, why, ("tower", "projector", "llm"))
        if self.scale_rewards == "group":
            why = "scale_rewards is group, which divides it out again; batch and none do not"
            yield Unused("label_power", why, ("scale_rewards",))
        if self.iterations == 1:
            why = "with iterations 1 the policy that is trained is the one that answered"
            yield Unused("clip_low", why, ("iterations",))
            yield Unused("clip_high", why, ("iterations",))


# --- where it starts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The model that GRPO begins with. `run`: the folder of a run whose adapter is trained further,
    or None if new adapters (or whole parts) are trained over `base`."""

    base: Path
    base_id: str
    family: ModuleType
    processor: Any
    prompt: prompts.Prompt
    policy: dict[str, str]
    max_length: int
    crop: dict[str, Any] | list[dict[str, Any]] | None
    frames: int
    run: Path | None


def start_of(settings: Settings) -> Start:
    """Read where a run starts: the folder of a run, or a base model with a `prompt`. Raises
    UserError."""
    own = settings.policy
    if not manifest.is_run(settings.start):
        if settings.prompt is None:
            raise UserError(
                f"{settings.start} is no vlmface run: give the folder of one (recipes/sft_cot.py "
                "makes it), or say which prompt the model is asked"
            )
        base = manifest.resolve(settings.start)
        family = families.get(families.family_of(base))
        processor = family.load_processor(base)
        return Start(
            base, settings.start, family, processor, prompts.load(settings.prompt), own,
            settings.max_length or 1024, None, 1, None,
        )  # fmt: skip
    found, asked = manifest.load(settings.start)
    run = Path(settings.start)
    manifest.check_weights(found, run)
    by_id = {prompt.id: prompt for prompt in asked}
    if settings.prompt is not None and settings.prompt not in by_id:
        raise UserError(
            f"{run} was trained with {', '.join(by_id)}, not with prompt {settings.prompt}"
        )
    prompt = by_id[settings.prompt] if settings.prompt else asked[0]
    base = manifest.resolve_base(found, run) if found.adapter else run
    family = families.of_run(found.family, base)
    return Start(
        base,
        found.base["id"] if found.adapter else settings.start,
        family,
        families.load_processor(family, run),
        prompt,
        found.trainable if found.adapter else own,
        settings.max_length or found.max_length,
        found.crop,
        found.frames,
        run if found.adapter else None,
    )


def identity(
    settings: Settings,
    loaded: datasets.Dataset,
    rows: datasets.Dataset,
    tested: datasets.Dataset,
    start: Start,
) -> dict[str, Any]:
    """`sft.identity` of a run, and the adapter that it trains further."""
    found = sft.identity(settings, loaded, rows, tested, [start.prompt], start.base)
    adapter = None if start.run is None else manifest.weights_sha(start.run)
    return found | {"start_weights": adapter}


# --- rows -----------------------------------------------------------------------------------------


def encode_prompts(
    rows: datasets.Dataset, start: Start, used: Sequence[rewards.Weighted], max_new_tokens: int
) -> tuple[datasets.Dataset, list[FaceSample], dict[str, int]]:
    """FaceSample rows -> (rows of `image`, perhaps `images`, `input_ids`, ... as the encoder asks
    about them; their samples; left out by reason).

    Left out are faces that no reward gives a signal for ("no_truth"), and prompts that leave no
    room for an answer within max_length ("too_long"). Raises UserError if nothing is left.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    messages, space = start.prompt.messages(), start.prompt.space
    nobody = Answer(None, (), "none", "")
    compared = [one for one in used if one.name in rewards.COMPARED]
    images = image_columns(rows)
    kept: list[int] = []
    samples: list[FaceSample] = []
    encoded: defaultdict[str, list[Any]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    plain = rows.remove_columns(["image", "frames"])
    for index, row in enumerate(
        tqdm(plain, "encoding", unit="face", disable=not distributed.is_main())
    ):
        sample = FaceSample.from_row(row)
        if compared and all(one(nobody, sample, space) is None for one in compared):
            left_out["no_truth"] += 1
            continue
        size = row_images.image_sizes(images[index], start.family)
        try:
            text = encode.encode_text(
                start.processor, start.family, messages, None,
                max_length=start.max_length - max_new_tokens, image_size=size,
            )  # fmt: skip
        except RefusedError as error:
            left_out[error.reason] += 1
            continue
        kept.append(index)
        samples.append(sample)
        del text["attention_mask"]  # the collator's own: it pads
        for name, values in text.items():
            encoded[name].append(values)
    if not kept:
        raise UserError(
            f"none of the {len(rows)} faces can be trained on ({dict(left_out)}): check the data "
            "set's annotation against the rewards, and max_length"
        )
    columns = Dataset.from_dict({**encoded, "row": list(range(len(kept)))})
    return concatenate_datasets([images.select(kept), columns], axis=1), samples, dict(left_out)


# --- training -------------------------------------------------------------------------------------


def check_start(settings: Settings, start: Start) -> None:
    """Refuse what cannot be trained from there: a policy or a LoRA of its own for a run that trains
    on the adapter of another, layers that the model lacks, and a server that would not answer with
    what is trained. Raises UserError."""
    if start.run is not None:
        _check_adapter(settings, start)
    elif "lora" in start.policy.values():
        start.family.lora_targets(start.policy, settings.lora_modules)
        parts.full_modules(start.family.PARTS, start.policy)
    trained = {part: how for part, how in start.policy.items() if how != "frozen"}
    if settings.vllm is not None and trained != {"llm": "lora"}:
        raise UserError(
            "vllm: a server is given the LoRA of the language model and nothing else, but this run "
            f"trains {', '.join(f'{part}: {how}' for part, how in trained.items())}: set "
            "vllm: null, or start from a run with llm: lora and the other parts frozen"
        )


def _check_adapter(settings: Settings, start: Start) -> None:
    """Refuse settings of an adapter where that of `start.run` is trained further."""
    fields = Settings.__dataclass_fields__
    of_run = {**start.policy, "lora_rank": None, "lora_alpha": None, "lora_modules": None}
    for name, there in of_run.items():
        field = fields[name]
        default = field.default if field.default is not MISSING else ["all"]
        value = getattr(settings, name)
        if value not in (default, there):
            raise UserError(
                f"{name} is {value!r}, but has no effect: the adapter of {start.run} is trained "
                "further as it is. Leave it out"
            )


def train(
    start: Start,
    rows: datasets.Dataset,
    samples: Sequence[FaceSample],
    used: Sequence[rewards.Weighted],
    settings: Settings,
) -> dict[str, Any]:
    """Train on the rows of `encode_prompts`; save the adapter (or whole model) and processor.

    Goes on from the last complete checkpoint in `settings.output_dir`, if there is one, exactly as
    if it had not been interrupted. Returns what `sft.train` does, with the mean reward first and
    last instead of the loss. log.jsonl has a line per `logging_steps`, samples.html the completions
    of the last batch that was looked at. Raises UserError.
    """
    import torch
    from datasets import Dataset
    from transformers import set_seed
    from trl import GRPOConfig

    from vlmface.train.completion_log import CompletionLogger
    from vlmface.train.group_trainer import GroupTrainer
    from vlmface.train.trainer import JsonlLogger, all_tower_features, num_weights

    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated")
    warnings.filterwarnings("ignore", message=".*torch.distributed.*_tensor` is deprecated")
    run_dir = Path(settings.output_dir)
    gpu, mixed = torch.cuda.is_available(), distributed.mixed_precision()
    distributed.disable_deepspeed_shm()
    arguments = GRPOConfig(
        output_dir=str(run_dir / "checkpoints"),
        max_steps=settings.max_steps,
        num_generations=settings.group_size,
        per_device_train_batch_size=settings.batch_size * settings.group_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        steps_per_generation=settings.gradient_accumulation,
        num_iterations=settings.iterations,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        beta=settings.beta,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        reward_weights=[one.weight for one in used],
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=mixed,
        use_cpu=not gpu,
        disable_dropout=True,  # the policy that answers is the one that is trained
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        logging_steps=settings.logging_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_nan_inf_filter=False,
        seed=settings.seed,
        report_to=settings.report_to,
        ddp_timeout=int(distributed.PROCESS_TIMEOUT.total_seconds()),
    )
    model, peft_config = _model(start, settings, mixed)
    set_seed(settings.seed)
    judge = rewards.Judge(used, samples, start.prompt, settings.label_power)
    whole = start.policy["tower"] == "frozen" and not distributed.sharding()
    asked = [{"role": "user", "content": start.prompt.id}]  # what is read is in `rows`
    trainer = GroupTrainer(
        model=model,
        args=arguments,
        reward_funcs=judge.functions(),
        train_dataset=Dataset.from_dict(
            {"prompt": [asked] * len(rows), "index": list(range(len(rows)))}
        ),
        processing_class=start.processor,
        peft_config=peft_config,
        callbacks=[JsonlLogger(run_dir / "log.jsonl", keys=None)],
        family=start.family,
        faces=rows,
        judge=judge,
        stops=start.family.stop_token_ids(start.processor),
        top_p=settings.top_p,
        max_drift=settings.max_drift,
        keep_features=whole,
        server=_server(start, settings),
    )
    trainer.add_callback(CompletionLogger(run_dir, trainer, settings.samples_every))
    if whole and settings.cache_features and arguments.world_size == 1:
        with trainer.accelerator.autocast():
            trainer.features = all_tower_features(
                trainer.model, start.family, rows, start.processor
            )
    distributed.check_sharding(trainer)
    trained: Any = trainer.model
    parameters = [(num_weights(p), p.requires_grad) for p in trained.parameters()]
    trainer.train_to_end(run_dir)
    sft.save_trained(
        trainer, start.processor, start.family, start.base_id, "lora" in start.policy.values(),
        run_dir,
    )  # fmt: skip
    if trainer.server is not None and distributed.is_main():
        trainer.server.close()
    lines = read_log(run_dir)
    # Steps that learn from earlier completions once more have no reward of their own.
    earned = [line["reward"] for line in lines if "reward" in line]
    return {
        "steps": trainer.state.global_step,
        "reward_first": earned[0] if earned else None,
        "reward_last": earned[-1] if earned else None,
        "wall_s": lines[-1]["elapsed_s"] if lines else 0.0,
        "trainable": sum(n for n, learns in parameters if learns),
        "trainable_sha": trainer.trainable_sha,
        "parameters": sum(n for n, _ in parameters),
    }


def _model(start: Start, settings: Settings, mixed: bool) -> tuple[Any, Any]:
    """(the model, with the adapter of the run that it starts from; peft's configuration of a new
    adapter, or None)."""
    import torch

    lora = "lora" in start.policy.values()
    model = families.load_model(
        start.family, start.base, dtype=torch.bfloat16 if mixed and lora else torch.float32
    )
    if start.run is not None:
        return attach(model, start.run, trainable=True), None
    if not lora:
        parts.freeze(start.family.PARTS, model, start.policy)
        return model, None
    shaped = SFTSettings(
        base=start.base_id, data="", benchmark="", prompt="", limits="", output_dir="",
        lora_rank=settings.lora_rank, lora_alpha=settings.lora_alpha, lora_dropout=0.0,
        lora_modules=settings.lora_modules, tower=settings.tower, projector=settings.projector,
        llm=settings.llm,
    )  # fmt: skip
    return model, sft.lora_config(shaped, start.family, model, 0)


def _server(start: Start, settings: Settings) -> Any:
    """The vLLM server that answers, or None: this process does."""
    if settings.vllm is None:
        return None
    from vlmface import families
    from vlmface.infer.remote import NEUTRAL_SAMPLING
    from vlmface.train.vllm_rollout import VLLMRolloutServer

    stops = start.family.stop_token_ids(start.processor)
    image = start.processor.tokenizer.convert_tokens_to_ids(start.processor.image_token)
    sampling = NEUTRAL_SAMPLING | {
        "temperature": settings.temperature, "top_p": settings.top_p,
        "max_tokens": settings.max_new_tokens, "stop_token_ids": list(stops),
        "logit_bias": {str(image): -100}, "skip_special_tokens": False,
    }  # fmt: skip
    flags = start.family.vllm_flags(
        start.processor, max_length=start.max_length, policy=start.policy
    )
    return VLLMRolloutServer(
        settings.vllm, start.prompt, Path(settings.output_dir) / "rollout",
        sampling | flags["extra_body"], padding=families.padding(start.family, start.processor),
    )  # fmt: skip


def write_manifest(
    start: Start, settings: Settings, aus: Sequence[int], data: Mapping[str, Any]
) -> None:
    """Write vlmface.json of a run whose weights and processor are saved; as after SFT."""
    shaped = SFTSettings(
        base=start.base_id, data=settings.data, benchmark=settings.benchmark,
        prompt=start.prompt.id, limits=settings.limits, output_dir=settings.output_dir,
        crop=start.crop, frames=start.frames, max_length=start.max_length,
        max_new_tokens=settings.max_new_tokens, seed=settings.seed, **start.policy,  # type: ignore[arg-type]
    )  # fmt: skip
    sft.write_manifest(
        "grpo", shaped, start.base, start.family, start.processor, [start.prompt], aus,
        {**data, "start": settings.start, "rewards": settings.rewards},
    )  # fmt: skip
