"""Settings: types, names, files, and runs that go on with other settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from helpers.scripts import ROOT, load_script
from test_ranges import SETTINGS as ALL_SETTINGS

from vlmface.errors import UserError
from vlmface.pipelines import context_ablation, loop, synthesize
from vlmface.train import grpo
from vlmface.train.clip import contrastive
from vlmface.train.clip import settings as clip_settings
from vlmface.train.settings import SFTSettings
from vlmface.utils import config
from vlmface.utils.ranges import describe, help_texts, kinds


@dataclass(frozen=True)
class Small:
    name: str
    rate: float = 1.0
    count: int | None = None
    quiet: bool = False
    mode: Literal["frozen", "lora"] = "lora"
    modules: list[str] = field(default_factory=lambda: ["all"])


def build(**values: object) -> Small:
    return config.from_dict(Small, {"name": "x", **values}, where="a test")


def parse(tmp_path: Path, text: str, *argv: str) -> Small:
    file = tmp_path / "small.yaml"
    file.write_text(text)
    return config.load_config(Small, ["--config", str(file), *argv], default="none", usage="usage")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    found = parse(tmp_path, "name: a\nrate: 2\ncount: 3", "--rate", "0.5", "--name=b", "--quiet")
    assert found == Small("b", 0.5, 3, True)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rate", "5e-4", 5e-4),  # text to YAML, which wants 5.0e-4
        ("rate", 2, 2.0),
        ("count", "null", None),
        ("count", "7", 7),
        ("quiet", "false", False),
        ("mode", "frozen", "frozen"),
        ("name", "123", "123"),
        ("modules", "q_proj,v_proj", ["q_proj", "v_proj"]),
        ("modules", "[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("modules", ["a"], ["a"]),
    ],
)
def test_values_take_the_type_of_their_field(name: str, value: object, expected: object) -> None:
    found = getattr(build(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("rate", "fast", "a number"),
        ("rate", True, "a number"),
        ("count", "1.5", "a whole number or null"),
        ("count", True, "a whole number or null"),
        ("quiet", "perhaps", "true or false"),
        ("quiet", 1, "true or false"),
        ("mode", "half", "frozen | lora"),
        ("name", 3, "text"),
        ("modules", 3, "a list"),
    ],
)
def test_a_wrong_type_is_named(name: str, value: object, allowed: str) -> None:
    with pytest.raises(UserError) as error:
        build(**{name: value})
    assert str(error.value) == f"{name} is {value!r}, but must be {allowed}"


def test_a_misspelt_setting_is_answered_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no setting 'ratte' \(did you mean 'rate'\?\)"):
        parse(tmp_path, "name: a", "--ratte", "1")
    with pytest.raises(UserError, match=r"'modes' \(did you mean 'mode'\?\)"):
        parse(tmp_path, "name: a\nmodes: lora")


def test_what_is_missing_or_odd_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks name"):
        parse(tmp_path, "rate: 1")
    with pytest.raises(UserError, match="--rate needs a value"):
        parse(tmp_path, "name: a", "--rate")
    with pytest.raises(UserError, match="unexpected argument 'rate'"):
        parse(tmp_path, "name: a", "rate", "1")
    with pytest.raises(UserError, match="'rate' twice"):
        parse(tmp_path, "name: a\nrate: 1\nrate: 2")
    with pytest.raises(UserError, match="is not a YAML mapping"):
        parse(tmp_path, "just text")
    with pytest.raises(UserError, match="cannot read"):
        parse(tmp_path, "name: [")


def test_an_unknown_file_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'sft_cot_tny' \(did you mean 'sft_cot_tiny'\?\)"):
        config.find_config("sft_cot_tny")
    assert config.find_config("sft_cot_tiny") == config.find_config("sft_cot_tiny.yaml")


def test_help_shows_the_values_that_would_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, "name: a", "--rate", "7", "--help")
    assert stop.value.code == 0
    assert "--rate 7.0" in capsys.readouterr().out


RECIPES: dict[str, type] = {
    "sft_cot": SFTSettings,
    "sft_labels": SFTSettings,
    "sft_attributes": SFTSettings,
    "grpo": grpo.Settings,
    "context_vlm": context_ablation.Settings,
    "clip_caer": clip_settings.ContextSettings,
    "clip_captions": contrastive.Settings,
    "clip_dfer": clip_settings.Settings,
    "clip_finecliper": clip_settings.Settings,
    "clip_finetune": clip_settings.Settings,
    "clip_temporal": clip_settings.Settings,
    "synthesize": synthesize.Settings,
    "facial_r1_loop": loop.Settings,
}
SCRIPTS = {
    "context_vlm": "context_emotion",
    "clip_caer": "context_emotion",
    "clip_temporal": "clip_finetune",
    "clip_dfer": "clip_finetune",
    "clip_finecliper": "clip_finetune",
}  # where it is not the name of the configuration
SHIPPED = sorted((ROOT / "recipes/configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_settings_are_valid_and_begin_with_their_command(path: Path) -> None:
    recipe = next(name for name in RECIPES if name in path.stem)
    settings = config.from_dict(RECIPES[recipe], config.read_yaml(path), where=str(path))
    config.refuse_unused(settings, ())
    if recipe == "facial_r1_loop":  # each stage's own fields, over a configuration that is shipped
        for stage, kind in (
            ("sft", RECIPES["sft_cot"]),
            ("grpo", grpo.Settings),
            ("synthesize", RECIPES["synthesize"]),
        ):
            fields = dict(getattr(settings, stage))
            shipped = config.read_yaml(ROOT / f"recipes/configs/{fields.pop('config')}.yaml")
            config.from_dict(kind, shipped | fields, where=str(path))
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    # a recipe's default need not be named
    default = path.stem.endswith("_tiny") or path.stem == recipe
    assert (
        f"recipes/{SCRIPTS.get(recipe, recipe)}.py{'' if default else f' --config {path.stem}'}"
        in first
    )


def test_facial_r1_runs_as_published() -> None:
    path = ROOT / "recipes/configs/grpo_facial_r1.yaml"
    settings = config.from_dict(grpo.Settings, config.read_yaml(path), where="")
    assert (
        settings.num_generations,
        settings.beta,
        settings.learning_rate,
        settings.temperature,
        settings.max_new_tokens,
        settings.batch_size * settings.num_generations,
        settings.gradient_accumulation,
        settings.num_processes,
    ) == (8, 0.0, 2e-5, 1.0, 256, 8, 4, 8)
    assert {"format", "emotion", "au"} <= settings.rewards.keys()


def test_llava_runs_as_published() -> None:
    path = ROOT / "recipes/configs/sft_cot_llava.yaml"
    settings = config.from_dict(SFTSettings, config.read_yaml(path), where="")
    assert settings.num_processes is not None
    assert (
        settings.batch_size * settings.gradient_accumulation * settings.num_processes,
        settings.lora_rank,
        settings.lora_alpha,
        settings.lora_dropout,
        settings.learning_rate,
        settings.weight_decay,
        settings.epochs,
        settings.trainable,
    ) == (
        128,
        8,
        16,
        0.05,
        5e-4,
        0.05,
        20,
        {"vision_tower": "lora", "projector": "full", "language_model": "lora"},
    )
    assert (settings.warmup_steps, settings.prompt) == (0.03, "expllm_words")


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    config.save_config(build(rate=1.0), tmp_path)
    config.check_config(build(rate=1.0), tmp_path)
    with pytest.raises(UserError, match=r"rate = 1\.0, but now rate = 2\.0"):
        config.check_config(build(rate=2.0), tmp_path)
    config.check_config(build(rate=2.0), tmp_path, ignore=("rate",))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_damaged_settings_are_one_message(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot read .*settings\.json"):
        config.check_config(build(), tmp_path)


# --- the meaning of every field -------------------------------------------------------------------


def recipe_of(path: Path) -> type:
    """The settings of a shipped YAML file."""
    return RECIPES[next(name for name in RECIPES if name in path.stem)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_comments_are_the_help_texts(path: Path) -> None:
    """A comment behind a value is the meaning of its field, as --help prints it; why it has that
    value stands on the line above."""
    cls, commented = recipe_of(path), set()
    for line in path.read_text(encoding="utf-8").splitlines():
        setting = re.match(r"(\w+):[^#]*?(?: # (.*))?$", line)
        if setting and setting[2] is not None:
            assert setting[2] == config.comment(cls, setting[1])
            commented.add(setting[1])
    if path.stem.endswith("_tiny"):
        assert commented >= set(config.read_yaml(path)) - {"limitations"}


# Settings whose options argparse explains, in vlmface/rationale/cli.py and vlmface/cli/.
SETTINGS = {k: v for k, v in ALL_SETTINGS.items() if k not in ("rationale", "gateway", "lmms_eval")}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_field_has_a_help_text(name: str) -> None:
    cls = SETTINGS[name]
    texts = help_texts(cls)
    assert not [setting for setting, text in texts.items() if not text]
    for base in cls.__mro__:
        documented = re.findall(r"^        (\w+):", vars(base).get("__doc__") or "", re.M)
        assert set(documented) <= set(texts), base
    page = config.describe_fields(cls, {})
    for setting, kind in kinds(cls).items():
        assert f"--{setting}" in page and f"{texts[setting]} ({describe(kind)})" in page


def test_help_shows_meaning_type_default_and_range(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        load_script("recipes/sft_cot.py").main(["--help"])
    page = capsys.readouterr().out
    assert "--lora_rank 32\n      rank of the adapters (a whole number at least 1)" in page
    with pytest.raises(SystemExit):
        load_script("eval/robustness.py").main(["--help"])
    page = capsys.readouterr().out
    assert "--n 200\n      rows of the benchmark" in page and "--model  (required)" in page
