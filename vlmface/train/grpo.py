"""GRPO with verifiable rewards, from a run whose model gives valid answers, on our own rollouts.

`Settings` is what the recipe's YAML may contain; `Start` is the model that training starts from;
`train` runs, or resumes, the training of a run folder.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vlmface import encode, families, manifest, prompts
from vlmface.adapter import attach
from vlmface.answers import Answer
from vlmface.data import row_images
from vlmface.errors import SkippedSampleError, UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.run_dir import read_log
from vlmface.schema import FaceSample
from vlmface.train import checks, rewards, sft, validation
from vlmface.train.rows import image_columns
from vlmface.train.settings import (
    BalanceSettings,
    DatasetSettings,
    EvaluationSettings,
    OptimizerSettings,
    Policy,
    PolicySettings,
    RunSettings,
    ValidationSettings,
)
from vlmface.train.validation import Validation
from vlmface.utils import distributed
from vlmface.utils.ranges import (
    Count,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Unused,
)

if TYPE_CHECKING:
    import datasets
    from trl import GRPOConfig


@dataclass(frozen=True, kw_only=True)
class Settings(
    RunSettings,
    EvaluationSettings,
    ValidationSettings,
    OptimizerSettings,
    PolicySettings,
    BalanceSettings,
    DatasetSettings,
):
    """One run of recipes/grpo.py.

    Args:
        init_from: a run folder, or a base model with a prompt
        prompt: a prompt of the run; null: its first
        rewards: {name: weight} or {name: {weight: 1, option: ...}}, see docs/rewards.md
        num_generations: completions of one row, which are compared with each other
        temperature: of the completions
        top_p: of the completions
        max_new_tokens: tokens of a completion
        max_length: tokens of images, prompt and completion; null: as in the run
        max_logprob_drift: stop if trainer and rollout differ more in log-probability, per token
        vllm_url: URL of a vLLM server that generates instead of this process; null: none
        cache_features: frozen tower: compute its output once per image
        beta: weight of the KL divergence from the model that training starts from
        loss_type: as in TRL
        scale_rewards: what advantages are divided by
        num_iterations: updates from one set of completions
        epsilon_low: lower bound of the probability ratio, with several iterations
        epsilon_high: upper bound of the probability ratio, with several iterations
        max_steps: optimizer steps of the run
        completions_every: steps between two pages of completions and rewards, samples.html
    """

    init_from: str
    prompt: str | None = None
    rewards: dict[str, Any]
    projector: Policy = "frozen"
    num_generations: Annotated[int, Range(min=2)] = 8
    temperature: Positive = 1.0
    top_p: PositiveShare = 1.0
    max_new_tokens: Count = 256
    max_length: Count | None = None
    max_logprob_drift: Positive = 0.05
    vllm_url: str | None = None
    cache_features: bool = True
    beta: NotNegative = 0.0
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    num_iterations: Count = 1
    epsilon_low: Annotated[float, Range(above=0, below=1)] = 0.2
    epsilon_high: Positive = 0.2
    batch_size: Count = 4
    max_steps: Count = 100
    learning_rate: Positive = 1e-5
    lr_scheduler: Literal["cosine", "linear", "constant"] = "constant"
    logging_steps: Count = 1
    save_steps: Count = 20
    completions_every: Count = 20

    def check(self) -> None:
        """Refuse settings that cannot work together. Raises UserError."""
        checks.dataset_options(self)
        checks.run_length(self, self.max_steps)
        validation.check(self)
        rewards.parse(self.rewards)
        self.check_trainable()
        if self.top_p < 1 and self.num_iterations > 1:
            raise UserError(
                f"top_p {self.top_p} with num_iterations {self.num_iterations}: later updates "
                "compare with the whole distribution, not with what top_p left of it. Set one of "
                "them to 1"
            )
        if self.max_length is not None and self.max_new_tokens >= self.max_length:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}, but max_length is {self.max_length}: no "
                "room is left for a prompt"
            )
        checks.saved_when_logged(self)
        if self.save_steps % self.num_iterations:
            raise UserError(
                f"save_steps is {self.save_steps}, but must be a multiple of num_iterations "
                f"({self.num_iterations}): a resumed run would differ"
            )

    def unused(self) -> Iterator[Unused]:
        """The fields that have no effect beside the others."""
        yield from checks.unused_roots(self)
        yield from checks.unused_warmup(self)
        yield from self.unused_validation()
        yield from self.unused_lora()
        yield from self.unused_balance()
        if self.num_iterations == 1:
            why = "with num_iterations 1 the policy that is trained is the one that answered"
            yield Unused("epsilon_low", why, ("num_iterations",))
            yield Unused("epsilon_high", why, ("num_iterations",))


# --- where it starts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The model that GRPO begins with. `run`: the folder of a run whose adapter is trained further,
    or None if new adapters (or whole parts) are trained over `base`."""

    base: Path
    base_id: str
    family: Family
    processor: Any
    prompt: prompts.Prompt
    trainable: dict[str, str]
    max_length: int
    views: list[dict[str, Any]] | None
    num_frames: int
    run: Path | None


def start_of(settings: Settings) -> Start:
    """Read the model that a run starts from: that of a run folder, or a base model with a prompt.

    Raises:
        UserError: It is neither, or it was not trained with the prompt.
    """
    if not manifest.is_run(settings.init_from):
        return _start_of_base(settings)
    trained, trained_prompts = manifest.load(settings.init_from)
    run = Path(settings.init_from)
    manifest.check_weights(trained, run)
    by_id = {prompt.id: prompt for prompt in trained_prompts}
    if settings.prompt is not None and settings.prompt not in by_id:
        raise UserError(
            f"{run} was trained with {', '.join(by_id)}, not with prompt {settings.prompt}"
        )
    base = manifest.resolve_base(trained, run) if trained.adapter else run
    family = families.of_run(trained.family, base)
    return Start(
        base=base,
        base_id=trained.base_model["id"] if trained.adapter else settings.init_from,
        family=family,
        processor=families.load_processor(family, run),
        prompt=by_id[settings.prompt] if settings.prompt else trained_prompts[0],
        trainable=trained.trainable if trained.adapter else settings.trainable,
        max_length=settings.max_length or trained.max_length,
        views=trained.views,
        num_frames=trained.num_frames,
        run=run if trained.adapter else None,
    )


def _start_of_base(settings: Settings) -> Start:
    """The start of a run from a base model. Raises UserError without a prompt."""
    if settings.prompt is None:
        raise UserError(
            f"{settings.init_from} is not a vlmface run: give the folder of one "
            "(recipes/sft_cot.py makes it), or say which prompt the model is asked"
        )
    base = manifest.resolve(settings.init_from)
    family = families.get(families.family_of(base))
    return Start(
        base=base,
        base_id=settings.init_from,
        family=family,
        processor=family.load_processor(base),
        prompt=prompts.load(settings.prompt),
        trainable=settings.trainable,
        max_length=settings.max_length or 1024,
        views=None,
        num_frames=1,
        run=None,
    )


def identity(
    settings: Settings,
    loaded: datasets.Dataset,
    rows: datasets.Dataset,
    test_rows: datasets.Dataset,
    start: Start,
) -> dict[str, Any]:
    """`sft.identity` of a run, the adapter that it trains further, and the user's own rewards."""
    adapter = None if start.run is None else manifest.weights_sha(start.run)
    identity = sft.identity(settings, loaded, rows, test_rows, [start.prompt], start.base)
    identity |= {"start_weights": adapter}
    if code := rewards.code_shas(rewards.parse(settings.rewards)):
        identity["rewards"] = code
    return identity


# --- rows -----------------------------------------------------------------------------------------


def encode_prompts(
    rows: datasets.Dataset,
    start: Start,
    used: Sequence[rewards.WeightedReward],
    max_new_tokens: int,
) -> tuple[datasets.Dataset, list[FaceSample], dict[str, int]]:
    """FaceSample rows -> (rows of `image`, perhaps `images`, `input_ids`, ... as the encoder asks
    about them; their samples; left out by reason).

    Left out are faces that no reward gives a signal for ("no_truth"), and prompts that leave no
    room for an answer within max_length ("too_long"). Raises UserError if nothing is left.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    messages, space = start.prompt.messages(), start.prompt.space
    empty = Answer(None, (), "none", "")
    compared = [weighted for weighted in used if weighted.reward.needs_annotation]
    images = image_columns(rows)
    row_indices: list[int] = []
    samples: list[FaceSample] = []
    encoded: defaultdict[str, list[Any]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    plain = rows.remove_columns(["image", "frames"])
    for index, row in enumerate(
        tqdm(plain, "encoding", unit="face", disable=not distributed.is_main())
    ):
        sample = FaceSample.from_row(row)
        if compared and all(reward(empty, sample, space) is None for reward in compared):
            skipped["no_truth"] += 1
            continue
        size = row_images.image_sizes(images[index], needed=start.family.NEEDS_SIZE)
        try:
            text = encode.encode_text(
                start.processor,
                start.family,
                messages,
                None,
                max_length=start.max_length - max_new_tokens,
                image_size=size,
            )
        except SkippedSampleError as error:
            skipped[error.reason] += 1
            continue
        row_indices.append(index)
        samples.append(sample)
        del text["attention_mask"]  # the collator's own: it pads
        for name, values in text.items():
            encoded[name].append(values)
    if not row_indices:
        raise UserError(
            f"none of the {len(rows)} faces can be trained on ({dict(skipped)}): check the data "
            "set's annotation against the rewards, and max_length"
        )
    columns = Dataset.from_dict({**encoded, "row": list(range(len(row_indices)))})
    return (
        concatenate_datasets([images.select(row_indices), columns], axis=1),
        samples,
        dict(skipped),
    )


# --- training -------------------------------------------------------------------------------------


def check_start(settings: Settings, start: Start) -> None:
    """Refuse what cannot be trained from there: a policy or a LoRA of its own for a run that trains
    on the adapter of another, layers that the model lacks, and a server that would not answer with
    what is trained. Raises UserError."""
    if start.run is not None:
        _check_adapter(settings, start)
    elif "lora" in start.trainable.values():
        start.family.lora_targets(start.trainable, settings.lora_target_modules)
        modules.full_modules(start.family.MODULE_PATHS, start.trainable)
    trained = {part: mode for part, mode in start.trainable.items() if mode != "frozen"}
    if settings.vllm_url is not None and trained != {"language_model": "lora"}:
        raise UserError(
            "vllm_url: a server is given the LoRA of the language model and nothing else, but this "
            f"run trains {', '.join(f'{part}: {mode}' for part, mode in trained.items())}: set "
            "vllm_url: null, or start from a run with language_model: lora and the other parts "
            "frozen"
        )


def _check_adapter(settings: Settings, start: Start) -> None:
    """Refuse settings of an adapter where that of `start.run` is trained further."""
    of_adapter = {
        **start.trainable,
        "lora_rank": None,
        "lora_alpha": None,
        "lora_target_modules": None,
    }
    for name, adapter_value in of_adapter.items():
        field = Settings.__dataclass_fields__[name]
        default = field.default if field.default is not MISSING else ["all"]
        value = getattr(settings, name)
        if value not in (default, adapter_value):
            raise UserError(
                f"{name} is {value!r}, but has no effect: the adapter of {start.run} is trained "
                "further as it is. Leave it out"
            )


def train(
    start: Start,
    rows: datasets.Dataset,
    samples: Sequence[FaceSample],
    used: Sequence[rewards.WeightedReward],
    settings: Settings,
    measured: Validation | None = None,
) -> dict[str, Any]:
    """Train on the rows of `encode_prompts`; save the adapter (or whole model) and processor.

    Resumes from the last complete checkpoint in `settings.output_dir`, if there is one, exactly as
    if it had not been interrupted. log.jsonl gets a line per `logging_steps`, samples.html the
    completions of the last batch that was logged.

    Args:
        start: The model that training starts from.
        rows: Encoded prompts.
        samples: Their labels.
        used: The rewards.
        settings: Of the run.
        measured: What is measured meanwhile.

    Returns:
        What `sft.train` does, with the mean reward first and last instead of the loss.

    Raises:
        UserError: Training cannot start or continue.
    """
    from transformers import set_seed

    from vlmface.train.trainer import num_weights

    sft.silence_renamings()
    run_dir = Path(settings.output_dir)
    mixed = distributed.mixed_precision()
    distributed.disable_deepspeed_shm()
    arguments = _arguments(settings, used)
    model = _model(start, settings, mixed)
    set_seed(settings.seed)
    scorer = rewards.RewardScorer(used, samples, start.prompt, settings.label_weight_power)
    trainer = _trainer(settings, arguments, model, start, rows, scorer)
    trainer.validation = measured
    distributed.check_sharding(trainer)
    trained: Any = trainer.model
    parameters = [(num_weights(p), p.requires_grad) for p in trained.parameters()]
    trainer.train_to_end(run_dir)
    uses_lora = "lora" in start.trainable.values()
    sft.save_trained(trainer, start.processor, start.family, start.base_id, uses_lora, run_dir)
    if trainer.server is not None and distributed.is_main():
        trainer.server.close()
    return _results(trainer, parameters)


def _results(trainer: Any, parameters: Sequence[tuple[int, bool]]) -> dict[str, Any]:
    """What `train` returns, given (number of weights, whether trained) of each parameter."""
    lines = read_log(Path(trainer.args.output_dir))
    # Further updates from the same completions have no reward of their own.
    earned = [line["reward"] for line in lines if "reward" in line]
    return {
        "steps": trainer.state.global_step,
        "reward_first": earned[0] if earned else None,
        "reward_last": earned[-1] if earned else None,
        "wall_s": lines[-1]["elapsed_s"] if lines else 0.0,
        "trainable": sum(n for n, learns in parameters if learns),
        "trainable_sha": trainer.trainable_sha,
        "parameters": sum(n for n, _ in parameters),
        **trainer.validation_results(),
    }


def _arguments(settings: Settings, used: Sequence[rewards.WeightedReward]) -> GRPOConfig:
    """TRL's arguments for a run."""
    from trl import GRPOConfig

    return GRPOConfig(
        **sft.shared_arguments(settings),
        max_steps=settings.max_steps,
        num_generations=settings.num_generations,
        per_device_train_batch_size=settings.batch_size * settings.num_generations,
        steps_per_generation=settings.gradient_accumulation,
        num_iterations=settings.num_iterations,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        beta=settings.beta,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        epsilon=settings.epsilon_low,
        epsilon_high=settings.epsilon_high,
        reward_weights=[reward.weight for reward in used],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        disable_dropout=True,  # the policy that answers is the one that is trained
    )


def _trainer(
    settings: Settings,
    arguments: GRPOConfig,
    model: tuple[Any, Any],
    start: Start,
    rows: datasets.Dataset,
    scorer: rewards.RewardScorer,
) -> Any:
    """The trainer of a `_model`, with the tower's features if they are cached."""
    from datasets import Dataset

    from vlmface.train.completion_log import CompletionLogger
    from vlmface.train.group_trainer import GroupTrainer
    from vlmface.train.trainer import JsonlLogger, all_tower_features

    run_dir = Path(settings.output_dir)
    frozen_tower = start.trainable["vision_tower"] == "frozen" and not distributed.sharding()
    # The conversation is read from `rows`; TRL needs some prompt for each.
    conversation = [{"role": "user", "content": start.prompt.id}]
    trainer = GroupTrainer(
        model=model[0],
        args=arguments,
        reward_funcs=scorer.functions(),
        train_dataset=Dataset.from_dict(
            {"prompt": [conversation] * len(rows), "index": list(range(len(rows)))}
        ),
        processing_class=start.processor,
        peft_config=model[1],
        callbacks=[JsonlLogger(run_dir / "log.jsonl", keys=None)],
        family=start.family,
        faces=rows,
        scorer=scorer,
        stops=start.family.stop_token_ids(start.processor),
        top_p=settings.top_p,
        max_logprob_drift=settings.max_logprob_drift,
        keep_features=frozen_tower,
        server=_server(start, settings),
    )
    trainer.add_callback(CompletionLogger(run_dir, trainer, settings.completions_every))
    if frozen_tower and settings.cache_features and arguments.world_size == 1:
        with trainer.accelerator.autocast():
            trainer.features = all_tower_features(
                trainer.model, start.family, rows, start.processor
            )
    return trainer


def _model(start: Start, settings: Settings, mixed: bool) -> tuple[Any, Any]:
    """(the model, with the adapter of the run that it starts from; peft's configuration of a new
    adapter, or None)."""
    import torch

    lora = "lora" in start.trainable.values()
    model = families.load_model(
        start.family, start.base, dtype=torch.bfloat16 if mixed and lora else torch.float32
    )
    if start.run is not None:
        return attach(model, start.run, trainable=True), None
    if not lora:
        modules.freeze(start.family.MODULE_PATHS, model, start.trainable)
        return model, None
    return model, sft.lora_config(settings.lora, start.family, model, 0)


def _server(start: Start, settings: Settings) -> Any:
    """The vLLM server that answers, or None: this process does."""
    if settings.vllm_url is None:
        return None
    from vlmface.infer.remote import NEUTRAL_SAMPLING
    from vlmface.train.vllm_rollout import VLLMRolloutServer

    stops = start.family.stop_token_ids(start.processor)
    image = start.processor.tokenizer.convert_tokens_to_ids(start.processor.image_token)
    sampling = NEUTRAL_SAMPLING | {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": list(stops),
        "logit_bias": {str(image): -100},
        "skip_special_tokens": False,
    }
    flags = start.family.vllm_flags(
        start.processor, max_length=start.max_length, trainable=start.trainable
    )
    return VLLMRolloutServer(
        settings.vllm_url,
        start.prompt,
        Path(settings.output_dir) / "rollout",
        sampling | flags["extra_body"],
        padding=start.family.padding(start.processor),
    )


def write_manifest(
    start: Start, settings: Settings, au_set: Sequence[int], data: Mapping[str, Any]
) -> None:
    """Write vlmface.json of a run whose weights and processor are saved, as after SFT.

    Args:
        start: The model that training started from.
        settings: Of the run.
        au_set: Action units that its answers contain.
        data: What it was trained on.
    """
    model = sft.TrainedModel(
        base=start.base,
        base_id=start.base_id,
        family=start.family,
        processor=start.processor,
        prompts=[start.prompt],
        trainable=start.trainable,
        views=start.views,
        num_frames=start.num_frames,
        max_length=start.max_length,
        init_from=sft.describe_start(start.run),
    )
    training = {**data, "rewards": settings.rewards}
    sft.write_manifest("grpo", settings, model, au_set, training)
