"""Supervised fine-tuning: TRL's SFTTrainer over rows of our own encoder, resumable at any moment.

`Settings` is what a recipe's YAML may say; `encode_rows` turns samples into token ids and counts
what it has to leave out; `train` runs, or goes on with, the training of a run folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import resource
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from vlmface import data, encode, manifest
from vlmface.data import crops, row_images, shows_faces
from vlmface.data.rows import pictures
from vlmface.errors import UserError
from vlmface.families import parts
from vlmface.prompts import Prompt, Question
from vlmface.schema import FaceSample
from vlmface.train import checks
from vlmface.utils.distributed import is_main, world_size
from vlmface.utils.files import atomic_write
from vlmface.utils.ranges import (  # fmt: skip
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

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
Policy = Literal["frozen", "lora", "full"]
# How long processes wait for one that renders, cuts out or answers; the default is 10 minutes.
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class Common(Checked):
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
class Settings(Common):
    """One run of `recipes/sft_cot.py`."""

    text_data: str | None = None


@dataclass(frozen=True)
class AttributeSettings(Settings):
    """One run of `recipes/sft_attributes.py`."""

    balance: Literal["none", "tasks", "labels"] = "none"

    def unused(self) -> Iterator[Unused]:
        yield from super().unused()
        if self.balance == "tasks" and len(self.prompts) == 1:
            yield Unused("balance", "there is one prompt", ("prompt",))


# --- rows -----------------------------------------------------------------------------------------


def encode_rows(
    rows: datasets.Dataset,
    processor: Any,
    family: ModuleType,
    prompt: Prompt,
    *,
    max_length: int,
    seed: int,
) -> tuple[datasets.Dataset, dict[str, int]]:
    """FaceSample rows -> (rows of `image`, perhaps `shown`, `input_ids`, `labels`, `length`; left
    out by reason).

    A sample without a rationale gets one from the rule writer, from its annotated AUs and label.
    Left out are rows without a label of the prompt's space ("no_label"), without the AU annotation
    that a rationale is written from ("no_aus"), rationales that do not fit the prompt's form
    ("unreadable_rationale"), and what the encoder refuses ("too_long", ...).
    The images stay compressed. Rows that `crop_cache.shown` made keep all that is shown of them; of
    another clip it is the middle frame. Raises UserError if nothing is left.
    """
    from datasets import Dataset, concatenate_datasets
    from tqdm import tqdm

    messages = prompt.messages()
    kept: list[int] = []
    encoded: defaultdict[str, list[Any]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    images = stored_columns(rows)
    plain = rows.remove_columns(["image", "frames"])
    for index, row in enumerate(tqdm(plain, "encoding", unit="face", disable=not is_main())):
        sample = FaceSample.from_row(row)
        try:
            target = target_of(sample, prompt, seed)
            size = row_images.image_sizes(images[index], family)
            text = encode.encode_text(
                processor, family, messages, target, max_length=max_length, image_size=size
            )
        except encode.RefusedError as error:
            left_out[error.reason] += 1
            continue
        kept.append(index)
        del text["attention_mask"]  # the collator's own: it pads
        for name, values in text.items():
            encoded[name].append(values)
        encoded["length"].append(len(text["input_ids"]))
    if not kept:
        raise UserError(
            f"none of the {len(rows)} rows can be trained on ({dict(left_out)}): check the data "
            "set's labels against the prompt's label space, and max_length"
        )
    if left_out:
        images = images.select(kept)
    columns = Dataset.from_dict({**encoded, "row": kept})
    return concatenate_datasets([images, columns], axis=1), dict(left_out)


def stored_columns(rows: datasets.Dataset) -> datasets.Dataset:
    """The columns of `rows` that say what a model is shown of each, as they are stored."""
    found = pictures(rows)
    return found.select_columns(
        [name for name in row_images.IMAGE_COLUMNS if name in found.column_names]
    )


def target_of(sample: FaceSample, prompt: Prompt, seed: int) -> str:
    """The text to learn, written from the sample's labels where it has no rationale of its own.
    Raises RefusedError if it has no label or nothing to write from."""
    from vlmface.rationale import rules

    if not prompt.truth(sample):
        raise encode.RefusedError("no_label", f"{sample.id} has no label of {prompt.space.id}")
    if prompt.reasons and sample.rationale is None:
        if sample.aus is None or sample.emotion is None:
            raise encode.RefusedError("no_aus", f"{sample.id} has no annotation to write from")
        own = rules.seed_of(seed, sample.id)
        body = rules.write(sample.intensities(), sample.emotion, seed=own, body_only=True)
        sample.rationale, sample.rationale_source, sample.saw_label = body, "rules", True
    try:
        return prompt.target(sample)
    except UserError as error:
        raise encode.RefusedError("unreadable_rationale", str(error)) from error


def identity(
    settings: Any,
    loaded: datasets.Dataset,
    rows: datasets.Dataset,
    tested: datasets.Dataset,
    asked: Sequence[Question],
    base: str | Path,
) -> dict[str, Any]:
    """What must be the same when a run is resumed, besides its settings (`run_dir.begin`).

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


def check_policy(settings: Common, family: ModuleType) -> None:
    """Refuse what cannot be trained before anything is rendered or evaluated. Raises UserError."""
    if settings.uses_lora:
        family.lora_targets(settings.policy, settings.lora_modules)
        parts.full_modules(family.PARTS, settings.policy)


def check_processes(asked: int | None) -> None:
    """Refuse to train with another number of processes than was asked for.

    `accelerate launch --cpu --num_processes 2` starts one process and says nothing; the batch would
    be half of what the settings promise. Raises UserError.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if asked is not None and world != asked:
        raise UserError(
            f"{world} process(es) run, but num_processes is {asked}: start with `accelerate launch "
            f"--config_file recipes/accelerate/ddp.yaml --num_processes {asked}`, or set "
            f"--num_processes {world} and mind that the batch is then that much smaller"
        )
    # accelerate's single-process launcher sets MASTER_ADDR only if it was asked for several.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate was asked for several processes but started one: on a CPU, launch with "
            "`--config_file recipes/accelerate/ddp.yaml`"
        )


def use_all_cores() -> None:
    """Share the CPU's cores among the processes: `accelerate launch` leaves each of them one."""
    import joblib
    import torch

    if not torch.cuda.is_available() and "ACCELERATE_MIXED_PRECISION" in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, joblib.cpu_count() // processes))


def sharding() -> str | None:
    """What `accelerate launch` was told to divide the model with: "DeepSpeed", "FSDP" or None."""
    for name in ("DeepSpeed", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            return name
    return None


def check_sharding(trainer: Any) -> None:
    """Refuse to train without the sharding that was asked for: accelerate falls back to plain data
    parallelism without a word, for FSDP on every CPU, for DeepSpeed if ACCELERATE_USE_CPU is set.
    """
    found = {"DeepSpeed": trainer.is_deepspeed_enabled, "FSDP": trainer.is_fsdp_enabled}
    if (asked := sharding()) and not found[asked]:
        raise UserError(
            f"accelerate was asked for {asked}, but would train without it on this machine: "
            "FSDP needs GPUs (on a CPU take ddp.yaml or zero3.yaml), DeepSpeed on a CPU needs "
            "ACCELERATE_USE_CPU unset"
        )


def check_supported(settings: Common, gpu: bool) -> None:
    """Refuse settings that the launch, or what lies beneath, cannot do. Raises UserError."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") if sharding() == "DeepSpeed" else None
    if settings.train_embeddings and settings.uses_lora:
        if stage == "3" and not gpu:
            raise UserError(
                "train_embeddings under ZeRO-3 needs GPUs: peft gathers the rows of the embeddings "
                "on one. Set train_embeddings: false, or use zero2.yaml"
            )
        if sharding() == "FSDP":
            raise UserError(
                "train_embeddings does not work under FSDP, which cannot divide embeddings that "
                "peft has tied to the head: set train_embeddings: false, or use zero2.yaml"
            )
    if settings.liger and not gpu:
        raise UserError("liger is true, but its kernels run on GPUs only: set liger: false")
    if settings.liger and importlib.util.find_spec("liger_kernel") is None:
        raise UserError("liger is true, but its kernels are missing: pip install 'vlmface[liger]'")
    if settings.quantize is None:
        return
    if settings.llm != "lora":
        raise UserError(
            f"quantize is {settings.quantize}, but llm is {settings.llm}: weights of 4 bits are "
            "constants, so set llm: lora, or quantize: null"
        )
    if stage == "3" or sharding() == "FSDP":
        raise UserError(
            f"quantize is {settings.quantize}, but the launch asks for "
            f"{'ZeRO-3' if stage else 'FSDP'}, which would cut the packed weights into pieces: use "
            "ddp.yaml or zero2.yaml, where every process holds the small base whole"
        )


def check_machine(settings: Common) -> None:
    """Refuse what the launch, this machine or its packages cannot do, before a run is begun. Raises
    UserError."""
    import torch

    check_supported(settings, torch.cuda.is_available())
    checks.machine(settings)


def spare_the_compiler() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce: before the first process group.

    On a CPU it would do so at the first start, for minutes and with a compiler that not every
    machine has; gloo sums the same numbers.
    """
    import torch

    if sharding() == "DeepSpeed" and not torch.cuda.is_available():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def device() -> Any:
    """The accelerator of this process, as the trainers choose it, or the CPU: a torch.device."""
    import torch
    from accelerate import PartialState

    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world_size() == 1:
        return torch.device("cuda")
    wait_for_everyone()  # makes the process group
    return PartialState().device


def wait_for_everyone() -> None:
    """A barrier between the processes of a distributed run; nothing in a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate import PartialState

        spare_the_compiler()
        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE).wait_for_everyone()


def on_main(work: Callable[[], T]) -> T:
    """The result of `work`, which only the main process calls, in all processes.

    A UserError of it is raised in all of them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    result: list[Any] = [None, None]
    if is_main():
        try:
            result[0] = work()
        except UserError as error:
            result[1] = str(error)
    wait_for_everyone()
    broadcast_object_list(result)
    if result[1] is not None:
        raise UserError(result[1])
    return result[0]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others do: they find the files that it made."""
    if not is_main():
        wait_for_everyone()
    yield
    if is_main():
        wait_for_everyone()


def peak_rss_gib() -> float:
    """Most memory this process ever held, GiB."""
    # Linux counts the parent's memory at the start in ru_maxrss, but not in its own VmHWM.
    if (status := Path("/proc/self/status")).exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


# --- training -------------------------------------------------------------------------------------


def lora_config(settings: Common, family: ModuleType, model: Any, tokens: int) -> Any:
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
    settings: Common,
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

    from vlmface.train.trainer import JsonLines, SupervisedTrainer, all_tower_features, count

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
    spare_the_compiler()
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
        ddp_timeout=int(PATIENCE.total_seconds()),
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
    log = JsonLines(run_dir / "log.jsonl")
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
    trainable = sum(count(p) for p in trained.parameters() if p.requires_grad)
    parameters = sum(count(p) for p in trained.parameters())
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


def mixed_precision() -> bool:
    """Whether this machine trains in bfloat16, the trained weights being float32: GPUs do. CPUs
    train in float32, also where a launch configuration that was written for GPUs says bf16."""
    import torch

    gpu = torch.cuda.is_available()
    if not gpu and "ACCELERATE_MIXED_PRECISION" in os.environ:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    return gpu


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


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl. A last line cut off by a kill is left out."""
    path = run_dir / "log.jsonl"
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def keep_log(run_dir: Path, last_step: int) -> float:
    """Drop the log's lines after `last_step`, which will be written again; returns the seconds of
    training up to there."""
    lines = [line for line in read_log(run_dir) if line["step"] <= last_step]
    atomic_write(run_dir / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return float(lines[-1]["elapsed_s"]) if lines else 0.0


def write_manifest(
    recipe: str,
    settings: Common,
    base: Path,
    family: ModuleType,
    processor: Any,
    asked: Sequence[Prompt],
    aus: Sequence[int],
    data: Mapping[str, Any],
) -> None:
    """Write vlmface.json of a run whose weights and processor are saved, and its prompts: from here
    on it can be evaluated. `aus` are the AUs that it names, `data` what it was trained on."""
    run_dir, views = Path(settings.output_dir), crops.parse(settings.crop)
    manifest.save_prompts(asked, run_dir)
    manifest.Manifest(
        recipe=recipe,
        family=family.NAME,
        base={"id": settings.base, "sha": manifest.weights_sha(base)},
        adapter=settings.uses_lora,
        policy=settings.policy,
        quantize=settings.quantize,
        prompts=[manifest.describe(prompt) for prompt in asked],
        au_set=list(aus),
        image=family.describe_image(processor),
        processor=manifest.processor_shas(run_dir),
        weights=manifest.weights_shas(run_dir),
        crop=crops.as_dict(views),
        frames=settings.frames,
        faces=crops.default_faces(views, shows_faces(settings.data)),
        max_length=settings.max_length,
        generation={"max_new_tokens": settings.max_new_tokens},
        data=dict(data),
        seed=settings.seed,
        limits=settings.limits or manifest.neutral_limits(settings.data),
    ).save(run_dir)
