"""Several pictures of a row, in every model type: the same tokens, answers and losses as the long
way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import BUILDERS, log_likelihoods, probabilities
from helpers.samples import picture
from PIL import Image

from vlmface import encode, families, prompts
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.train.trainer import all_tower_features

BOTH, ONE = prompts.load("context_emotion_both"), prompts.load("context_emotion_face")
# Of different shapes, so that a family with free resolutions has another grid for each.
ROWS = [[picture(k, (40 + 8 * k, 40)), picture(k + 10, (40, 64))] for k in range(3)]


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    corpus = [str(prompt.messages()) for prompt in (BOTH, ONE)] * 20
    BUILDERS[request.param](path, corpus)
    return path


@pytest.fixture(scope="module")
def predictor(folder: Path) -> LocalModel:
    return LocalModel.load(folder, prompt=BOTH, max_new_tokens=6)


def of_processor(predictor: LocalModel, images: list[Image.Image], prompt: Any) -> Any:
    """What the processor itself makes of the question with the pictures."""
    family, processor = predictor.family, predictor.processor
    if family.NAME == "paligemma":
        text = prompt.messages()[-1]["content"][-1]["text"]
        return processor(
            text=["<image>" * len(images) + text], images=[images], return_tensors="pt"
        )
    text = family.prompt_text(processor, prompt.messages())
    special = not text.startswith(processor.tokenizer.bos_token or "\0")
    return processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=special)


@pytest.mark.parametrize("row", ROWS[:2])
def test_a_row_is_what_the_processor_makes_of_it(predictor: LocalModel, row: Any) -> None:
    ours = encode.encode(predictor.processor, predictor.family, BOTH.messages(), row)
    theirs = of_processor(predictor, row, BOTH)
    assert ours["input_ids"] == theirs["input_ids"][0].tolist()
    count = predictor.family.image_tokens
    expected = sum(count(predictor.processor, one.size) for one in row)
    token = predictor.processor.tokenizer.convert_tokens_to_ids(predictor.processor.image_token)
    assert ours["input_ids"].count(token) == expected
    if "pixel_attention_mask" in ours:  # tiles: theirs lie behind each other, ours by image
        mask = ours["pixel_attention_mask"].flatten(2).any(-1)
        assert torch.equal(ours["pixel_values"][mask], theirs["pixel_values"][0])
    else:
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    if "image_grid_thw" in ours:
        assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
        assert len(set(map(tuple, ours["image_grid_thw"].tolist()))) == 2
    swapped = encode.encode(predictor.processor, predictor.family, BOTH.messages(), row[::-1])
    assert not torch.equal(swapped["pixel_values"], ours["pixel_values"])


def test_a_batch_answers_as_single_rows_and_full_passes_do(predictor: LocalModel) -> None:
    together = predictor.predict(ROWS, batch_size=3)
    apart = predictor.predict(ROWS, batch_size=1)
    assert [p.text for p in together] == [p.text for p in apart]
    for row, one, other in zip(ROWS, together, apart, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        expected = probabilities(log_likelihoods(predictor, row))
        assert one.probabilities == pytest.approx(expected, abs=1e-4)
    # The second picture is seen, and so is which one is first.
    for other in ([ROWS[0][0], ROWS[2][1]], ROWS[0][::-1]):
        first = log_likelihoods(predictor, ROWS[0])
        assert log_likelihoods(predictor, other) != pytest.approx(first, abs=1e-4)


def test_scores_behind_a_shared_prefix_are_those_of_full_passes(predictor: LocalModel) -> None:
    found = predictor.score(ROWS, prior=True, batch_size=3)
    for row, scores in zip(ROWS, found, strict=True):
        assert scores.log_likelihood == pytest.approx(log_likelihoods(predictor, row), abs=1e-3)
        grey = [Image.new("RGB", one.size, (128, 128, 128)) for one in row]
        assert scores.prior == pytest.approx(log_likelihoods(predictor, grey), abs=1e-3)
    *_, last = predictor.stream(ROWS[0])
    assert not isinstance(last, str)
    assert last.text == predictor.predict(ROWS[:1])[0].text


def test_features_of_the_tower_give_the_loss_of_pixels(predictor: LocalModel) -> None:
    from datasets import Dataset

    family, processor = predictor.family, predictor.processor
    encoded = [
        encode.encode(processor, family, BOTH.messages(), row, BOTH.space.labels[k])
        for k, row in enumerate(ROWS)
    ]
    batch = encode.Collator(processor, family)(encoded)
    batch.pop("labels")
    stored = [[{"bytes": png(one), "path": None} for one in row] for row in ROWS]
    rows = Dataset.from_dict(
        {"images": stored, "image": [row[0] for row in stored], "row": [4, 7, 5]}
    )
    features = all_tower_features(predictor.model, family, rows, processor)
    assert {number: len(own) for number, own in features.items()} == {4: 2, 7: 2, 5: 2}
    flat = [one for number in (4, 7, 5) for one in features[number]]
    with torch.no_grad():
        expected = predictor.model(**batch).logits
        kept = {n: t for n, t in batch.items() if n not in ("pixel_values", "pixel_attention_mask")}
        kept |= family.inputs_from_features(predictor.model, flat)
        found = predictor.model(**kept).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


def png(image: Image.Image) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_list_of_one_picture_is_the_picture(predictor: LocalModel) -> None:
    one = predictor.with_prompt(ONE)
    images = [row[0] for row in ROWS]
    listed = one.predict([[image] for image in images])
    plain = one.predict(images)
    assert [p.text for p in listed] == [p.text for p in plain]
    assert [p.probabilities for p in listed] == [p.probabilities for p in plain]
    (a,), (b,) = one.score(images[:1], prior=True), one.score([images[:1]], prior=True)
    assert (a.log_likelihood, a.prior) == (b.log_likelihood, b.prior)


def test_more_or_fewer_pictures_than_the_prompt_is_about(predictor: LocalModel) -> None:
    for row, shown in ((ROWS[0][0], 1), ([*ROWS[0], ROWS[1][0]], 3)):
        with pytest.raises(UserError, match=rf"is about 2 picture\(s\), but {shown} are shown"):
            predictor.predict([row])


def test_families_tell_a_server_how_many_pictures_a_request_has(predictor: LocalModel) -> None:
    policy = dict.fromkeys(("vision_tower", "projector", "language_model"), "frozen")
    how: dict[str, Any] = {"max_length": 9, "trainable": policy, "images": 2}
    if predictor.family is families.get("paligemma"):
        with pytest.raises(UserError, match="reads PaliGemma's question causally"):
            predictor.family.vllm_flags(predictor.processor, **how)
        return
    told = predictor.family.vllm_flags(predictor.processor, **how)
    assert '"image": 2' in told["serve"]["limit-mm-per-prompt"]
