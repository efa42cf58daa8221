"""QLoRA: what is kept in 4 bits, that it learns and goes on after an interruption, and what is
refused. bitsandbytes does all of it on a CPU too."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training
from helpers.checkpoints import llava
from helpers.run_files import adapter, losses
from helpers.samples import FACES, rows
from helpers.scripts import Recipe
from helpers.trainers import interrupted
from torch import nn

from vlmface import encode, families, manifest, prompts
from vlmface.errors import UserError
from vlmface.families import quantization
from vlmface.infer.local import LocalModel
from vlmface.rationale import rules

QLORA = (
    "--quantization",
    "nf4",
    "--vision_tower",
    "frozen",
    "--projector",
    "full",
    "--language_model",
    "lora",
)


def quantised(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}


def linear(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def train(base: Path, folder: Path, n: int = 16, **changes: Any) -> dict[str, Any]:
    fixed: dict[str, Any] = {"quantization": "nf4", "batch_size": 4, "epochs": 1, "save_steps": 2}
    fixed |= {"learning_rate": 5e-3, "lora_dropout": 0.0}
    return training.train(base, folder, rows(n), **fixed | changes)


# --- what is quantised ----------------------------------------------------------------------------


def test_the_language_model_is_quantised_and_nothing_else(base: Path) -> None:
    plain, model = llava.load_model(base), llava.load_model(base, quantization="nf4")
    language_model = {name for name in linear(plain) if "language_model" in name}
    assert len(language_model) == 14  # 7 in each of two layers
    assert quantised(model) == language_model
    assert linear(plain) - language_model == linear(model) - quantised(model)
    assert any("vision_tower" in name for name in linear(model) - quantised(model))
    assert "lm_head" in linear(model) - quantised(model)
    assert model.lm_head.weight.dtype == torch.float32


def test_transformers_alone_would_quantise_the_tower(base: Path) -> None:
    """Why `quantization.options` names what to leave out."""
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map={"": "cpu"}
    )
    assert any("vision_tower" in name for name in quantised(model))
    assert any("multi_modal_projector" in name for name in quantised(model))


def test_nothing_is_quantised_unless_asked() -> None:
    assert quantization.options(None, llava.MODULE_PATHS, dtype=None, device=None) == {}


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learnt(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """8 faces, seen 20 times."""
    folder = tmp_path_factory.mktemp("learnt")
    hard: dict[str, Any] = {"epochs": 20, "learning_rate": 1e-2, "train_embeddings": True}
    return folder, train(base, folder, n=8, batch_size=8, save_steps=20, **hard)


def test_it_memorises(learnt: tuple[Path, dict[str, Any]]) -> None:
    folder, result = learnt
    found = losses(folder)
    assert len(found) == result["steps"] == 20
    assert found[-1] < found[0] - 2


@pytest.mark.slow
@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_memorises_over_4_bits(name: str, tmp_path: Path) -> None:
    corpus = [rules.write(aus, emotion, seed=seed) for aus, emotion in FACES for seed in range(20)]
    corpus += [str(prompts.load("face_cot").messages()), "helpful assistant user system"] * 20
    base = tmp_path / "base"
    families.get(name).build_tiny(base, corpus)
    hard = {"epochs": 300, "warmup_steps": 10, "train_embeddings": True, "save_steps": 300}
    found = train(base, tmp_path / "run", n=4, lora_rank=32, lora_alpha=64, **hard)
    assert found["loss_last"] < 0.05 < 1 < found["loss_first"]
    print(f"{name}: {found['loss_first']:.2f} -> {found['loss_last']:.4f}")


def test_what_it_learnt_holds_for_the_base_that_is_not_quantised(
    base: Path, learnt: tuple[Path, dict[str, Any]]
) -> None:
    """The adapter is used on top of the base as it is: the loss there is that of training."""
    from peft import PeftModel

    folder, _ = learnt
    processor = llava.load_processor(base)
    batch = encode.Collator(processor, llava)(list(training.encode_all(processor, llava, rows(8))))
    batch.pop("row")

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(model(**batch).loss)

    in_4_bits = loss(PeftModel.from_pretrained(llava.load_model(base, quantization="nf4"), folder))
    whole = loss(PeftModel.from_pretrained(llava.load_model(base, dtype=torch.float32), folder))
    untrained = loss(llava.load_model(base, dtype=torch.float32))
    assert whole < untrained - 2
    assert whole == pytest.approx(in_4_bits, abs=0.1)


def test_weights_are_counted_before_packing(
    base: Path, learnt: tuple[Path, dict[str, Any]]
) -> None:
    folder, result = learnt
    held = sum(p.numel() for p in llava.load_model(base).parameters())
    adapted = sum(p.numel() for p in adapter(folder).values())
    assert result["trainable"] == adapted
    assert result["parameters"] == held + adapted


def test_trained_weights_are_float32(learnt: tuple[Path, dict[str, Any]]) -> None:
    """TRL alone would train them, the whole projector too, in bfloat16."""
    found = adapter(learnt[0])
    assert any("multi_modal_projector" in name for name in found)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert any((tensor != tensor.bfloat16()).any() for tensor in found.values())


def test_resumed_equals_uninterrupted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in step 4, after 3; the last checkpoint is of step 2. With dropout on."""
    whole = train(base, tmp_path / "whole", lora_dropout=0.1)
    with interrupted("sft", 4):
        train(base, tmp_path / "resumed", lora_dropout=0.1)
    resumed = train(base, tmp_path / "resumed", lora_dropout=0.1)
    assert "checkpoint-2" in capsys.readouterr().out
    assert whole["steps"] == resumed["steps"] == 4
    for name in ("trainable", "trainable_sha"):
        assert resumed[name] == whole[name], name
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    mine, theirs = adapter(tmp_path / "resumed"), adapter(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in theirs)


# --- the recipe -----------------------------------------------------------------------------------


def test_a_run_says_how_its_base_was_kept_and_is_loaded_without_that(
    sft_cot: Recipe, tmp_path: Path, run_dir: Path
) -> None:
    words = ("--n_train", "16", "--epochs", "1", "--n_eval", "4", "--max_new_tokens", "4")
    assert sft_cot(tmp_path, *words, *QLORA) == 0
    assert manifest.load(tmp_path)[0].quantization == "nf4"
    assert manifest.load(run_dir)[0].quantization is None
    for merge in (False, True):
        model = LocalModel.load(tmp_path, merge=merge).model
        assert not quantised(model)
    assert model.dtype == torch.float32


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["full", "frozen"])
def test_only_lora_can_train_over_4_bits(policy: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=f"quantization is nf4, but language_model is {policy}.*set language_model: lora",
    ):
        train(base, tmp_path, language_model=policy)


def test_without_bitsandbytes_it_says_what_to_install(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.util.find_spec

    def find_spec(name: str, *args: Any) -> Any:
        return None if name == "bitsandbytes" else original(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(UserError, match=r"bitsandbytes is not installed: pip install 'vlmface\["):
        llava.load_model(base, quantization="nf4")
