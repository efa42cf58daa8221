"""What a model finds likely without writing: equal to the long way round, in every batch, and for
families whose prompts differ in length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import paligemma, qwen_vl, smolvlm
from helpers.samples import picture

from vlmface import encode, prompts
from vlmface.errors import UserError
from vlmface.infer.local import LocalModel
from vlmface.infer.prediction import LabelScores

PICTURES = [picture(seed, (40 + seed, 40)) for seed in range(5)]
RATIONALES = ["The brows are lowered (AU4).", "", "The lips part (AU25), the jaw drops.", "R", ""]


@pytest.fixture(scope="module", params=["face_cot", "expllm", "expllm_label"])
def predictor(base: Path, request: pytest.FixtureRequest) -> Iterator[LocalModel]:
    yield LocalModel.load(base, prompt=request.param, max_new_tokens=12)


def naive(predictor: LocalModel, image: Any, rationale: str) -> tuple[list[float], list[int]]:
    """Log-likelihood of what follows the text that all labels share, by one forward pass a label;
    and its number of tokens."""
    ids_of = predictor.label_ids(rationale, image.size)
    start = next(i for i, ids in enumerate(zip(*ids_of, strict=False)) if len(set(ids)) > 1)
    pixels = predictor.family.image_inputs(predictor.processor, [image])
    sums, counts = [], []
    for label in predictor.prompt.space.labels:
        row = encode.encode_text(
            predictor.processor,
            predictor.family,
            predictor.messages,
            predictor.prompt.completion(rationale, label),
            image_size=image.size,
        )
        row.pop("labels")
        ids = torch.tensor([row.pop("input_ids")])
        extra = {name: torch.tensor([values]) for name, values in row.items()}
        with torch.no_grad():
            logits = predictor.model(input_ids=ids, **extra, **pixels).logits
        log_p = logits[0, start - 1 : -1].log_softmax(-1)
        sums.append(log_p.gather(-1, ids[0, start:, None]).sum().item())
        counts.append(ids.shape[1] - start)
    return sums, counts


def same(found: LabelScores, expected: tuple[list[float], list[int]]) -> None:
    assert list(found.log_likelihood.values()) == pytest.approx(expected[0], abs=1e-4)
    assert list(found.tokens.values()) == expected[1]


def test_likelihoods_are_those_of_full_forward_passes(predictor: LocalModel) -> None:
    for image, found in zip(PICTURES, predictor.score(PICTURES), strict=True):
        same(found, naive(predictor, image, ""))
        assert sum(found.probabilities().values()) == pytest.approx(1)
        assert found.prior is None and found.latency_s > 0
    if predictor.prompt.format != "label":
        for image, text, found in zip(
            PICTURES, RATIONALES, predictor.score(PICTURES, RATIONALES, batch_size=3), strict=True
        ):
            same(found, naive(predictor, image, text))


def test_behind_its_own_rationale_it_finds_what_predict_finds(predictor: LocalModel) -> None:
    written = predictor.predict(PICTURES)
    scored = predictor.score(PICTURES, [one.answer.rationale for one in written])
    for one, other in zip(written, scored, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities(), abs=1e-4)


@pytest.mark.parametrize("family", ["smolvlm", "qwen_vl", "paligemma"])
def test_prompts_of_different_lengths(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    corpus = [str(prompts.load("face_cot").messages()), *RATIONALES] * 20
    folder = tmp_path_factory.mktemp(family)
    if family == "smolvlm":
        smolvlm.build_tiny(folder, corpus)
    elif family == "qwen_vl":
        qwen_vl.build_tiny(folder, corpus, min_pixels=256, max_pixels=4096)
    else:
        paligemma.build_tiny(folder, corpus)
    predictor = LocalModel.load(folder, prompt="face_cot", max_new_tokens=12)
    images = [picture(seed, size) for seed, size in enumerate([(60, 60), (200, 90), (64, 150)])]
    texts = RATIONALES[:3]
    together = predictor.score(images, texts, batch_size=3)
    for image, text, found in zip(images, texts, together, strict=True):
        same(found, naive(predictor, image, text))


def test_the_prior_is_that_of_a_grey_picture(predictor: LocalModel) -> None:
    from PIL import Image

    found = predictor.score(PICTURES[:2], prior=True)
    for image, scores in zip(PICTURES, found, strict=False):
        grey = Image.new("RGB", image.size, (128, 128, 128))
        assert scores.prior is not None
        assert list(scores.prior.values()) == pytest.approx(naive(predictor, grey, "")[0], abs=1e-4)
        gain = {k: v - scores.prior[k] for k, v in scores.log_likelihood.items()}
        best = max(gain, key=gain.__getitem__)
        likely = scores.probabilities("prior")
        assert max(likely, key=likely.__getitem__) == best


def test_norms() -> None:
    scores = LabelScores({"a": -2.0, "b": -3.0}, {"a": 1, "b": 3}, 0.0)
    assert scores.probabilities("sum") == pytest.approx({"a": 0.7311, "b": 0.2689}, abs=1e-4)
    assert scores.probabilities("mean") == pytest.approx({"a": 0.2689, "b": 0.7311}, abs=1e-4)
    with pytest.raises(UserError, match="not computed: prior=True"):
        scores.probabilities("prior")
    with pytest.raises(ValueError, match="use one of sum, mean, prior"):
        scores.probabilities("longest")
