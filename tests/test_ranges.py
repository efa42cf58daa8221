"""Every setting has a range, which every way to make settings holds to."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
import typing
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from helpers.scripts import ROOT, load_script

from vlmface import cli, data
from vlmface.data import mixture, option_checks, options
from vlmface.errors import UserError
from vlmface.evaluate import faithfulness, landmarks, robustness, sweep
from vlmface.evaluate import run as evaluation
from vlmface.pipelines import context_ablation, loop, synthesize
from vlmface.rationale.types import BuildSettings
from vlmface.serving.gateway.settings import Settings as Gateway
from vlmface.train import checks, grpo, rewards
from vlmface.train.clip import contrastive
from vlmface.train.clip import settings as clip
from vlmface.train.settings import SFTSettings
from vlmface.utils import config
from vlmface.utils.ranges import Checked, Count, Range, Warmup, alternatives, bare, kinds, range_of

sys.path.append(str(ROOT / "eval/lmms_eval"))  # its script imports a file beside it
SETTINGS: dict[str, type] = {
    "sft_cot": SFTSettings,
    "sft_labels": SFTSettings,
    "sft_attributes": SFTSettings,
    "context_vlm": context_ablation.Settings,
    "grpo": grpo.Settings,
    "clip_finetune": clip.Settings,
    "clip_caer": clip.ContextSettings,
    "clip_captions": contrastive.Settings,
    "synthesize": synthesize.Settings,
    "facial_r1_loop": loop.Settings,
    "rationale": BuildSettings,
    "run": evaluation.Settings,
    "faithfulness": faithfulness.Settings,
    "robustness": robustness.Settings,
    "sweep": sweep.Settings,
    "landmarks": landmarks.Settings,
    "fit_aus": load_script("recipes/fit_aus.py").Settings,
    "lmms_eval": load_script("eval/lmms_eval/generate.py").Settings,
    "gateway": Gateway,
}
NUMBERS = [
    (name, field_, kind)
    for name, cls in SETTINGS.items()
    for field_, kind in kinds(cls).items()
    if any(bare(one)[0] in (int, float) for one in alternatives(kind))
]


def test_no_class_of_settings_is_left_out() -> None:
    """All subclasses of Checked, and all dataclasses named Settings, are in the table."""

    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(one) for one in cls.__subclasses__()))

    modules = {f"{cls.__module__}.{cls.__qualname__}" for cls in SETTINGS.values()}
    bases = {
        "vlmface.utils.ranges.Checked",
        *(
            f"vlmface.train.settings.{name}Settings"
            for name in (
                "Run",
                "Evaluation",
                "Selection",
                "Validation",
                "Optimizer",
                "Policy",
                "Dataset",
                "Balance",
                "Vote",
                "Augmentation",
                "Evidence",
            )
        ),
        "vlmface.train.clip.settings.Training",
    }
    for path in (ROOT / "vlmface").rglob("*.py"):
        if re.search(r"^class .*\(.*(Checked|Settings)\b", path.read_text("utf-8"), re.M):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    ours = {
        f"{cls.__module__}.{cls.__qualname__}"
        for cls in below(Checked)
        if cls.__module__.startswith("vlmface.")
    }
    assert ours - bases <= modules
    for path in [*(ROOT / "vlmface").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "class Settings:" not in text, f"{path} has settings that are not Checked"


@pytest.mark.parametrize(("name", "field_", "kind"), NUMBERS, ids=lambda one: str(one)[:40])
def test_every_number_declares_a_range(name: str, field_: str, kind: Any) -> None:
    for one in alternatives(kind):
        if bare(one)[0] in (int, float):
            assert range_of(one) is not None, f"{name}: {field_} has no range"


def sample(name: str) -> dict[str, Any]:
    """Values of the required fields of a class of settings."""
    known = {
        "dataset": "synth",
        "benchmark": "synth",
        "benchmarks": ["synth"],
        "prompt": "face_cot",
        "models": ["a"],
        "prompts": ["face_cot"],
        "rewards": {"format": 1},
        "probe_data": "synth",
        "sft": {},
        "grpo": {},
        "synthesize": {},
        "config": "x",
    }
    required = [
        f.name
        for f in fields(SETTINGS[name])
        if f.default is MISSING and f.default_factory is MISSING
    ]
    values = {field_: known.get(field_, "x") for field_ in required}
    if name in ("clip_finetune", "clip_caer"):
        values |= {"prompt": "clip_emotion", "head": "linear"}
    return values


def outside(limit: Range) -> list[float]:
    """Numbers that a range does not hold."""
    found = [math.nan, math.inf, -math.inf]
    found += [] if limit.min is None else [limit.min - 1]
    found += [] if limit.above is None else [limit.above, limit.above - 1]
    found += [] if limit.max is None else [limit.max + 1]
    found += [] if limit.below is None else [limit.below, limit.below + 1]
    return found


@pytest.mark.parametrize(("name", "field_", "kind"), NUMBERS, ids=lambda one: str(one)[:40])
def test_a_number_out_of_range_is_refused_by_name(name: str, field_: str, kind: Any) -> None:
    cls, values = SETTINGS[name], sample(name)
    limits = [(bare(one)[0], limit) for one in alternatives(kind) if (limit := range_of(one))]
    tried = 0
    for inner, limit in limits:
        for number in outside(limit):
            value = int(number) if inner is int and math.isfinite(number) else number
            if inner is int and not math.isfinite(number):
                continue
            if any(other.holds(value) for _, other in limits):  # of the other alternative
                continue
            tried += 1
            for make in (
                lambda v: config.from_dict(cls, values | {field_: v}, where="a test"),
                lambda v: config.from_dict(cls, values | {field_: str(v)}, where="a test"),
                lambda v: cls(**values | {field_: v}),
            ):
                with pytest.raises(UserError) as error:
                    make(value)
                said = str(error.value)
                assert said.startswith(f"{field_} is ") and "must be" in said and "\n" not in said
                assert str(value) in said
    assert tried


@pytest.mark.parametrize("name", [n for n in SETTINGS if n != "gateway"])
def test_the_defaults_are_in_range(name: str) -> None:
    SETTINGS[name](**sample(name))


@dataclass(frozen=True)
class Small(Checked):
    size: Count = 1
    warmup: Warmup = 0
    rates: dict[str, Annotated[float, Range(above=0)]] = field(default_factory=dict)
    steps: list[Count] = field(default_factory=list)
    alpha: Annotated[float, Range(min=0, max=1)] | Literal["auto"] = 1.0


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"warmup": "0.05"}, 0.05),
        ({"warmup": "20"}, 20),
        ({"warmup": 0}, 0),
        ({"alpha": "auto"}, "auto"),
        ({"alpha": "0.5"}, 0.5),
        ({"alpha": 1}, 1.0),
        ({"steps": "1,2"}, [1, 2]),
        ({"steps": []}, []),
        ({"rates": "{image: 1e-3}"}, {"image": 1e-3}),
    ],
)
def test_ranges_reach_into_unions_lists_and_mappings(values: dict, found: Any) -> None:
    (name,) = values
    assert getattr(config.from_dict(Small, values, where="a test"), name) == found


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"warmup": 1.5},
            "warmup is 1.5, but must be a whole number at least 0 or a number at least 0 "
            "and below 1",
        ),
        ({"warmup": -5}, "warmup is -5"),
        (
            {"alpha": "best"},
            "alpha is 'best', but must be a number at least 0 and at most 1 or auto",
        ),
        ({"alpha": "nan"}, "alpha is nan"),
        ({"steps": [0]}, "steps is 0, but must be a whole number at least 1"),
        ({"rates": {"image": 0}}, "rates.image is 0, but must be a number above 0"),
        ({"rates": {"image": "fast"}}, "rates.image is 'fast'"),
        ({"size": 10**30}, "size is 1000000"),
        ({"size": "9" * 400}, "size is 999"),
        ({"size": True}, "size is True"),
        ({"size": 2.0}, "size is 2.0"),
        ({"size": "2024-13-01"}, "size is '2024-13-01'"),
    ],
)
def test_what_is_outside_is_said_in_one_line(values: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        config.from_dict(Small, values, where="a test")
    assert said in str(error.value) and "\n" not in str(error.value)


# --- settings that contradict each other ----------------------------------------------------------


def made(name: str, **changes: Any) -> Any:
    return config.from_dict(SETTINGS[name], sample(name) | changes, where="a test")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "sft_cot",
            {"save_steps": 3, "logging_steps": 2},
            "save_steps is 3, but must be a multiple",
        ),
        ("clip_finetune", {"save_steps": 15}, "save_steps is 15"),
        ("clip_captions", {"save_steps": 15}, "save_steps is 15"),
        ("grpo", {"save_steps": 3, "logging_steps": 2}, "save_steps is 3"),
        (
            "grpo",
            {"max_steps": 10, "warmup_steps": 11, "lr_scheduler": "linear"},
            "warmup_steps is 11",
        ),
        ("grpo", {"max_length": 100, "max_new_tokens": 100}, "no room is left"),
        ("grpo", {"rewards": {"format": math.nan}}, "reward format: weight is nan"),
        ("grpo", {"rewards": {"repetition": {"n": 2.5}}}, "reward repetition: n is 2.5"),
        (
            "sft_cot",
            {"vision_tower": "frozen", "projector": "frozen", "language_model": "frozen"},
            "nothing would be",
        ),
        (
            "context_vlm",
            {"projector": "frozen", "language_model": "frozen"},
            "nothing would be trained",
        ),
        ("grpo", {"language_model": "frozen"}, "nothing would be trained"),
        ("clip_finetune", {"head": "text"}, "nothing would be trained"),
        (
            "clip_captions",
            {"image_tower": "frozen", "text_tower": "frozen"},
            "nothing would be trained",
        ),
        ("clip_captions", {"batch_size": 1}, "batch_size is 1"),
        ("clip_captions", {"probe_splits": ["test", "test"]}, "probe_splits is"),
        ("clip_finetune", {"num_frames": 4}, "temporal is none"),
        (
            "clip_finetune",
            {"learning_rates": {"temporal": 1.0}},
            "learning_rates has temporal, but has no",
        ),
        ("clip_finetune", {"lr_scheduler": "steps", "milestones": [5, 12]}, "milestones has 12"),
        (
            "run",
            {"served_model_name": "NAME"},
            "served_model_name is NAME, but x is not a server's URL",
        ),
        ("run", {"scoring": "loud"}, "scoring is 'loud', but must be generate | likelihood | both"),
        ("sweep", {"by": "luck"}, "by is 'luck'"),
        ("facial_r1_loop", {"sft": {"n_eval": 4}}, "sft has n_eval 4 and grpo None"),
        ("facial_r1_loop", {"grpo": {"num_generations": 1}}, "grpo: num_generations is 1"),
        ("facial_r1_loop", {"synthesize": {"model": "runs/x"}}, "synthesize has model, which the"),
        (
            "facial_r1_loop",
            {"sft": {"balance_by": "tasks"}},
            "sft: balance_by is 'tasks', but has",
        ),
        ("facial_r1_loop", {"sft": {"blance_by": "tasks"}}, "sft: there is no setting 'blance_by'"),
        (
            "facial_r1_loop",
            {"sft": {"prompt": ["face_cot", "expllm"]}},
            "but grpo trains one: give one",
        ),
        # options of data sets
        (
            "sft_cot",
            {"dataset_options": {"n": 5}},
            "'n' (5), which is a setting of its own: use n_train",
        ),
        ("grpo", {"dataset_options": {"split": "test"}}, "use dataset_split"),
        ("clip_finetune", {"dataset_options": {"root": "/x"}}, "use dataset_root"),
        ("synthesize", {"dataset_options": {"n": 5}}, "which is a setting of its own: use n"),
        ("sft_cot", {"dataset_options": {"sede": 1}}, "no option 'sede' (did you mean 'seed'?)"),
        (
            "sft_cot",
            {"dataset_options": {"seed": -1}},
            "dataset_options: seed is -1, but must be a whole",
        ),
        ("sft_cot", {"dataset_options": {"seed": "one"}}, "dataset_options: seed is 'one'"),
        ("sft_cot", {"dataset_options": {"seed": True}}, "dataset_options: seed is True"),
        ("sft_cot", {"dataset_options": {5: 1}}, "synth has no option 5"),
        ("sft_cot", {"dataset": "nothing"}, "there is no data set 'nothing'"),
        (
            "sft_cot",
            {"dataset": "bp4d", "dataset_options": {"aus": "1"}},
            "must be a list of whole numbers",
        ),
        (
            "sft_cot",
            {"dataset": "bp4d", "dataset_options": {"aus": [1, "2"]}},
            "a list of whole numbers",
        ),
        ("sft_cot", {"dataset": "table", "dataset_options": {"columns": ["image"]}}, "a mapping"),
        (
            "sft_cot",
            {"dataset": "dfew", "dataset_options": {"num_frames": 0}},
            "num_frames is 0, but must be",
        ),
        (
            "sft_cot",
            {"dataset": "mix.yaml", "dataset_options": {"size": 4}},
            "mix.yaml has no option 'size'",
        ),
        ("rationale", {"dataset_options": {"n": 4}}, "use n"),
    ],
)
def test_settings_that_contradict_are_refused(name: str, changes: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        made(name, **changes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_warm_up_ends_within_the_run() -> None:
    settings = made("sft_cot", batch_size=4, epochs=2, warmup_steps=5)
    assert checks.steps(settings, 8) == 4
    with pytest.raises(UserError, match=r"warmup_steps is 5, but the run has 4 step\(s\)"):
        checks.warmup(settings, 4)
    checks.warmup(made("sft_cot", warmup_steps=0.5), 1)


def test_the_shipped_warm_ups_are_what_they_were_recorded_with() -> None:
    """A share of the default run is as many steps as the figures of the docs were made with."""
    rows = {
        "sft_cot_tiny": (4000, 20),
        "sft_attributes_tiny": (16000, 20),
        "context_vlm_tiny": (2500, 20),
        "clip_finetune_tiny": (4000, 20),
        "clip_caer_tiny": (2500, 20),
        "clip_temporal_tiny": (900, 20),
        "clip_captions_tiny": (12000, 50),
    }
    for name, (n, expected) in rows.items():
        values = config.read_yaml(config.find_config(name))
        cls = next(
            cls for key, cls in SETTINGS.items() if key in name or name.startswith("clip_te")
        )
        if name.startswith("clip_te"):
            cls = clip.Settings
        settings = config.from_dict(cls, values, where=name)
        assert math.ceil(settings.warmup_steps * checks.steps(settings, n)) == expected, name
    values = config.read_yaml(config.find_config("grpo_tiny"))
    assert math.ceil(values["warmup_steps"] * values["max_steps"]) == 5


def test_what_a_machine_cannot_do_is_refused_before_a_run(base: Path, tmp_path: Path) -> None:
    main = load_script("recipes/sft_cot.py").main
    for words, said in (
        (["--liger", "true"], "liger is true, but its kernels run on GPUs only"),
        (
            ["--quantization", "nf4", "--language_model", "full", "--train_embeddings", "false"],
            "quantization is nf4",
        ),
    ):
        with pytest.raises(UserError, match=said):
            main(["--base_model", str(base), "--output_dir", str(tmp_path / "run"), *words])
    assert not (tmp_path / "run").exists()


# --- every door -----------------------------------------------------------------------------------

SHORT = (
    "--n_train",
    "8",
    "--n_eval",
    "2",
    "--epochs",
    "1",
    "--batch_size",
    "4",
    "--logging_steps",
    "1",
    "--save_steps",
    "1",
    "--max_new_tokens",
    "8",
)
CASES = [
    ("--batch_size", "0"),
    ("--logging_steps", "0"),
    ("--lora_rank", "0"),
    ("--eval_batch_size", "0"),
    ("--max_new_tokens", "0"),
    ("--lora_dropout", "2"),
    ("--learning_rate", "-1"),
    ("--seed", "-1"),
    ("--warmup_steps", "-5"),
    ("--warmup_steps", "3"),
    ("--epochs", "0"),
    ("--epochs", "nan"),
    ("--learning_rate", "inf"),
    ("--learning_rate", "1e400"),
    ("--n_train", "0"),
    ("--n_eval", "-2"),
    ("--max_length", "0"),
    ("--gradient_accumulation", "0"),
    ("--num_processes", "0"),
    ("--dataloader_workers", "-1"),
    ("--num_frames", "0"),
    ("--max_pixels", "0"),
    ("--lora_alpha", "0"),
    ("--weight_decay", "-0.1"),
    ("--max_grad_norm", "-1"),
    ("--seed", str(2**32)),
    (
        "--vision_tower",
        "frozen",
        "--projector",
        "frozen",
        "--language_model",
        "frozen",
        "--train_embeddings",
        "false",
    ),
    ("--report_to", "nothing"),
    ("--liger", "true"),
    ("--save_steps", "3", "--logging_steps", "2"),
    ("--dataset_options", "{n: 5}"),
    ("--dataset_options", "{seed: x}"),
    ("--balance_by", "tasks"),
]


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_a_run_is_refused_before_it_touches_its_folder(
    words: tuple[str, ...], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load_script("recipes/sft_cot.py").main
    out = tmp_path / "run"
    with pytest.raises(UserError) as error:
        main([*SHORT, "--base_model", str(base), "--output_dir", str(out), *words])
    assert "\n" not in str(error.value)
    assert words[0].removeprefix("--") in str(error.value) or "nothing would" in str(error.value)
    # A warm-up is only too long for rows that have been read; no model has answered then.
    assert not list(tmp_path.rglob("predictions*"))
    if words != ("--warmup_steps", "3"):
        assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("synth", "--n", "0"),
        ("synth", "--seed", "-1"),
        ("synth", "--n", "nan"),
        ("predict", "x.jpg", "--model", "m", "--batch_size", "0"),
        ("predict", "x.jpg", "--model", "m", "--batch_size", "two"),
        ("serve", "run", "--port", "70000"),
        ("serve", "run", "--max_num_seqs", "0"),
        ("gateway", "--model", "m", "--rate", "0"),
        ("gateway", "--model", "m", "--max_mb", "inf"),
        ("gateway", "--model", "m", "--port", "-1"),
        ("gateway", "--model", "m", "--drain", "nan"),
        ("data", "crop", "synth", "--size", "0"),
        ("data", "crop", "synth", "--margin", "-1"),
        ("data", "check", "synth", "--workers", "0"),
        ("inspect", "--n", "-1"),
        ("rationale", "build", "--dataset", "synth", "--output_dir", "o", "--n", "0"),
        ("rationale", "build", "--dataset", "synth", "--output_dir", "o", "--max_words", "some"),
        (
            "rationale",
            "build",
            "--dataset",
            "synth",
            "--output_dir",
            "o",
            "--duplicate_threshold",
            "nan",
        ),
    ],
    ids=" ".join,
)
def test_the_command_line_holds_to_ranges(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name, value = words[-2].removeprefix("--"), words[-1]
    assert line.replace("'", "").startswith(f"error: {name} is {value}, but must be ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("eval/run.py", "--benchmark", "synth", "--model", "m", "--n", "0"),
        (
            "eval/sweep.py",
            "--models",
            "a",
            "--prompts",
            "b",
            "--output_dir",
            "o",
            "--finalists",
            "0",
        ),
        ("recipes/pretrain_tiny.py", "--faces", "0"),
        ("eval/baseline_cnn.py", "--epochs", "0"),
        ("app/demo.py", "--port", "99999"),
    ],
)
@pytest.mark.slow
def test_scripts_end_with_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / words[0]), *words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{words[-2].removeprefix('--')} is {words[-1]}, but must be" in line
    assert "Traceback" not in done.stderr


def test_help_shows_the_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("recipes/sft_cot.py").main(["--help"])
    page = capsys.readouterr().out
    assert (
        "--batch_size 16\n      rows per process and micro-step (a whole number at least 1)" in page
    )
    with pytest.raises(SystemExit):
        evaluation.main(["--help"])
    assert re.search(
        r"--scoring 'generate'\n .* \(generate \| likelihood \| both\)", capsys.readouterr().out
    )


# --- options of data sets -------------------------------------------------------------------------


def test_options_are_checked_wherever_data_are_read(tmp_path: Path) -> None:
    for wrong in ({"seed": "x"}, {"seed": -1}, {"size": 1.5}):
        with pytest.raises(UserError, match=r"synth: .* must be"):
            data.load("synth", n=1, **wrong)
    path = tmp_path / "mix.yaml"
    path.write_text(json.dumps({"sources": [{"dataset": "synth", "weight": 0}]}))
    with pytest.raises(UserError, match=r"source 1: weight is 0, but must be a number above 0"):
        mixture.read(path)
    path.write_text(json.dumps({"sources": [{"dataset": "synth"}], "seed": -1}))
    with pytest.raises(UserError, match=r"seed is -1"):
        mixture.read(path)


@pytest.mark.parametrize("name", data.names())
def test_the_defaults_of_all_options_are_of_their_types(name: str) -> None:
    import inspect

    for option, kind in option_checks.options_of(name).items():
        assert kind is not Any, f"{name}: the type of {option} cannot be evaluated"
        read = data.dataset_module(name).read
        parameters = inspect.signature(options.options_class(read) or read).parameters
        parameter = parameters.get(option)
        if parameter is not None and parameter.default is not parameter.empty:
            options.check_type(option, kind, parameter.default)
    assert typing.get_origin(option_checks.options_of("bp4d")["aus"]) is not None


def test_an_option_may_have_any_name() -> None:
    option_checks.check_options("bp4d", {"unknown": 9, "offset": 1}, reserved={})
    with pytest.raises(UserError, match="unknown is 'x', but must be a whole number"):
        option_checks.check_options("bp4d", {"unknown": "x"}, reserved={})


def test_rewards_are_converted() -> None:
    (one,) = rewards.parse({"length_penalty": {"weight": "2", "words": 60}})
    assert one.weight == 2.0 and one.options == {"words": 60}
