"""What `vlmface estimate-memory` counts without weights is what a real step holds."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers.checkpoints import BUILDERS, clip_vision, llava, qwen_vl, smolvlm
from helpers.run_files import read_metrics
from helpers.samples import picture
from helpers.scripts import ROOT

from vlmface import encode, families, prompts
from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.tools import estimate_memory, longest_rows, meta_model, simulate_memory
from vlmface.tools.recipe_setup import settings_from
from vlmface.train import sft
from vlmface.train.loss import summed_cross_entropy
from vlmface.train.settings import SFTSettings
from vlmface.utils import memory

MIB = 2**20


def settings_for(base: Path, *words: str) -> SFTSettings:
    fixed = ["--base_model", str(base), "--n_train", "12", "--batch_size", "4"]
    return settings_from("sft_cot_tiny", [*fixed, *words])


def rows_for(settings: SFTSettings) -> longest_rows.Rows:
    processor = meta_model.processor_of(settings)
    return longest_rows.rows_of(
        settings, llava, meta_model.base_config(settings.base_model), processor
    )


# --- one step -------------------------------------------------------------------------------------


def real_peak(
    base: Path, settings: SFTSettings, family: Any, batch: dict[str, torch.Tensor]
) -> int:
    """Most bytes that operations of a real step hold at once."""
    real = family.load_model(base, dtype=torch.float32)
    if settings.uses_lora:
        from peft import get_peft_model

        real = get_peft_model(real, sft.lora_config(settings.lora, family, real, 0))
    if settings.gradient_checkpointing:
        real.gradient_checkpointing_enable()
        real.enable_input_require_grads()
    real.train()
    labels = batch["labels"]
    first = int((labels != -100).any(0).nonzero()[0])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "row")}
    for _ in range(2 if settings.gradient_accumulation > 1 else 1):
        with simulate_memory.LiveTensorTracker(
            [*real.parameters(), *real.buffers(), *inputs.values()]
        ) as live:
            for parameter in real.parameters():
                if parameter.grad is not None:
                    live.count(parameter.grad.untyped_storage())
            out = real(**inputs, use_cache=False, logits_to_keep=labels.shape[1] - first + 1)
            targets = F.pad(labels[:, first:], (0, 1), value=-100).flatten()
            logits = out.logits.flatten(0, 1).float()
            loss = summed_cross_entropy(logits, targets, -100)
            del out, logits
            loss.backward()
    return live.peak


def simulated_peak(settings: SFTSettings, family: Any, batch: dict[str, torch.Tensor]) -> int:
    model = meta_model.build(
        meta_model.base_config(settings.base_model), family, settings, torch.float32
    )
    return simulate_memory.step_bytes(
        model,
        family,
        batch,
        simulate_memory.StepOptions(
            checkpointing=settings.gradient_checkpointing,
            accumulate=settings.gradient_accumulation > 1,
        ),
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--lora_dropout", "0.1"),
        ("--gradient_checkpointing", "true"),
        ("--vision_tower", "full", "--projector", "full", "--language_model", "full"),
        ("--gradient_accumulation", "2"),
    ],
)
def test_the_simulated_step_holds_what_a_real_one_does(base: Path, words: tuple[str, ...]) -> None:
    settings = settings_for(base, "--train_embeddings", "false", *words)
    batch = rows_for(settings).train(settings.batch_size)
    real = real_peak(base, settings, llava, batch)
    assert simulated_peak(settings, llava, batch) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_is_simulated(name: str, tmp_path: Path) -> None:
    """Towers that cut pictures into patches and windows by their sizes too; pixels or features, a
    picture of another size in the batch."""
    corpus = [str(prompts.load("face_cot").messages()), "the brows are lowered"] * 20
    BUILDERS[name](tmp_path, corpus)
    family = families.get(families.family_of(tmp_path))
    processor = family.load_processor(tmp_path)
    collate = encode.Collator(processor, family)
    messages = prompts.load("face_cot").messages()
    answers = ["the brows are lowered", "<think>the brows</think><answer>anger</answer>"]
    batch = collate(
        [
            encode.encode(processor, family, messages, picture(i, size), answers[i])
            for i, size in enumerate([(96, 96), (130, 70)])
        ]
    )
    for policy in ("lora", "full", "frozen"):
        settings = settings_for(
            tmp_path,
            "--train_embeddings",
            "false",
            "--vision_tower",
            policy,
            "--projector",
            "full",
            "--language_model",
            "full" if policy == "full" else "lora",
            *(() if policy == "full" else ("--lora_dropout", "0")),
        )
        real = real_peak(tmp_path, settings, family, batch)
        assert simulated_peak(settings, family, batch) == pytest.approx(real, rel=0.05), policy
    found = estimate_memory.estimate(
        settings,
        family,
        meta_model.base_config(settings.base_model),
        longest_rows.Rows(
            2, 2, [encode.encode(processor, family, messages, picture(0), answers[0])], collate
        ),
        gpu=False,
        processes=1,
    )
    features = family.tower_features(
        family.load_model(tmp_path), family.image_inputs(processor, [picture(0)])
    )
    assert found.features == features[0].nbytes
    assert found.evaluation["KV cache"] > 0


def test_checkpointing_and_batch_size_matter_as_they_should(base: Path) -> None:
    settings = settings_for(base, "--cache_features", "false")
    rows, config = rows_for(settings), meta_model.base_config(settings.base_model)

    def activations(**changes: Any) -> float:
        changed = dataclasses.replace(settings, **changes)
        found = estimate_memory.estimate(changed, llava, config, rows, gpu=False, processes=1)
        (memory,) = found.training.values()
        other = found.other_activations
        if changes.get("gradient_checkpointing"):
            assert memory.activations < other
        else:
            assert memory.activations > other
        return memory.activations

    whole = activations()
    assert activations(gradient_checkpointing=True) < 0.8 * whole
    assert activations(batch_size=8) == pytest.approx(2 * whole, rel=0.1)


def test_cached_features_are_counted_instead_of_the_tower(base: Path) -> None:
    settings = settings_for(base)
    assert settings.cache_features
    rows, config = rows_for(settings), meta_model.base_config(settings.base_model)
    cached = estimate_memory.estimate(settings, llava, config, rows, gpu=False, processes=1)
    pixels = estimate_memory.estimate(
        dataclasses.replace(settings, cache_features=False, vision_tower="lora"),
        llava,
        config,
        rows,
        gpu=False,
        processes=1,
    )
    assert cached.features == 16 * 32 * 4  # tokens, width, bytes of a float
    assert cached.training["1 process"].activations < pixels.training["1 process"].activations
    assert pixels.features == 0


# --- sharing, evaluation, steps -------------------------------------------------------------------


def test_processes_share_what_their_strategy_shares(base: Path) -> None:
    settings = settings_for(base, "--cache_features", "false")
    config, rows = meta_model.base_config(settings.base_model), rows_for(settings)
    found = estimate_memory.estimate(settings, llava, config, rows, gpu=True, processes=4)
    model = meta_model.build(config, llava, settings, torch.bfloat16)
    moving = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    one, two, three = (found.training[name] for name in ("DDP", "ZeRO-2", "ZeRO-3"))
    assert one.buffers == one.gradients > 0
    assert one.optimiser == 2 * one.gradients
    assert two.weights == 2 * total and three.weights == 2 * total / 4
    assert two.optimiser == three.optimiser == 12 * moving / 4
    assert two.gradients == 2 * moving / 4


def test_the_cache_grows_with_batch_and_answer(base: Path) -> None:
    settings = settings_for(base, "--eval_batch_size", "3", "--max_new_tokens", "50")
    rows, config = rows_for(settings), meta_model.base_config(settings.base_model)
    found = estimate_memory.estimate(settings, llava, config, rows, gpu=False, processes=1)
    length = rows.prompts(3)["input_ids"].shape[1] + 50
    # keys and values x layers x batch x tokens x width x bytes
    assert found.evaluation["KV cache"] == pytest.approx(2 * 2 * 3 * length * 64 * 4, abs=2)


def test_quantised_weights_take_four_bits(base: Path) -> None:
    settings = settings_for(base, "--quantization", "nf4", "--train_embeddings", "false")
    config = meta_model.base_config(settings.base_model)
    model = meta_model.build(config, llava, settings, torch.bfloat16)
    linear = sum(
        p.numel()
        for name, p in model.named_parameters()
        if "language_model.layers" in name and "_proj" in name and "lora" not in name
    )
    whole = meta_model.weight_bytes(model)
    assert estimate_memory._weights(model, llava, settings) == pytest.approx(
        whole - linear * (2 - 0.516), rel=1e-3
    )


def test_steps_are_those_of_the_trainer(run_dir: Path) -> None:
    settings = SFTSettings(**json.loads((run_dir / "settings.json").read_text()))
    train = read_metrics(run_dir)["train"]
    assert estimate_memory.steps(settings, train["n"]) == train["steps"]
    uneven = dataclasses.replace(settings, gradient_accumulation=4, epochs=1.5)
    assert estimate_memory.steps(uneven, 49) == 3  # 7 batches, 2 updates an epoch


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json and nothing else, of a LLaVA with few but wide layers."""
    from transformers import LlamaConfig, LlavaConfig

    config = LlavaConfig(
        vision_config=clip_vision(1024, 3, 16, 336),
        text_config=LlamaConfig(num_hidden_layers=4, vocab_size=32064),  # as wide as Llama-2-7B
        image_token_index=32000,
    )
    folder = tmp_path_factory.mktemp("bare")
    config.save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return folder


def test_config_json_is_enough(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "sft_cot_llava", "--base_model", str(bare), "--n_train", "12271"]
    words += ["--eval_batch_size", "1"]
    assert main(["estimate-memory", "--gpu", "24GB", *words]) == 0
    shown = capsys.readouterr().out
    assert "rows of max_length 2048 tokens assumed" in shown
    assert "1,920 steps: 12,271 rows, 20 epochs" in shown
    assert re.search(r"DDP +\d+\.\d+  fits", shown) and "measured" not in shown
    assert main(["estimate-memory", "--gpu", "4 GiB", *words, "--batch_size", "4"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"batch_size: 1, gradient_accumulation: 64 +\d+\.\d+  fits\n", shown)
    assert "quantization" not in shown  # no more than is needed
    assert main(["estimate-memory", "--gpu", "2GB", *words]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"quantization: nf4 +\d+\.\d+  fits\n", shown)


def test_what_is_missing_is_said(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "sft_cot_llava", "--base_model", str(bare)]
    assert main(["estimate-memory", "--gpu", "much", *words]) == 2
    assert "write it as 24GB" in capsys.readouterr().err
    assert main(["estimate-memory", "--gpu", "24GB", *words, "--max_length", "600"]) == 2
    assert "does not hold an image of 576 tokens" in capsys.readouterr().err
    assert main(["estimate-memory", "--gpu", "24GB", *words, "--measure"]) == 2
    assert "has no processor" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen", "smolvlm"])
def test_a_processor_is_enough_where_sizes_decide(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the data, a photograph and rows of the full length are assumed."""
    family = qwen_vl if name == "qwen" else smolvlm
    family.build_tiny(tmp_path, [str(prompts.load("face_cot").messages()), "USER: ASSISTANT:"] * 20)
    words = ["--config", f"sft_cot_{name}", "--base_model", str(tmp_path), "--max_pixels", "16384"]
    words += ["--gradient_checkpointing", "false", "--dataset_root", str(tmp_path / "no_data")]
    assert main(["estimate-memory", "--gpu", "24GB", *words]) == 0
    shown = capsys.readouterr().out
    assert "data not read: " in shown and "assumed" in shown
    assert re.search(r"activations +\d+\.\d+", shown) and "fits" in shown


def test_a_gpus_memory_is_read_as_people_write_it() -> None:
    for text in ("24GB", "24 GiB", "24", "24g"):
        assert estimate_memory.gpu_bytes(text) == 24 * 2**30
    for text in ("0GB", "24TB", "-3"):
        with pytest.raises(UserError, match="not an amount of memory"):
            estimate_memory.gpu_bytes(text)


def test_measuring_takes_real_steps(base: Path) -> None:
    settings = settings_for(base, "--n_train", "16")
    assert 0 < estimate_memory.measure(settings, meta_model.processor_of(settings), llava) < 60
    with pytest.raises(UserError, match="measuring takes 16 rows, but there are 12: raise n_train"):
        settings = settings_for(base)
        estimate_memory.measure(settings, meta_model.processor_of(settings), llava)


def test_on_a_cpu_the_tensors_are_estimated(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["estimate-memory", "--base_model", str(base), "--n_train", "12", "--batch_size", "4"])
        == 0
    )
    shown = capsys.readouterr().out
    for part in ("weights", "gradients", "optimiser", "activations"):
        assert re.search(rf"^  {part} +\d+\.\d+$", shown, re.MULTILINE), part
    assert "evaluation: weights" in shown and "is not estimated" in shown


def test_a_process_counts_its_own_memory_and_not_that_of_its_parent() -> None:
    ballast = torch.ones(200 * MIB // 4)
    words = [
        sys.executable,
        "-c",
        "from vlmface.utils.memory import peak_rss_gib; print(peak_rss_gib())",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    peak = float(subprocess.check_output(words, env=environment, text=True))
    assert peak < 0.2 < memory.peak_rss_gib()  # no torch is imported there
    assert ballast.sum() > 0
