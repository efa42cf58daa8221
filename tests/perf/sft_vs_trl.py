"""Fine-tuning by vlmface against TRL's stock SFTTrainer: samples a second and peak memory.

python tests/perf/sft_vs_trl.py [--json FILE] [--repeats 5] [--faces 16] [--epochs 2]

Both sides train the same randomly initialised LLaVA (half of a CLIP ViT-B/16, half of a
SmolLM2-135M with its vocabulary of 49,152: 127 M parameters) with the same LoRA, optimiser, rows,
seed and number of threads, in float32 on the CPU. The answers are rationales of vlmface's rule
writer, as long as ExpLLM's published ones (100 to 140 words) for every other face, as short as they
come for the rest. Each run is a process of its own, sides in turn; the clock runs over `train()`,
and over vlmface's pass through the frozen tower. Before that, both state their loss on the same
batch and the number of supervised tokens: these have to agree.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

BATCH = 8
LORA = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "task_type": "CAUSAL_LM",
    "target_modules": r".*language_model.*\.(?:q|k|v|o|gate|up|down)_proj",
}
OURS, THEIRS = "vlmface", "trl"


def build(folder: Path, small: bool) -> None:
    """The checkpoint: real processor, tokenizer trained in code, random weights."""
    import torch
    from helpers.checkpoints import clip_vision
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from vlmface import families, prompts
    from vlmface.families.tiny import build_tokenizer
    from vlmface.families.tiny.llava import TinyLlava

    texts = [text for _, text in answers(64)] + [str(prompts.load("face_cot").messages())] * 20
    tokenizer = build_tokenizer(texts, vocab_size=4096, max_length=2048)
    processor = TinyLlava(image_size=224, patch_size=16).processor(tokenizer)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    width, depth = (96, 1) if small else (768, 6)
    vision = clip_vision(width, depth, 12, 224, 16)
    hidden, inner, layers = (72, 96, 1) if small else (576, 1536, 15)
    text = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=len(tokenizer) if small else 49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=196,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        **special,
    )
    torch.manual_seed(0)
    families.get("llava").save_checkpoint(LlavaForConditionalGeneration(config), processor, folder)


def answers(n: int) -> list[tuple[str, str]]:
    """(emotion, completion) of n faces; every other one goes on over several faces' observations
    until it is as long as a published Exp-CoT."""
    from vlmface.rationale import rules
    from vlmface.synth import dataset

    found = []
    for i in range(n):
        drawn = dataset.draw(0, "train", i).expression
        text = rules.write(drawn.aus, drawn.emotion, seed=i, style="varied", body_only=True)
        more = 10_000 * (i + 1)
        while i % 2 and len(text.split()) < 100 + more % 41:
            more += 1
            other = dataset.draw(0, "train", more).expression
            text += " " + rules.write(
                other.aus, other.emotion, seed=more, style="varied", body_only=True
            )
        found.append((drawn.emotion, f"<think>{text}</think>\n<answer>{drawn.emotion}</answer>"))
    return found


def ours(model: Any, processor: Any, rows: Any, completions: list[str], arguments: Any) -> Any:
    """(trainer, first batch, what has to be done before training)."""
    from datasets import Dataset, Image, concatenate_datasets
    from peft import LoraConfig
    from trl import SFTConfig

    from vlmface import encode, families, prompts
    from vlmface.train.trainer import SupervisedTrainer, all_tower_features

    llava = families.get("llava")
    messages = prompts.load("face_cot").messages()
    texts = [encode.encode_text(processor, llava, messages, text) for text in completions]
    columns = Dataset.from_dict(
        {
            "input_ids": [text["input_ids"] for text in texts],
            "labels": [text["labels"] for text in texts],
            "length": [len(text["input_ids"]) for text in texts],
            "row": list(range(len(texts))),
        }
    )
    stored = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
    whole = concatenate_datasets([stored, columns], axis=1)
    collate = encode.Collator(processor, llava)
    trainer = SupervisedTrainer(
        model=model,
        args=SFTConfig(
            **arguments,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        ),
        train_dataset=columns,
        processing_class=processor,
        data_collator=collate,
        peft_config=LoraConfig(**LORA),  # type: ignore[arg-type]
        family=llava,
    )

    def prepare() -> None:
        with trainer.accelerator.autocast():
            trainer.features = all_tower_features(trainer.model, llava, whole, processor)

    return trainer, collate([whole[i] for i in range(BATCH)]), prepare


def theirs(model: Any, processor: Any, rows: Any, completions: list[str], arguments: Any) -> Any:
    from datasets import Dataset, concatenate_datasets
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from vlmface import prompts

    talk = Dataset.from_dict(
        {
            "prompt": [prompts.load("face_cot").messages()] * len(completions),
            "completion": [
                [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
                for text in completions
            ],
        }
    )
    whole = concatenate_datasets([talk, rows.select_columns(["image"])], axis=1)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=whole,
        processing_class=processor,
        peft_config=LoraConfig(**LORA),  # type: ignore[arg-type]
    )
    first = trainer.data_collator([whole[i] for i in range(BATCH)])
    return trainer, first, lambda: None


def run(side: str, folder: Path, n: int, epochs: int) -> dict[str, Any]:
    """Train in this process, and measure it."""
    import torch
    from transformers import set_seed

    from vlmface import families
    from vlmface.synth import dataset
    from vlmface.utils import memory

    llava = families.get("llava")
    torch.set_num_threads(os.cpu_count() or 1)
    arguments = {
        "output_dir": str(folder / "out"),
        "num_train_epochs": epochs,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": BATCH,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "logging_steps": 1,
        "disable_tqdm": True,
        "max_length": None,
        "gradient_checkpointing": False,
    }
    set_seed(0)
    make = ours if side == OURS else theirs
    trainer, first, prepare = make(
        llava.load_model(folder, dtype=torch.float32),
        llava.load_processor(folder),
        dataset.load("train", n=n, size=224, progress=False),
        [text for _, text in answers(n)],
        arguments,
    )
    supervised = int((first["labels"] != -100).sum())
    with torch.no_grad():
        loss = float(trainer.compute_loss(trainer.model, dict(first)))
    started = time.perf_counter()
    prepare()
    trainer.train()
    seconds = time.perf_counter() - started
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "loss": loss,
        "last_loss": statistics.mean(losses[-(n // BATCH) :]),
        "supervised": supervised,
        "seconds": seconds,
        "samples_per_s": n * epochs / seconds,
        "peak_rss_gib": memory.peak_rss_gib(),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trainable": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--faces", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.faces, arguments.epochs, arguments.repeats = BATCH, 1, 1
    runs: list[tuple[dict[str, Any], ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), arguments.small)
        print(
            f"{'':>4}{'samples/s':>20}{'peak RSS, GiB':>20}{'loss of the first batch':>28}"
            f"{'mean of the last epoch':>28}"
        )
        print(f"{'run':>4}" + f"{OURS:>10}{THEIRS:>10}" * 2 + f"{OURS:>14}{THEIRS:>14}" * 2)
        for number in range(arguments.repeats):
            pair = tuple(
                harness.in_process(run, side, Path(folder), arguments.faces, arguments.epochs)
                for side in (OURS, THEIRS)
            )
            runs.append(pair)
            print(
                f"{number + 1:>4}"
                + "".join(f"{one['samples_per_s']:>10.3f}" for one in pair)
                + "".join(f"{one['peak_rss_gib']:>10.2f}" for one in pair)
                + "".join(f"{one['loss']:>14.6f}" for one in pair)
                + "".join(f"{one['last_loss']:>14.4f}" for one in pair),
                flush=True,
            )
    speed = statistics.median(a["samples_per_s"] / b["samples_per_s"] for a, b in runs)
    memory = statistics.median(a["peak_rss_gib"] / b["peak_rss_gib"] for a, b in runs)
    a, b = runs[0]
    equal = {name: abs(a[name] - b[name]) for name in ("loss", "supervised", "trainable")}
    print(f"{a['parameters'] / 1e6:.0f} M parameters, {a['supervised']} supervised tokens")
    print(f"differences: {equal}")
    print(f"median: {speed:.2f} x the samples a second, {memory:.2f} x the peak memory")
    harness.write(
        arguments.json,
        "sft_vs_trl",
        ratio={"samples_per_s": speed, "peak_rss": memory},
        runs=runs,
        equal=equal,
    )


if __name__ == "__main__":
    main()
