"""A setting that nothing reads is refused: every field of every recipe is read, or reported."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import ROOT, load_script, to_argv
from test_ranges import SETTINGS, sample

from vlmface import manifest
from vlmface.errors import UserError
from vlmface.train.settings import SFTSettings
from vlmface.utils import config
from vlmface.utils.ranges import Checked, kinds

# Code that looks at settings without acting on them.
_LOOKS = ("ranges.py", "config.py", "dataclasses.py", "checks.py", "copy.py")
_CHECKS = (
    "check",
    "check_trainable",
    "unused",
    "unused_lora",
    "__post_init__",
    "check_start",
    "_check",
)


@contextmanager
def recorded(cls: type) -> Iterator[set[str]]:
    """The fields of `cls` that are read by code that acts on them."""
    names = {field.name for field in dataclasses.fields(cls)}
    own = {
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, property)
    } | {"shape"}
    read: set[str] = set()
    plain = object.__getattribute__

    def getattribute(self: Any, name: str) -> Any:
        if name in names:
            frame = sys._getframe(1)
            while frame.f_code.co_name in own and frame.f_locals.get("self") is self:
                assert frame.f_back is not None
                frame = frame.f_back
            code = frame.f_code
            if Path(code.co_filename).name not in _LOOKS and code.co_name not in _CHECKS:
                read.add(name)
        return plain(self, name)

    cls.__getattribute__ = getattribute  # type: ignore[method-assign]
    try:
        yield read
    finally:
        del cls.__getattribute__  # type: ignore[misc]


def unread(cls: type, words: dict[str, Any], main: Any) -> set[str]:
    """Fields that a run of a recipe neither reads nor reports as unused."""
    made: list[Any] = []
    with recorded(cls) as read, pytest.MonkeyPatch.context() as patch:
        plain = config.load_config

        def load_config(*args: Any, **kwargs: Any) -> Any:
            made.append(plain(*args, **kwargs))
            return made[-1]

        patch.setattr(config, "load_config", load_config)
        assert main(to_argv(words)) == 0
        reported = {one.name for one in made[0].unused()}
    return {field.name for field in dataclasses.fields(cls)} - read - reported


SHORT = {
    "n_train": 8,
    "n_eval": 4,
    "epochs": 1,
    "batch_size": 8,
    "logging_steps": 1,
    "save_steps": 1,
    "max_new_tokens": 4,
    "eval_batch_size": 8,
}


@pytest.mark.parametrize("recipe", ["sft_cot", "sft_attributes"])
def test_every_field_of_fine_tuning_is_read(recipe: str, base: Path, tmp_path: Path) -> None:
    script = load_script(f"recipes/{recipe}.py")
    words = SHORT | {"base_model": base, "output_dir": tmp_path / "run"}
    assert unread(SETTINGS[recipe], words, script.main) == set()


def test_every_field_of_context_is_read(base: Path, tmp_path: Path) -> None:
    script = load_script("recipes/context_emotion.py")
    words = SHORT | {"base_model": base, "output_dir": tmp_path / "run"}
    # `model` says which settings there are, and is read before these.
    assert unread(SETTINGS["context_vlm"], words, script.main) <= {"model"}


def test_every_field_of_grpo_is_read(base: Path, tmp_path: Path) -> None:
    script = load_script("recipes/grpo.py")
    words = {name: value for name, value in SHORT.items() if name != "epochs"} | {
        "init_from": base,
        "prompt": "face_cot",
        "output_dir": tmp_path / "run",
        "max_steps": 1,
        "num_generations": 2,
        "batch_size": 2,
        "max_logprob_drift": 1,
        "beta": 0.01,
    }
    assert unread(SETTINGS["grpo"], words, script.main) == set()


@pytest.mark.parametrize(
    ("recipe", "name", "changes"),
    [
        (
            "clip_finetune",
            "clip_finetune",
            {
                "validation_share": 0.3,
                "eval_steps": 1,
                "logging_steps": 1,
                "metric_for_best_model": "loss",
                "early_stopping_patience": 3,
            },
        ),
        ("clip_captions", "clip_captions", {"n_probe": 40, "dataset_options": "{}"}),
        ("context_emotion", "clip_caer", {"model": "clip-caer"}),
    ],
)
def test_every_field_of_clip_recipes_is_read(
    recipe: str, name: str, changes: dict[str, Any], clip_base: Path, tmp_path: Path
) -> None:
    words = {k: v for k, v in SHORT.items() if k not in ("max_new_tokens", "n_eval")} | {
        "base_model": clip_base,
        "output_dir": tmp_path / "run",
        "n_train": 32,
    }
    words |= changes | ({} if name == "clip_captions" else {"n_eval": 8})
    found = unread(SETTINGS[name], words, load_script(f"recipes/{recipe}.py").main)
    assert found <= ({"model"} if name == "clip_caer" else set())


# --- fields that other fields switch off ----------------------------------------------------------

LORA = ("lora_rank", "lora_alpha")
RULES = {
    "endpoint": "http://x/v1",
    "model": "m",
    "show_label": True,
    "prompt": "p",
    "num_samples": 2,
    "api_key_env": "KEY",
    "concurrency": 2,
    "timeout": 5,
    "attempts": 2,
    "repairs": 2,
    "request": {"seed": 1},
    "image_side": 64,
    "price_in": 1,
    "price_out": 1,
    "temperature": 2,
    "top_p": 0.5,
    "label_source": "vote",
    "min_agreement": 0.7,
    "batch_size": 2,
    "au_threshold": 2,
}
FULL = {"language_model": "full"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # (settings, what switches the field off, the field with a value)
    *[
        ("sft_cot", FULL, {name: value})
        for name, value in {
            "lora_rank": 4,
            "lora_alpha": 4,
            "lora_dropout": 0.1,
            "lora_variant": "dora",
            "lora_target_modules": ["q_proj"],
            "train_embeddings": True,
        }.items()
    ],
    ("sft_cot", {"vision_tower": "lora"}, {"cache_features": True}),
    ("sft_cot", {"lr_scheduler": "constant"}, {"warmup_steps": 5}),
    ("sft_cot", {}, {"dataset_root": "/data"}),
    ("sft_cot", {}, {"benchmark_root": "/data"}),
    ("sft_attributes", {"prompt": "face_cot"}, {"balance_by": "tasks"}),
    ("context_vlm", {}, {"single_view_prompts": {"face": "context_face"}}),
    ("context_vlm", FULL, {"train_embeddings": True}),
    *[("grpo", FULL, {name: 4}) for name in LORA],
    ("grpo", {"lr_scheduler": "constant"}, {"warmup_steps": 5}),
    *[
        (recipe, {"balance_by": "labels"}, {"label_weight_power": 1})
        for recipe in ("sft_attributes", "grpo", "clip_finetune")
    ],
    ("clip_finetune", {"soft_labels": True}, {"margins": "ldam"}),
    ("grpo", {"num_iterations": 1}, {"epsilon_high": 0.28}),
    ("grpo", {"num_iterations": 1}, {"epsilon_low": 0.1}),
    *[("clip_finetune", {"image_tower": "full", "head": "text"}, {name: 4}) for name in LORA],
    ("clip_finetune", {}, {"text_tower": "lora"}),
    ("clip_finetune", {}, {"layer_decay": 0.9}),
    ("clip_finetune", {}, {"gradient_checkpointing": True}),
    ("clip_finetune", {}, {"dataloader_workers": 2}),
    ("clip_finetune", {}, {"affect_weight": 0.5}),
    ("clip_finetune", {}, {"num_context_tokens": 4}),
    ("clip_finetune", {}, {"class_specific": True}),
    ("clip_finetune", {}, {"temporal": "mean"}),
    ("clip_finetune", {}, {"negative_weight": 0.3}),
    ("clip_finetune", {"prompt": "clip_emotic", "benchmark": "emotic"}, {"margins": "ldam"}),
    ("clip_finetune", {}, {"validation_share": 0.1}),
    ("clip_finetune", {}, {"validation_split": "validation"}),
    ("clip_finetune", {}, {"n_validation": 8}),
    ("clip_finetune", {}, {"metric_for_best_model": "uar"}),
    ("clip_finetune", {"eval_steps": 10}, {"early_stopping_patience": 2}),
    ("clip_finetune", {}, {"milestones": [1, 2]}),
    ("clip_finetune", {"lr_scheduler": "steps", "milestones": [1]}, {"warmup_steps": 2}),
    *[("clip_captions", {}, {name: 4}) for name in LORA],
    ("clip_captions", {}, {"probe_root": "/data"}),
    ("synthesize", {}, {"concurrency": 2}),
    ("synthesize", {"endpoint": "http://x/v1"}, {"batch_size": 4}),
    ("synthesize", {}, {"api_key_env": "KEY"}),
    *[("rationale", {}, {name: value}) for name, value in RULES.items()],
    ("rationale", {"writer": "teacher"}, {"style": "plain"}),
    ("rationale", {"writer": "teacher"}, {"num_samples": 2}),
    ("rationale", {"writer": "model"}, {"repairs": 3}),
    ("rationale", {"writer": "model"}, {"aus": "m:f"}),
    ("rationale", {"writer": "model"}, {"timeout": 5}),
    ("run", {}, {"concurrency": 2}),
    ("run", {"model": "http://x/v1"}, {"batch_size": 2}),
    ("run", {"scoring": "likelihood"}, {"max_new_tokens": 5}),
    ("run", {}, {"dataset_root": "/data"}),
    ("robustness", {}, {"dataset_root": "/data"}),
    ("sweep", {"orders": 0}, {"n_orders": 5}),
    ("sweep", {}, {"dataset_root": "/data"}),
]


def named(case: Any) -> str:
    return "-".join(map(str, case)) if isinstance(case, dict) else str(case)


@pytest.mark.parametrize(("name", "off", "field"), CASES, ids=named)
def test_a_field_without_effect_is_refused(
    name: str, off: dict[str, Any], field: dict[str, Any]
) -> None:
    (which,) = field
    values = sample(name) | off
    config.refuse_unused(config.from_dict(SETTINGS[name], values, where="a test"))
    settings = config.from_dict(SETTINGS[name], values | field, where="a test")
    with pytest.raises(UserError) as error:
        config.refuse_unused(settings)
    said = str(error.value)
    assert said.startswith(f"{which} is ") and "has no effect: " in said and "Leave it out" in said
    assert "\n" not in said


def test_the_recipes_of_supervised_fine_tuning_have_the_same_settings() -> None:
    fields = set(kinds(SETTINGS["sft_cot"]))
    assert set(kinds(SETTINGS["sft_attributes"])) == fields
    assert set(kinds(SETTINGS["context_vlm"])) == fields | {
        "model",
        "ablation",
        "single_view_prompts",
    }


def test_a_file_may_hold_what_the_command_line_switches_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file's own contradictions are refused; what it says of an option that the command line
    switches off is printed; what the command line says must have an effect."""

    def parse(language_model: str, *words: str) -> SFTSettings:
        file = tmp_path / "own.yaml"
        file.write_text(
            f"base_model: b\ndataset: synth\nbenchmark: synth\nprompt: face_cot\noutput_dir: o\n"
            f"language_model: {language_model}\n"
            "lora_rank: 32\n"
        )
        argv = ["--config", str(file), *words]
        return config.load_config(SFTSettings, argv, default="none", usage="")

    assert parse("lora").lora_rank == 32
    with pytest.raises(UserError, match="lora_rank is 32, but has no effect"):
        parse("full")
    assert not capsys.readouterr().out
    assert parse("lora", "--language_model", "full").lora_rank == 32
    assert "note: lora_rank is 32, but has no effect" in capsys.readouterr().out
    with pytest.raises(UserError, match="lora_rank is 16, but has no effect"):
        parse("lora", "--language_model", "full", "--lora_rank", "16")


def test_an_adapter_keeps_its_policy_and_its_rank(run_dir: Path, tmp_path: Path) -> None:
    main = load_script("recipes/grpo.py").main
    for words in (["--vision_tower", "full"], ["--lora_rank", "4"]):
        with pytest.raises(UserError, match=r"but has no effect: the adapter of .* is trained"):
            main(["--init_from", str(run_dir), "--output_dir", str(tmp_path / words[1]), *words])


# --- limitations ----------------------------------------------------------------------------------


def limitations(*words: str) -> str | None:
    settings = config.load_config(
        SFTSettings, ["--output_dir", "o", *words], default="sft_cot_tiny", usage=""
    )
    return settings.limitations


def test_limitations_are_of_the_data_that_they_describe() -> None:
    own = limitations()
    assert own and "rendered faces" in own
    assert limitations("--dataset", "synth", "--n_train", "8") == own
    assert limitations("--dataset", "rafdb", "--dataset_root", "/data") is None
    given = "Trained on faces of one office."
    assert (
        limitations("--dataset", "rafdb", "--dataset_root", "/data", "--limitations", given)
        == given
    )
    neutral = manifest.default_limitations("/home/me/mixture.yaml")
    assert neutral.startswith("Trained on mixture.yaml.") and "rendered" not in neutral


def test_a_run_on_other_data_does_not_inherit_limitations(
    sft_cot: Any, base: Path, tmp_path: Path
) -> None:
    mixture = tmp_path / "mine.yaml"
    mixture.write_text("sources:\n  - {dataset: synth, options: {n: 16}}\nsize: 16\n")
    words = ("--dataset", str(mixture), "--n_train", "16", "--epochs", "1")
    assert sft_cot(tmp_path / "run", *words) == 0
    found, _ = manifest.load(tmp_path / "run")
    assert found.limitations == manifest.default_limitations("mine.yaml")


def test_shipped_files_have_no_contradictions() -> None:
    for path in sorted((ROOT / "recipes/configs").glob("*.yaml")):
        stored = config.read_yaml(path)
        assert (
            "limitations" in stored
            or path.stem in ("clip_captions_tiny", "facial_r1_loop")
            or (path.stem.startswith("synthesize"))
        ), path
    assert issubclass(SFTSettings, Checked)
