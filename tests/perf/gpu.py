"""On a GPU: fine-tuning and GRPO against TRL, evaluation against transformers used plainly, all of
one model in bfloat16 with the shapes and the number of weights of LLaVA-1.5-7B, random ones.

    python tests/perf/gpu.py [--repeats 5] [--only eval grpo sft] [--json FILE] [--small]

sft    24 faces, 2 epochs, batch 8, LoRA on the language model, as in sft_vs_trl.py
grpo   2 faces a step, G = 8, 64 tokens an answer, LoRA on the attention, as in grpo_vs_trl.py
eval   scores of 8 labels and greedy answers of 64 tokens, 24 faces, as in eval_speed.py

Both sides work on the same frozen weights in one process, in turn; a first pair of runs warms up
and is not counted. Random weights in bfloat16 make different batches differ by rounding: losses
are printed beside each other, and equality is what the scripts on the CPU show. `--small` tries all
this with a small model.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "perf")]
TASKS = ["eval", "grpo", "sft"]
FACES, EPOCHS, TOKENS = 24, 2, 64


def build(folder: Path, small: bool, device: str) -> Any:
    """Processor and configuration in `folder`; the model, whose weights are drawn on the device."""
    import torch
    from helpers.checkpoints import clip_vision
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from vlmface import prompts
    from vlmface.families.tiny import build_tokenizer
    from vlmface.families.tiny.llava import TinyLlava

    size = 56 if small else 336  # pixels
    corpus = [str(prompts.load("face_cot").messages()), "USER: ASSISTANT:"] * 20
    tokenizer = build_tokenizer(corpus, vocab_size=700, max_length=2048)
    processor = TinyLlava(image_size=size, patch_size=14).processor(tokenizer)
    processor.save_pretrained(folder)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    width, depth = (64, 2) if small else (1024, 24)
    vision = clip_vision(width, depth, width // 32 if small else 16, size)
    hidden, inner, layers = (128, 256, 2) if small else (4096, 11008, 32)
    text = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32 if small else 32,
        vocab_size=len(tokenizer) if small else 32064,
        max_position_embeddings=4096,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(size // 14) ** 2,
        **special,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def free(gpu: bool) -> None:
    import torch

    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def clock(work: Callable[[], Any], gpu: bool) -> tuple[float, Any]:
    import torch

    began = time.perf_counter()
    result = work()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def in_turn(
    name: str, repeats: int, gpu: bool, sides: dict[str, Callable[[], dict[str, Any]]]
) -> dict[str, Any]:
    """The runs of both sides, {"ours": [...], "theirs": [...]}, and the median ratio of seconds."""
    import torch

    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(repeats + 1):
        for side, run in sides.items():
            free(gpu)
            done = run()
            if gpu:
                done["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            print(name, side, json.dumps(done), flush=True)
            if number:
                runs[side].append(done)
    pairs = list(zip(runs["ours"], runs["theirs"], strict=True))
    found: dict[str, Any] = {
        "seconds": {s: statistics.median(one["seconds"] for one in runs[s]) for s in sides},
        "ratio": statistics.median(b["seconds"] / a["seconds"] for a, b in pairs),
    }
    if gpu:
        found["peak_gib"] = {s: max(one["peak_gib"] for one in runs[s]) for s in sides}
    print(name, json.dumps(found), flush=True)
    return found | {"runs": runs}


def sft(model: Any, folder: Path, gpu: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    import sft_vs_trl
    from helpers.checkpoints import llava
    from transformers import set_seed

    from vlmface.synth import dataset

    rows = dataset.load("train", n=FACES, size=336, progress=False)
    completions = [text for _, text in sft_vs_trl.answers(FACES)]

    def run(make: Callable[..., Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as out:
            arguments = {
                "output_dir": out,
                "num_train_epochs": EPOCHS,
                "learning_rate": 1e-4,
                "per_device_train_batch_size": sft_vs_trl.BATCH,
                "save_strategy": "no",
                "report_to": "none",
                "use_cpu": not gpu,
                "bf16": gpu,
                "seed": 0,
                "logging_steps": 1,
                "disable_tqdm": True,
                "max_length": None,
                "gradient_checkpointing": False,
                "lr_scheduler_type": "constant",
            }
            set_seed(0)
            processor = llava.load_processor(folder)
            trainer, _, prepare = make(model, processor, rows, completions, arguments)

            def work() -> None:
                prepare()
                trainer.train()

            seconds, _ = clock(work, gpu)
            losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
            trainer.model.unload()
        steps = FACES // sft_vs_trl.BATCH
        return {
            "seconds": seconds,
            "samples_per_s": FACES * EPOCHS / seconds,
            "loss": [statistics.mean(losses[:steps]), statistics.mean(losses[-steps:])],
        }

    return {"ours": lambda: run(sft_vs_trl.ours), "theirs": lambda: run(sft_vs_trl.theirs)}


def grpo(model: Any, folder: Path, gpu: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    import grpo_vs_trl

    grpo_vs_trl.FACES, grpo_vs_trl.TOKENS = 2, TOKENS

    def run(side: str) -> dict[str, Any]:
        done = grpo_vs_trl.timed(side, folder, model, steps=1)
        return {"seconds": done["s_per_step"], "tokens": done["tokens"]}

    return {"ours": lambda: run("ours"), "theirs": lambda: run("trl")}


def evaluation(model: Any, folder: Path, gpu: bool) -> dict[str, dict[str, Callable[[], Any]]]:
    import eval_speed
    from helpers.checkpoints import llava

    from vlmface import prompts
    from vlmface.evaluate import answering
    from vlmface.infer.local import LocalModel
    from vlmface.synth import dataset

    eval_speed.TOKENS = TOKENS
    images = answering.images_of(dataset.load("test", n=FACES, size=336, progress=False))
    few = images[:2]
    prompt = prompts.load("face_cot")
    predictor = LocalModel(model, llava.load_processor(folder), prompt, "llava", TOKENS)
    how = (model.eval(), predictor.processor, prompt, few)

    def timed(work: Callable[[], Any], count: int) -> dict[str, Any]:
        return {"seconds": clock(work, gpu)[0] / count}

    return {
        "scoring": {
            "ours": lambda: timed(lambda: predictor.score(images, batch_size=FACES), FACES),
            "theirs": lambda: timed(lambda: eval_speed.plain_scores(*how), len(few)),
        },
        "writing": {
            "ours": lambda: timed(
                lambda: predictor.predict(images, batch_size=FACES, probabilities=False), FACES
            ),
            "theirs": lambda: timed(lambda: eval_speed.plain_texts(*how), len(few)),
        },
    }


def main() -> None:
    import torch

    global FACES, EPOCHS, TOKENS
    parser = harness.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=TASKS)
    words = parser.parse_args()
    if words.small:
        FACES, EPOCHS, TOKENS, words.repeats = 8, 1, 8, 1
    gpu = torch.cuda.is_available()
    if not gpu and not words.small:
        raise SystemExit("there is no GPU here: --small tries the script with a small model")
    wanted = words.only or TASKS
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name() if gpu else None}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(folder, words.small, "cuda" if gpu else "cpu")
        print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} G weights, {found['gpu']}")
        if "eval" in wanted:
            for task, sides in evaluation(model, folder, gpu).items():
                found[task] = in_turn(task, words.repeats, gpu, sides)
        for task, sides_of in (("grpo", grpo), ("sft", sft)):
            if task in wanted:
                found[task] = in_turn(task, words.repeats, gpu, sides_of(model, folder, gpu))
    ratio = {task: runs["ratio"] for task, runs in found.items() if task != "gpu"}
    harness.write(words.json, "gpu", ratio=ratio, runs=found, equal={})


if __name__ == "__main__":
    main()
