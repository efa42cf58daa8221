"""Images are made smaller before rows are left out, for everybody who loads the processor."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import llava, qwen_vl, smolvlm
from helpers.samples import FACES, picture, samples
from helpers.scripts import Recipe

from vlmface import encode, manifest, prompts
from vlmface.rationale import rules
from vlmface.train import budget
from vlmface.train.rows import encode_rows

PROMPT = prompts.load("face_cot")
CORPUS = [rules.write(aus, emotion, seed=seed) for aus, emotion in FACES for seed in range(20)]
CORPUS += [str(PROMPT.messages()), "helpful assistant user system"] * 20


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token is 8 x 8 pixels; images may have 500 of them."""
    folder = tmp_path_factory.mktemp("qwen")
    qwen_vl.build_tiny(folder, CORPUS, max_pixels=500 * 64)
    return folder


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile is 32 x 32 pixels and 4 tokens; images are enlarged to 4 x 4 tiles and the whole."""
    folder = tmp_path_factory.mktemp("smol")
    smolvlm.build_tiny(folder, CORPUS, longest_edge=128)
    return folder


def rows(*sizes: tuple[int, int], rationale: str | None = None) -> Any:
    """FaceSamples with pictures of these sizes; the last one has the rationale, if one is given."""
    from datasets import Dataset

    from vlmface.schema import features

    found = samples(len(sizes))
    for i, (sample, size) in enumerate(zip(found, sizes, strict=True)):
        buffer = io.BytesIO()
        picture(i, size).save(buffer, "PNG")
        sample.image = {"bytes": buffer.getvalue(), "path": None}
    if rationale is not None:
        found[-1].rationale, found[-1].rationale_source = rationale, "human"
    return Dataset.from_list([sample.to_row() for sample in found], features=features())


def encoded(data: Any, processor: Any, family: Any, max_length: int) -> tuple[Any, dict[str, int]]:
    return encode_rows(data, processor, family, PROMPT, max_length=max_length, seed=0)


def fit(data: Any, processor: Any, family: Any, max_length: int) -> None:
    budget.fit_pixels(data, processor, family, [PROMPT], max_length=max_length, seed=0)


def test_images_shrink_as_far_as_needed_and_no_row_is_lost(
    qwen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = qwen_vl.load_processor(qwen)
    data = rows((40, 40), (160, 160), (400, 80), (40, 40))
    whole, _ = encoded(data, processor, qwen_vl, 10**6)
    images = [ids.count(processor.image_token_id) for ids in whole["input_ids"]]
    limit = max(whole["length"]) - 150
    assert images[1] == 400 and sum(length > limit for length in whole["length"]) == 2
    fit(data, processor, qwen_vl, limit)
    said = capsys.readouterr().out
    assert "otherwise 2 of 4 rows would not fit max_length" in said
    found, skipped = encoded(data, processor, qwen_vl, limit)
    assert len(found) == 4 and not skipped
    # Answers are whole, small images as they were, large ones as large as they may be.
    for before, after in zip(whole, found, strict=True):
        for labels in (before["labels"], after["labels"]):
            labels[:] = [label for label in labels if label != encode.IGNORED]
        assert before["labels"] == after["labels"]
    now = [ids.count(processor.image_token_id) for ids in found["input_ids"]]
    assert (now[0], now[3]) == (images[0], images[3])
    assert max(found["length"]) > limit - 25
    pixels = qwen_vl.describe_image(processor)["max_pixels"]
    assert f"max_pixels: lowered to {pixels:,}," in said
    row = encode.encode(processor, qwen_vl, PROMPT.messages(), picture(1, (160, 160)))
    assert len(row["pixel_values"]) / 4 == now[1] * 64 / qwen_vl.token_side(processor) ** 2


def test_what_fits_is_left_alone(qwen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processor = qwen_vl.load_processor(qwen)
    before = qwen_vl.describe_image(processor)
    fit(rows((40, 40), (160, 160)), processor, qwen_vl, 10**6)
    assert qwen_vl.describe_image(processor) == before and not capsys.readouterr().out


def test_a_hopeless_row_costs_the_others_nothing(qwen: Path) -> None:
    processor = qwen_vl.load_processor(qwen)
    before = qwen_vl.describe_image(processor)
    data = rows((160, 160), (160, 160), rationale="The brows are lowered (AU4). " * 200)
    whole, _ = encoded(data, processor, qwen_vl, 10**6)
    limit = whole["length"][0] + 5
    fit(data, processor, qwen_vl, limit)
    assert qwen_vl.describe_image(processor) == before
    found, skipped = encoded(data, processor, qwen_vl, limit)
    assert found["row"][:] == [0] and skipped == {"too_long": 1}


def test_no_image_gets_fewer_than_64_tokens(qwen: Path) -> None:
    processor = qwen_vl.load_processor(qwen)
    data = rows((160, 160))
    whole, _ = encoded(data, processor, qwen_vl, 10**6)
    fit(data, processor, qwen_vl, whole["length"][0] - 400 + 60)
    assert qwen_vl.image_tokens(processor, (160, 160)) == 400
    fit(data, processor, qwen_vl, whole["length"][0] - 400 + 70)
    assert 64 <= qwen_vl.image_tokens(processor, (160, 160)) <= 70


def test_tiles_become_fewer(smol: Path) -> None:
    processor = smolvlm.load_processor(smol)
    data = rows((40, 40), (100, 100))
    whole, _ = encoded(data, processor, smolvlm, 10**6)
    tiles = smolvlm.describe_image(processor)["tiles"]
    limit = max(whole["length"]) - 60
    fit(data, processor, smolvlm, limit)
    found, skipped = encoded(data, processor, smolvlm, limit)
    assert len(found) == 2 and not skipped
    assert 2 < smolvlm.describe_image(processor)["tiles"] < tiles


def test_families_with_one_image_size_have_no_budget(processor: Any) -> None:
    fit(rows((40, 40)), processor, llava, 10)


def test_a_run_shows_images_as_its_training_did(
    qwen: Path, sft_cot: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rendered faces of 96 x 96 pixels take 144 tokens."""
    words = ["--base_model", str(qwen), "--n_train", "8", "--n_eval", "2", "--epochs", "1"]
    probe, _ = encoded(rows((96, 96)), qwen_vl.load_processor(qwen), qwen_vl, 10**6)
    limit = probe["length"][0] - 30
    assert sft_cot(tmp_path, *words, "--max_length", str(limit)) == 0
    assert "rows would not fit max_length" in capsys.readouterr().out
    found, _ = manifest.load(tmp_path)
    assert 64 * 64 <= found.image["max_pixels"] < 96 * 96
    loaded = qwen_vl.describe_image(qwen_vl.load_processor(tmp_path))
    assert loaded["max_pixels"] == found.image["max_pixels"]
