"""Train, evaluate and compare with what faces_ext adds, in a process that has it installed.

    python use_them.py BASE FOLDER

BASE is a checkpoint; FOLDER has data/ (portraits) and bench.yaml. What is learnt goes there too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.scripts import load_script, to_argv

from vlmface import cli, data, families, label_spaces, label_texts, prompts
from vlmface.train import rewards

base, folder = sys.argv[1], Path(sys.argv[2])

# Each by its name.
space = label_spaces.space("mood3")
assert space.match("Sunny") == "bright"
assert prompts.load("asks_mood").space == space
assert label_texts.load("shows_mood").space == space
assert "portraits" in data.names() and data.shows_faces("portraits")
assert [item.weight for item in rewards.parse({"mood": {"wrong": -1.0}})] == [0.5]

common = {
    "dataset": "portraits",
    "dataset_root": folder / "data",
    "benchmark": folder / "bench.yaml",
    "warmup_steps": 0,
    "max_new_tokens": 8,
}
fine_tuning = {**common, "prompt": "asks_mood", "batch_size": 4, "save_steps": 500}


def main(script: str, **settings: object) -> None:
    """The recipe's real main()."""
    assert load_script(script).main(to_argv(settings)) == 0


main(
    "recipes/sft_attributes.py",
    **fine_tuning,
    base_model=base,
    output_dir=folder / "sft",
    epochs=40,
    learning_rate=5e-3,
    vision_tower="frozen",
    lora_rank=16,
    lora_alpha=32,
    lora_dropout=0.0,
    train_embeddings=True,
)
main(
    "recipes/grpo.py",
    **common,
    init_from=folder / "sft",
    output_dir=folder / "grpo",
    rewards="{format: 1, mood: {weight: 2, wrong: -1}}",
    num_generations=2,
    batch_size=2,
    max_steps=1,
    save_steps=1,
)
main(
    "eval/run.py",
    benchmark=folder / "bench.yaml",
    dataset_root=folder / "data",
    model=folder / "grpo",
    output_dir=folder / "again",
)

# A checkpoint of the package's own family.
corpus = [str(prompts.load("asks_mood").messages()), "USER: ASSISTANT:", *space.labels] * 20
families.get("face_llava").build_tiny(folder / "face_llava", corpus)
main(
    "recipes/sft_attributes.py",
    **fine_tuning,
    base_model=folder / "face_llava",
    output_dir=folder / "family",
    epochs=1,
)
runs = [str(folder / "sft"), str(folder / "again")]
assert cli.main(["compare", *runs, "--output_dir", str(folder / "compared")]) == 0
