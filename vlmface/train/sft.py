"""Supervised fine-tuning: TRL's SFTTrainer over rows of our own encoder, resumable at any moment.

`Settings` is what a recipe's YAML may say; `encode_rows` turns samples into token ids and counts
what it has to leave out; `train` runs, or goes on with, the training of a run folder.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlmface import data, encode, manifest
from vlmface.data import crops, row_images, shows_faces
from vlmface.errors import UserError
from vlmface.families import parts
from vlmface.prompts import Prompt, Question
from vlmface.run_dir import read_log
from vlmface.train.checks import check_supported
from vlmface.train.settings import VLMSettings
from vlmface.utils.distributed import (
    PROCESS_TIMEOUT,
    check_sharding,
    disable_deepspeed_shm,
    is_main,
    mixed_precision,
    sharding,
)

if TYPE_CHECKING:
    import datasets


# --- rows -----------------------------------------------------------------------------------------


def identity(
    settings: Any,
    loaded: datasets.Dataset,
    rows: datasets.Dataset,
    tested: datasets.Dataset,
    asked: Sequence[Question],
    base: str | Path,
) -> dict[str, Any]:
    """What must be the same when a run is resumed, besides its settings (`run_dir.start_run`).

    Args:
        settings: of the recipe.
        loaded: the training data as `data.load` gives them.
        rows: those that are trained on.
        tested: the rows that the model is evaluated on.
        asked: the prompts.
        base: folder of the base model.
    """
    texts = getattr(settings, "text_data", None)
    return {
        "data": data.fingerprint(loaded),
        "rows": len(rows),
        "text_data": hashlib.sha256(Path(texts).read_bytes()).hexdigest()[:12] if texts else None,
        "test_data": data.fingerprint(tested, pictures=False),
        "prompts": [f"{prompt.id} {prompt.sha} {prompt.space.sha}" for prompt in asked],
        "base_weights": manifest.weights_sha(base),
    }


# --- processes ------------------------------------------------------------------------------------


# --- training -------------------------------------------------------------------------------------


def lora_config(settings: VLMSettings, family: ModuleType, model: Any, tokens: int) -> Any:
    """peft's LoraConfig for the model; `tokens` is the size of the processor's vocabulary. Raises
    UserError for modules that the model lacks."""
    from peft import LoraConfig

    parts.check_lora_modules(family.PARTS, model, settings.policy, settings.lora_modules)
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.lora_variant == "rslora",
        use_dora=settings.lora_variant == "dora",
        target_modules=family.lora_targets(settings.policy, settings.lora_modules),
        modules_to_save=parts.full_modules(family.PARTS, settings.policy, model) or None,
        # peft keeps the head tied to embeddings that are adapted this way.
        trainable_token_indices={"embed_tokens": list(range(tokens))}
        if settings.train_embeddings
        else None,
        task_type="CAUSAL_LM",
    )


def train(
    base: str | Path,
    processor: Any,
    family: ModuleType,
    rows: datasets.Dataset,
    settings: VLMSettings,
) -> dict[str, Any]:
    """Train on the rows of `encode_rows`; save the adapter (or whole model) and processor.

    Goes on from the last complete checkpoint in `settings.output_dir`, if there is one, exactly as
    if it had not been interrupted. Returns {"steps", "loss_first", "loss_last", "wall_s",
    "samples_per_s", "trainable", "trainable_sha", "parameters"}; wall_s counts all sittings,
    `trainable` and `parameters` are numbers of weights, `trainable_sha` is over the names of the
    former. log.jsonl has a line per `logging_steps`. Raises UserError.
    """
    import torch
    from transformers import set_seed
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from trl import SFTConfig

    from vlmface.train.trainer import (
        JsonlLogger,
        SupervisedTrainer,
        all_tower_features,
        num_weights,
    )

    # Renamed in transformers 5.23; TRL and peft still use the old name.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated")
    # Renamed in torch 2.14; DeepSpeed 0.19 still uses the old names, at every step.
    warnings.filterwarnings("ignore", message=".*torch.distributed.*_tensor` is deprecated")
    run_dir = Path(settings.output_dir)
    if settings.save_steps % settings.logging_steps:
        raise UserError(
            f"save_steps {settings.save_steps} is no multiple of logging_steps "
            f"{settings.logging_steps}: the log of a resumed run would differ"
        )
    gpu, mixed = torch.cuda.is_available(), mixed_precision()
    check_supported(settings, gpu)
    disable_deepspeed_shm()
    arguments = SFTConfig(
        output_dir=str(run_dir / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        torch_compile=settings.compile,
        use_liger_kernel=settings.liger,
        bf16=mixed,
        use_cpu=not gpu,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=settings.dataloader_workers,
        dataloader_pin_memory=gpu,
        logging_steps=settings.logging_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_nan_inf_filter=False,
        seed=settings.seed,
        report_to=settings.report_to,
        ddp_timeout=int(PROCESS_TIMEOUT.total_seconds()),
    )
    # After the arguments: they tell transformers to read the weights into shards under ZeRO-3.
    model = family.load_model(
        base,
        dtype=torch.bfloat16 if mixed and settings.uses_lora else torch.float32,
        device=arguments.device if settings.quantize else None,
        quantize=settings.quantize,
    )
    if is_deepspeed_zero3_enabled():
        # transformers 5.23 notes renamings that it did not make, and would undo them when it saves.
        model._weight_conversions = None
    peft_config = None
    if not settings.uses_lora:
        parts.freeze(family.PARTS, model, settings.policy)
    else:
        peft_config = lora_config(settings, family, model, len(processor.tokenizer))
    set_seed(settings.seed)
    caching = settings.cache_features and settings.tower == "frozen" and arguments.world_size == 1
    caching = caching and not sharding()
    log = JsonlLogger(run_dir / "log.jsonl")
    trainer = SupervisedTrainer(
        model=model,
        args=arguments,
        train_dataset=row_images.drop_image_columns(rows) if caching else rows,
        processing_class=processor,
        data_collator=encode.Collator(processor, family),
        peft_config=peft_config,
        callbacks=[log],
        family=family,
    )
    if caching:
        with trainer.accelerator.autocast():
            trainer.features = all_tower_features(trainer.model, family, rows, processor)
    if trainer.args.world_size != int(os.environ.get("WORLD_SIZE", "1")):
        raise UserError(
            f"{os.environ.get('WORLD_SIZE', 1)} processes were started, but the trainer sees "
            f"{trainer.args.world_size}"
        )
    check_sharding(trainer)
    trained: Any = trainer.model
    trainable = sum(num_weights(p) for p in trained.parameters() if p.requires_grad)
    parameters = sum(num_weights(p) for p in trained.parameters())
    trainer.train_to_end(run_dir)
    save_trained(trainer, processor, family, settings.base, settings.uses_lora, run_dir)
    lines = read_log(run_dir)
    seconds = lines[-1]["elapsed_s"] if lines else 0.0
    return {
        "steps": trainer.state.global_step,
        "loss_first": lines[0]["loss"] if lines else None,
        "loss_last": lines[-1]["loss"] if lines else None,
        "wall_s": seconds,
        "samples_per_s": len(rows) * settings.epochs / seconds if seconds else None,
        "trainable": trainable,
        "trainable_sha": trainer.trainable_sha,
        "parameters": parameters,
    }


def save_trained(
    trainer: Any, processor: Any, family: ModuleType, base: str, lora: bool, run_dir: Path
) -> None:
    """Save the adapter (under `lora`) or the whole model of a trainer, and the processor. All
    processes must call it."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    final = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.whole_state()
    if is_main():
        if lora:
            # peft would note the folder that the base lies in on this machine, write an empty
            # model card, and ask the hub whether the base's vocabulary has grown.
            final.peft_config["default"].base_model_name_or_path = base
            final.save_pretrained(
                run_dir, selected_adapters=["default"], save_embedding_layers=False,
                state_dict=state,
            )  # fmt: skip
            (run_dir / "README.md").unlink(missing_ok=True)
            processor.save_pretrained(run_dir)
        else:
            family.save_checkpoint(final, processor, run_dir, state)
    trainer.accelerator.wait_for_everyone()
    unset_hf_deepspeed_config()  # the next model to be loaded shall be whole


def write_manifest(
    recipe: str,
    settings: VLMSettings,
    base: Path,
    family: ModuleType,
    processor: Any,
    asked: Sequence[Prompt],
    aus: Sequence[int],
    data: Mapping[str, Any],
) -> None:
    """Write vlmface.json of a run whose weights and processor are saved, and its prompts: from here
    on it can be evaluated. `aus` are the AUs that it names, `data` what it was trained on."""
    run_dir, views = Path(settings.output_dir), crops.parse_views(settings.crop)
    manifest.save_prompts(asked, run_dir)
    manifest.Manifest(
        recipe=recipe,
        family=family.NAME,
        base={"id": settings.base, "sha": manifest.weights_sha(base)},
        adapter=settings.uses_lora,
        trainable=settings.policy,
        quantize=settings.quantize,
        prompts=[manifest.prompt_entry(prompt) for prompt in asked],
        au_set=list(aus),
        image=family.describe_image(processor),
        processor=manifest.processor_shas(run_dir),
        weights=manifest.weights_shas(run_dir),
        crop=crops.views_as_dict(views),
        frames=settings.frames,
        faces=crops.default_faces(views, shows_faces(settings.data)),
        max_length=settings.max_length,
        generation={"max_new_tokens": settings.max_new_tokens},
        data=dict(data),
        seed=settings.seed,
        limits=settings.limits or manifest.default_limitations(settings.data),
    ).save(run_dir)
