"""Greedy answers and label probabilities: equal in every batch, equal to the long way round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import llava
from helpers.samples import picture

from vlmface import encode, prompts
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.tools import merge

PICTURES = [picture(seed, (40 + seed, 40)) for seed in range(5)]


@pytest.fixture(scope="module", params=["face_cot", "expllm", "expllm_label"])
def predictor(base: Path, request: pytest.FixtureRequest) -> Iterator[LocalModel]:
    yield LocalModel.load(base, prompt=request.param, max_new_tokens=12)


@pytest.fixture
def scripted(base: Path) -> LocalModel:
    """A predictor whose model "writes" given rationales of different lengths, truly cached."""
    return LocalModel.load(base, prompt="face_cot", max_new_tokens=40)


def full_passes(predictor: LocalModel, image: Any, rationale: str) -> list[torch.Tensor]:
    """Log-likelihoods of what follows the prompt, by one full forward pass a label."""
    start = len(
        encode.encode_text(predictor.processor, llava, predictor.messages, None)["input_ids"]
    )
    pixels = llava.image_inputs(predictor.processor, [image])["pixel_values"]
    scores = []
    for ids in predictor.label_ids(rationale, image.size):
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = predictor.model(
                input_ids=row, attention_mask=torch.ones_like(row), pixel_values=pixels
            ).logits
        log_p = logits[0, start - 1 : -1].log_softmax(-1)
        scores.append(log_p.gather(-1, row[0, start:, None]).sum())
    return scores


def naive(predictor: LocalModel, image: Any, rationale: str) -> dict[str, float]:
    """The probabilities of the labels."""
    values = torch.stack(full_passes(predictor, image, rationale)).softmax(0).tolist()
    return dict(zip(predictor.prompt.space.labels, values, strict=True))


def close(found: dict[str, float] | None, expected: dict[str, float] | None) -> None:
    assert found is not None and expected is not None
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_batch_answers_as_single_images_do(predictor: LocalModel) -> None:
    together = predictor.predict(PICTURES, batch_size=5)
    apart = predictor.predict(PICTURES, batch_size=1)
    assert [p.text for p in together] == [p.text for p in apart]
    assert [p.answer for p in together] == [p.answer for p in apart]
    for one, other in zip(together, apart, strict=True):
        close(one.probabilities, other.probabilities)


def test_probabilities_are_those_of_full_forward_passes(predictor: LocalModel) -> None:
    for image, prediction in zip(PICTURES, predictor.predict(PICTURES), strict=True):
        close(prediction.probabilities, naive(predictor, image, prediction.answer.rationale))
        assert sum((prediction.probabilities or {}).values()) == pytest.approx(1)
        assert prediction.latency_s > 0


def test_a_written_rationale_is_reused_whatever_its_length(
    scripted: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers in the requested format, each of another length: the cache ends at another place in
    each row, and the labels follow it there."""
    rationales = [
        "The brows are lowered (AU4).",
        "The lips part (AU25), the jaw drops (AU26).",
        "Rest.",
    ]
    tokenizer = scripted.processor.tokenizer
    texts = [" " + scripted.prompt.completion(text, "anger") for text in rationales]
    script = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    generate = scripted.model.generate

    class Script:
        """Makes generation follow the script: everything else is ruled out."""

        def __init__(self, prompt_length: int) -> None:
            self.prompt_length = prompt_length

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            at = input_ids.shape[1] - self.prompt_length
            scores = torch.full_like(scores, -1e9)
            for row, ids in enumerate(script):
                scores[row, ids[min(at, len(ids) - 1)]] = 0
            return scores

    def scripted_generate(**inputs: Any) -> Any:
        length = inputs["input_ids"].shape[1]
        return generate(**inputs, logits_processor=[Script(length)])

    monkeypatch.setattr(scripted.model, "generate", scripted_generate)
    scripted.max_new_tokens = max(map(len, script))
    fed: list[int] = []
    scripted.model.register_forward_pre_hook(
        lambda model, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    predictions = scripted.predict(PICTURES[:3])
    scoring = fed[-len(scripted.prompt.space.labels) :]
    assert [p.text for p in predictions] == [text.strip() for text in texts]
    assert [p.answer.rationale for p in predictions] == rationales
    assert all(p.complete for p in predictions)
    for image, prediction in zip(PICTURES, predictions, strict=False):
        close(prediction.probabilities, naive(scripted, image, prediction.answer.rationale))
    # Scoring fed the labels and their suffix, not the prompt or the rationale again.
    longest = max(
        len(tokenizer(label + scripted.prompt.answer_suffix + "</s>")["input_ids"])
        for label in scripted.prompt.space.labels
    )
    assert max(scoring) <= longest + 1


def test_the_order_of_images_and_of_labels(scripted: LocalModel) -> None:
    assert scripted.predict([]) == []
    only = scripted.predict(PICTURES[:1], probabilities=False)[0]
    assert only.probabilities is None
    first, second = scripted.predict(PICTURES[:2]), scripted.predict(PICTURES[1::-1])
    assert [p.text for p in first] == [p.text for p in second][::-1]
    assert list(first[0].probabilities or {}) == list(scripted.prompt.space.labels)


def test_left_padding_and_positions(base: Path, processor: Any) -> None:
    """Prompts of different lengths in one batch generate what each generates alone."""
    model = llava.load_model(base)
    rows = [
        encode.encode(processor, llava, prompts.load(name).messages(), PICTURES[0])
        for name in ("face_cot", "expllm")
    ]
    assert len(rows[0]["input_ids"]) != len(rows[1]["input_ids"])
    collate = encode.Collator(processor, llava, padding="left")

    def generate(part: list[Any]) -> torch.Tensor:
        batch = collate(part)
        ids = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        return ids[:, batch["input_ids"].shape[1] :]

    together = generate(rows)
    assert torch.equal(together[0], generate(rows[:1])[0])
    assert torch.equal(together[1], generate(rows[1:])[0])


def test_a_manifest_of_another_family_is_refused(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    written = json.loads((copy / "vlmface.json").read_text())
    (copy / "vlmface.json").write_text(json.dumps(written | {"family": "qwen_vl"}))
    for use in (LocalModel.load, lambda run: merge.merge(run, tmp_path / "merged")):
        with pytest.raises(UserError, match=r"says family qwen_vl, but .* are llava"):
            use(copy)


def test_a_base_model_needs_a_prompt(base: Path) -> None:
    with pytest.raises(UserError, match=r"is not a vlmface run .*choose a prompt"):
        LocalModel.load(base)


def test_of_several_labels_each_is_scored_as_the_first_without_an_end(base: Path) -> None:
    predictor = LocalModel.load(base, prompt="emotic", max_new_tokens=12)
    tokenizer = predictor.processor.tokenizer
    image = PICTURES[0]
    start = len(
        encode.encode_text(predictor.processor, llava, predictor.messages, None)["input_ids"]
    )
    found = predictor.label_ids("", image.size)
    for label, ids in zip(predictor.prompt.space.labels, found, strict=True):
        # All that is each label's own is there, and nothing of the end.
        assert tokenizer.decode(ids[start:], skip_special_tokens=False).strip() == label
    (scores,) = predictor.score([image], prior=True)
    likely = [score.item() for score in full_passes(predictor, image, "")]
    common = likely[0] - scores.log_likelihood["Affection"]  # of what all labels begin with
    assert [a - common for a in likely] == pytest.approx(
        list(scores.log_likelihood.values()), abs=1e-4
    )
    assert scores.prior is not None and scores.prior.keys() == scores.log_likelihood.keys()
    # These are no probabilities of what applies, so none are given with an answer.
    (said,) = predictor.predict([image])
    assert said.probabilities is None
