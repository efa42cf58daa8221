"""Supervised fine-tuning: TRL's SFTTrainer over rows of our own encoder, resumable at any moment.

`train` runs, or resumes, the training of a run folder; `write_manifest` describes its result.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmface import data, encode, manifest
from vlmface.adapter import attach, restore_weights
from vlmface.aus import evidence
from vlmface.data import crops, row_images, shows_faces
from vlmface.errors import UserError
from vlmface.families import modules
from vlmface.families.base import Family
from vlmface.prompts import Prompt, PromptLike
from vlmface.run_dir import read_log
from vlmface.train import trackers
from vlmface.train.augmentation import Augmentation, AugmentedRows
from vlmface.train.checks import check_supported
from vlmface.train.evidence_changes import Rewriter
from vlmface.train.settings import Lora, SFTSettings
from vlmface.train.validation import Validation
from vlmface.utils import distributed
from vlmface.utils.distributed import (
    PROCESS_TIMEOUT,
    check_sharding,
    disable_deepspeed_shm,
    is_main,
    sharding,
)

if TYPE_CHECKING:
    import datasets
    from transformers import TrainingArguments
    from trl import SFTConfig


# --- the same run ---------------------------------------------------------------------------------


def identity(
    settings: Any,
    loaded: datasets.Dataset,
    rows: datasets.Dataset,
    test_rows: datasets.Dataset,
    prompts: Sequence[PromptLike],
    base: str | Path,
) -> dict[str, Any]:
    """What must be the same when a run is resumed, besides its settings (`run_dir.start_run`).

    Args:
        settings: Of the recipe.
        loaded: The training data as `data.load` returns them.
        rows: The rows that are trained on.
        test_rows: The rows that the model is evaluated on.
        prompts: The prompts that are trained on.
        base: Folder of the base model.
    """
    texts = getattr(settings, "text_only_data", None)
    estimator = {"evidence": evidence.identity()} if evidence.uses_evidence(prompts) else {}
    return estimator | {
        "data": data.fingerprint(loaded),
        "rows": len(rows),
        "text_only_data": hashlib.sha256(Path(texts).read_bytes()).hexdigest()[:12]
        if texts
        else None,
        "test_data": data.fingerprint(test_rows, pictures=False),
        "prompts": [f"{prompt.id} {prompt.sha} {prompt.space.sha}" for prompt in prompts],
        "base_weights": manifest.weights_sha(base),
    }


# --- training -------------------------------------------------------------------------------------


def lora_config(lora: Lora, family: Family, model: Any, tokens: int) -> Any:
    """peft's LoraConfig.

    Args:
        lora: Which parts are trained under LoRA, and how.
        family: Of the model.
        model: To which the adapters are added.
        tokens: Size of the processor's vocabulary.

    Raises:
        UserError: The model lacks a module that is to have an adapter.
    """
    from peft import LoraConfig

    modules.check_lora_target_modules(family.MODULE_PATHS, model, lora.trainable, lora.modules)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        target_modules=family.lora_targets(lora.trainable, lora.modules),
        modules_to_save=modules.full_modules(family.MODULE_PATHS, lora.trainable, model) or None,
        # peft keeps the head tied to embeddings that are adapted this way.
        trainable_token_indices={"embed_tokens": list(range(tokens))}
        if lora.train_embeddings
        else None,
        task_type="CAUSAL_LM",
    )


def train(
    base: str | Path,
    processor: Any,
    family: Family,
    rows: datasets.Dataset,
    settings: SFTSettings,
    validation: Validation | None = None,
) -> dict[str, Any]:
    """Train on the rows of `encode_rows`; save the adapter (or whole model) and processor.

    Resumes from the last complete checkpoint in `settings.output_dir`, if there is one, exactly as
    if it had not been interrupted. log.jsonl gets a line per `logging_steps`, and one for each
    validation. If a best checkpoint is selected, its weights are saved.

    Args:
        base: Folder of the base model.
        processor: Of the base model.
        family: Of the base model.
        rows: The rows to train on.
        settings: Of the run.
        validation: What is measured meanwhile; its rows have other numbers in column `row`.

    Returns:
        {"steps", "loss_first", "loss_last", "wall_s", "samples_per_s", "trainable",
        "trainable_sha", "parameters"}; wall_s counts all sittings, `trainable` and `parameters` are
        numbers of weights, `trainable_sha` is over the names of the former. And what
        `Resumable.validation_results` returns.

    Raises:
        UserError: The settings cannot be trained with on this machine, or the loss is not finite.
    """
    from transformers import set_seed

    from vlmface.train.trainer import num_weights

    silence_renamings()
    if settings.save_steps % settings.logging_steps:
        raise UserError(
            f"save_steps {settings.save_steps} is not a multiple of logging_steps "
            f"{settings.logging_steps}: the log of a resumed run would differ"
        )
    run_dir = Path(settings.output_dir)
    arguments = _arguments(settings)
    model = _model(base, processor, family, settings, arguments)
    set_seed(settings.seed)
    trainer = _trainer(settings, arguments, model, processor, family, rows)
    trainer.validation = validation and _for_trainer(validation, trainer, processor)
    trained: Any = trainer.model
    trainable = sum(num_weights(p) for p in trained.parameters() if p.requires_grad)
    parameters = sum(num_weights(p) for p in trained.parameters())
    trainer.train_to_end(run_dir)
    save_trained(trainer, processor, family, settings.base_model, settings.uses_lora, run_dir)
    lines = read_log(run_dir)
    losses = [line["loss"] for line in lines if "loss" in line]
    seconds = lines[-1]["elapsed_s"] if lines else 0.0
    return {
        "steps": trainer.state.global_step,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "wall_s": seconds,
        "samples_per_s": len(rows) * trainer.state.epoch / seconds if seconds else None,
        "trainable": trainable,
        "trainable_sha": trainer.trainable_sha,
        "parameters": parameters,
        **trainer.validation_results(),
    }


def silence_renamings() -> None:
    """Hide warnings about names that libraries below ours still use, at every step."""
    # Renamed in transformers 5.23; TRL and peft still use the old name.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated")
    # Renamed in torch 2.14; DeepSpeed 0.19 still uses the old names.
    warnings.filterwarnings("ignore", message=".*torch.distributed.*_tensor` is deprecated")


def shared_arguments(settings: Any) -> dict[str, Any]:
    """The arguments of transformers' Trainer that supervised fine-tuning and GRPO have in common;
    `settings` are those of either."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(Path(settings.output_dir) / "checkpoints"),
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": distributed.mixed_precision(),
        "use_cpu": not gpu,
        "remove_unused_columns": False,
        "dataloader_pin_memory": gpu,
        "logging_steps": settings.logging_steps,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "logging_nan_inf_filter": False,
        "seed": settings.seed,
        **trackers.arguments(settings),
        "ddp_timeout": int(PROCESS_TIMEOUT.total_seconds()),
    }


def _arguments(settings: SFTSettings) -> SFTConfig:
    """TRL's arguments for a run. Raises UserError for what this machine cannot do."""
    import torch
    from trl import SFTConfig

    shared = shared_arguments(settings)
    check_supported(settings, torch.cuda.is_available())
    disable_deepspeed_shm()
    return SFTConfig(
        **shared,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        torch_compile=settings.compile,
        use_liger_kernel=settings.liger,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_num_workers=settings.dataloader_workers,
    )


def _model(
    base: str | Path,
    processor: Any,
    family: Family,
    settings: SFTSettings,
    arguments: TrainingArguments,
) -> tuple[Any, Any]:
    """(the base model, frozen where no LoRA is trained; peft's configuration, or None).

    `arguments` must exist before: they tell transformers to read the weights into shards under
    ZeRO-3.
    """
    import torch
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    half = distributed.mixed_precision() and settings.uses_lora
    model = family.load_model(
        base,
        dtype=torch.bfloat16 if half else torch.float32,
        device=arguments.device if settings.quantization else None,
        quantization=settings.quantization,
    )
    if is_deepspeed_zero3_enabled():
        # transformers 5.23 notes renamings that it did not make, and would undo them when it saves.
        model._weight_conversions = None
    if settings.init_from is not None:
        dropout = settings.lora_dropout
        return attach(model, settings.init_from, trainable=True, dropout=dropout), None
    if settings.uses_lora:
        return model, lora_config(settings.lora, family, model, len(processor.tokenizer))
    modules.freeze(family.MODULE_PATHS, model, settings.trainable)
    return model, None


def _trainer(
    settings: SFTSettings,
    arguments: SFTConfig,
    model: tuple[Any, Any],
    processor: Any,
    family: Family,
    rows: datasets.Dataset,
) -> Any:
    """The trainer of a `_model`, with the tower's features if they are cached. Raises UserError if
    it does not train with the processes and the sharding of the launch."""
    from vlmface.train.trainer import JsonlLogger, SupervisedTrainer, all_tower_features

    caching = (
        settings.cache_features and settings.vision_tower == "frozen" and arguments.world_size == 1
    )
    caching = caching and not sharding() and not settings.augments
    trainer = SupervisedTrainer(
        model=model[0],
        args=arguments,
        train_dataset=row_images.drop_image_columns(rows) if caching else rows,
        processing_class=processor,
        data_collator=encode.Collator(processor, family),
        peft_config=model[1],
        callbacks=[JsonlLogger(Path(settings.output_dir) / "log.jsonl")],
        family=family,
    )
    if settings.init_from is not None and settings.quantization is not None:
        restore_weights(trainer.model, settings.init_from)
    augmentation = Augmentation.from_settings(settings)
    texts = Rewriter.of_rows(rows, settings, processor, family)
    if augmentation is not None or texts is not None:
        trainer.train_dataset = AugmentedRows(trainer.train_dataset, augmentation, texts)
    if caching:
        with trainer.accelerator.autocast():
            trainer.features = all_tower_features(trainer.model, family, rows, processor)
    if trainer.args.world_size != int(os.environ.get("WORLD_SIZE", "1")):
        raise UserError(
            f"{os.environ.get('WORLD_SIZE', 1)} processes were started, but the trainer sees "
            f"{trainer.args.world_size}"
        )
    check_sharding(trainer)
    return trainer


def _for_trainer(validation: Validation, trainer: Any, processor: Any) -> Validation:
    """The validation as the trainer measures it: with the tower's features if those of the training
    rows are cached."""
    from vlmface.train.trainer import all_tower_features

    rows = validation.rows
    if rows is None or trainer.features is None:
        return validation
    with trainer.accelerator.autocast():
        trainer.features |= all_tower_features(trainer.model, trainer.family, rows, processor)
    return replace(validation, rows=row_images.drop_image_columns(rows))


def save_trained(
    trainer: Any, processor: Any, family: Family, base: str, lora: bool, run_dir: Path
) -> None:
    """Save the adapter (under `lora`) or the whole model of a trainer, and the processor. All
    processes must call it."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    final = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.whole_state()
    if is_main():
        if lora:
            # peft would store this machine's path of the base, write an empty model card, and
            # request from the hub whether the base's vocabulary has grown.
            final.peft_config["default"].base_model_name_or_path = base
            final.save_pretrained(
                run_dir,
                selected_adapters=["default"],
                save_embedding_layers=False,
                state_dict=state,
            )
            (run_dir / "README.md").unlink(missing_ok=True)
            processor.save_pretrained(run_dir)
        else:
            family.save_checkpoint(final, processor, run_dir, state)
    trainer.accelerator.wait_for_everyone()
    unset_hf_deepspeed_config()  # the next model is loaded whole


@dataclass(frozen=True)
class TrainedModel:
    """What the manifest contains about a model besides its files.

    Args:
        base: Folder of the base model.
        base_id: Its name in the settings.
        family: Of the base model.
        processor: As it was trained with.
        prompts: As it was trained with.
        trainable: {part: frozen | lora | full}.
        views: The views, as settings contain them.
        num_frames: Of a video, for each view.
        max_length: Tokens of images, prompt and answer.
        quantization: Of the language model under its LoRA.
        init_from: {"id", "sha"} of the adapter that training started from.
    """

    base: Path
    base_id: str
    family: Family
    processor: Any
    prompts: Sequence[Prompt]
    trainable: Mapping[str, str]
    views: Any
    num_frames: int
    max_length: int
    quantization: str | None = None
    init_from: Mapping[str, str] | None = None


def describe_start(adapter: str | Path | None) -> dict[str, str] | None:
    """The manifest's `init_from`: {"id", "sha"} of the adapter that training started from.

    Args:
        adapter: Its folder; None for a new one.
    """
    if adapter is None:
        return None
    return {"id": str(adapter), "sha": manifest.weights_sha(adapter)}


def write_manifest(
    recipe: str,
    settings: Any,
    model: TrainedModel,
    au_set: Sequence[int],
    data: Mapping[str, Any],
) -> None:
    """Write vlmface.json of a run whose weights and processor are saved, and its prompts. From here
    on it can be evaluated.

    Args:
        recipe: Name of the recipe.
        settings: Of the recipe: output_dir, dataset, limitations, seed and max_new_tokens are read.
        model: What was trained.
        au_set: Action units that its answers contain.
        data: What it was trained on; "n" is the number of rows.
    """
    run_dir, views = Path(settings.output_dir), crops.parse_views(model.views)
    manifest.save_prompts(model.prompts, run_dir)
    manifest.Manifest(
        recipe=recipe,
        family=model.family.NAME,
        base_model={"id": model.base_id, "sha": manifest.weights_sha(model.base)},
        adapter="lora" in model.trainable.values(),
        trainable=dict(model.trainable),
        quantization=model.quantization,
        init_from=None if model.init_from is None else dict(model.init_from),
        evidence=evidence.identity() if evidence.uses_evidence(model.prompts) else None,
        prompts=[manifest.prompt_entry(prompt) for prompt in model.prompts],
        au_set=list(au_set),
        image=model.family.describe_image(model.processor),
        processor=manifest.processor_shas(run_dir),
        weights=manifest.weights_shas(run_dir),
        views=crops.views_as_dicts(views),
        num_frames=model.num_frames,
        faces=crops.default_faces(views, shows_faces(settings.dataset)),
        max_length=model.max_length,
        generation={"max_new_tokens": settings.max_new_tokens},
        dataset=dict(data),
        seed=settings.seed,
        limitations=settings.limitations or manifest.default_limitations(settings.dataset),
    ).save(run_dir)
