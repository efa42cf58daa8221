"""Write benchmarks as tasks of lmms-eval.

python eval/lmms_eval/generate.py --output_dir tasks --benchmarks rafdb --dataset_root /data/RAF-DB
lmms-eval --include_path tasks --tasks vlmface_rafdb --model ...

Each benchmark becomes vlmface_NAME.yaml and, beside it, vlmface_NAME.json, which says where its
data are; vlmface-all.yaml is the group of all tasks in the folder. No image is copied, and what is
asked and scored stays in the benchmark's own files, which the tasks read when they run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vlmface_tasks  # the file beside this one
import yaml

from vlmface import __version__, benchmarks, prompts
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.utils import config, distributed
from vlmface.utils.files import atomic_write, make_output_folder
from vlmface.utils.ranges import Checked, Count

# Not "vlmface": lmms-eval takes a task for a folder if there is one of that name, as beside or in a
# checkout.
GROUP = "vlmface-all"
# Asked where no --prompt is given: of each label space the first. All but those of attributes name
# the candidates, so that models which were not trained with them can answer.
PROMPTS = (
    "face_cot",
    "expllm_label",
    "facescan_gender",
    "facescan_age",
    "facescan_race",
    "synth_ancestry",
    "emotic",
)


@dataclass(frozen=True)
class Settings(Checked):
    """The command line. `benchmarks` are by default those that need no data; of `prompt`, one or
    several, each benchmark takes the first of each label space that it scores."""

    output_dir: str
    benchmarks: list[str] = field(default_factory=list)
    dataset_root: str | None = None
    prompt: list[str] = field(default_factory=list)
    max_new_tokens: Count = 256


def main(argv: Sequence[str]) -> int:
    """`--output_dir DIR [--benchmarks NAME,...] [--dataset_root DIR] [--prompt ID,...] ...`"""
    distributed.check_alone("eval/lmms_eval/generate.py")
    usage = f"python eval/lmms_eval/generate.py {main.__doc__}"
    settings = config.parse_args(Settings, argv, usage=usage)
    if settings.dataset_root and not settings.benchmarks:
        raise UserError(
            f"dataset_root is {settings.dataset_root}, but no benchmark is named: say which of "
            "them is on its data with --benchmarks NAME,..."
        )
    folder = _folder(settings.output_dir)
    by_name = {_stored(name): prompts.load(name) for name in settings.prompt or PROMPTS}
    prompts.check_images(list(by_name.values()), 0, 1)  # tasks show pictures as they are
    for name in settings.benchmarks or without_data(list(by_name.values())):
        write(folder, _stored(name), settings, by_name)
    tasks = sorted(path.stem for path in folder.glob("vlmface_*.yaml"))
    _write_yaml(folder / f"{GROUP}.yaml", {"group": GROUP, "task": tasks})
    print(f"next: lmms-eval --include_path {folder} --tasks {GROUP} --model ...")
    return 0


def without_data(candidates: list[prompts.Prompt]) -> list[str]:
    """The benchmarks on rendered pictures whose label spaces some of the prompts ask for."""
    spaces = {prompt.space.id for prompt in candidates}
    return [
        name
        for name in benchmarks.benchmark_names()
        for benchmark in [benchmarks.load_benchmark(name)]
        if not benchmark.needs_root and spaces & {space.id for space in benchmark.spaces}
    ]


def write(folder: Path, name: str, settings: Settings, by_name: dict[str, prompts.Prompt]) -> None:
    """The two files of a benchmark; its data are looked at first. Raises UserError for data that
    are not as they should be, and if none of the prompts asks for what the benchmark scores."""
    benchmark = benchmarks.load_benchmark(name)
    if not re.fullmatch(r"\w+", benchmark.id):
        raise UserError(
            f"benchmark {name} has the id {benchmark.id!r}: lmms-eval's names are of letters, "
            "digits and _ alone"
        )
    scored = answering.scored_prompts(benchmark, list(by_name.values()))
    names = [
        next(key for key, prompt in by_name.items() if prompt is scored_prompt)
        for scored_prompt in scored
    ]
    root = settings.dataset_root if benchmark.needs_root else None
    index = {
        "benchmark": name,
        "dataset_root": None if root is None else str(Path(root).expanduser().resolve()),
        "prompts": [
            {"prompt": key, "sha": prompt.sha} for key, prompt in zip(names, scored, strict=True)
        ],
    }
    task = f"vlmface_{benchmark.id}"
    questions = len(_docs(index))
    atomic_write(folder / f"{task}.json", json.dumps(index) + "\n")
    _write_yaml(folder / f"{task}.yaml", _task(task, folder, benchmark, scored, settings))
    ids = ", ".join(prompt.id for prompt in scored)
    print(f"{task}: {questions // len(scored):,} faces, asked {ids}")


def _task(
    task: str,
    folder: Path,
    benchmark: benchmarks.Benchmark,
    scored: Sequence[prompts.Prompt],
    settings: Settings,
) -> dict[str, Any]:
    figures = {
        name: figure
        for prompt in scored
        for name, figure in vlmface_tasks.figures(benchmark, prompt).items()
    }
    return {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{task}.json")}},
        "test_split": "test",
        "process_docs": _Function("docs"),
        "output_type": "generate_until",
        "doc_to_visual": _Function("doc_to_visual"),
        "doc_to_text": _Function("doc_to_text"),
        "doc_to_messages": _Function("doc_to_messages"),
        "doc_to_target": _Function("doc_to_target"),
        "generation_kwargs": {
            "max_new_tokens": settings.max_new_tokens,
            "temperature": 0,
            "do_sample": False,
            "until": [],  # by default an answer would end at its first empty line
        },
        "reasoning_tags": "none",  # by default the action units in <think> would be cut out
        "process_results": _Function("process_results"),
        "metric_list": [
            {
                "metric": name,
                "aggregation": _Function("aggregate"),
                "higher_is_better": figure.higher_is_better,
            }
            for name, figure in figures.items()
        ],
        "metadata": {
            "version": __version__,
            "benchmark": benchmark.id,
            "prompts": {prompt.id: prompt.sha for prompt in scored},
        },
    }


def _docs(index: dict[str, Any]) -> Any:
    import datasets

    return vlmface_tasks.docs(datasets.Dataset.from_list([index]))


def _stored(name: str) -> str:
    """A name as it is; a file's path so that it can be read from any folder."""
    is_file = name.endswith((".yaml", ".yml"))
    return str(Path(name).expanduser().resolve()) if is_file else name


def _folder(output_dir: str) -> Path:
    folder = Path(output_dir).expanduser().resolve()
    make_output_folder(folder)
    return folder


# --- YAML -----------------------------------------------------------------------------------------


class _Function(str):
    """A function of vlmface_tasks.py; lmms-eval finds it by the path of the file."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that knows functions."""


def _represent(dumper: yaml.SafeDumper, name: _Function) -> yaml.ScalarNode:
    module = Path(vlmface_tasks.__file__).resolve().with_suffix("")
    return dumper.represent_scalar("!function", f"{module}.{name}")


_Dumper.add_representer(_Function, _represent)


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200)
    head = "# Written by eval/lmms_eval/generate.py: change the benchmark and write it again.\n"
    atomic_write(path, head + text)


if __name__ == "__main__":
    config.run_main(main)
