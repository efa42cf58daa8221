"""A group's shared prefix gives what separate full passes give: tokens, log-probabilities and
gradients, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import BUILDERS
from helpers.samples import picture

from vlmface import encode, families, prompts
from vlmface.infer import sampling

GROUP = 3
SIZES = ((40, 40), (90, 50))


@pytest.fixture(scope="module", params=BUILDERS)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp(request.param)
    prompt = prompts.load("face_cot")
    BUILDERS[request.param](folder, [str(prompt.messages()), "the brows are lowered"] * 20)
    family = families.get(families.family_of(folder))
    processor = family.load_processor(folder)
    model = family.load_model(folder, dtype=torch.float32)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # sharper than a fresh model
    return family, processor, model, prompt.messages()


def rows_of(setup: Any, answers: list[list[int]] | None = None) -> list[dict[str, Any]]:
    """Prompts on two pictures of different sizes; with completions, a row for each of them."""
    family, processor, _, messages = setup
    rows = []
    for i in range(len(SIZES) if answers is None else len(answers)):
        image = picture(i // (GROUP if answers else 1), SIZES[i // (GROUP if answers else 1)])
        row: dict[str, Any] = dict(encode.encode(processor, family, messages, image))
        if answers is not None:
            start = len(row["input_ids"])
            ids = [*row["input_ids"], *answers[i]]
            row |= {"input_ids": ids, **family.per_token_inputs(processor, ids, start)}
        rows.append(row)
    return rows


def collated(setup: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return encode.Collator(setup[1], setup[0])(rows)


def padded(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return torch.tensor([row + [0] * (longest - len(row)) for row in ids]), mask


ANSWERS = [[75, 79, 30, 77], [88, 88], [72, 40, 41, 42, 43, 44], [63, 60, 65], [90], [33, 34, 35]]


def whole(setup: Any, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """One plain pass for each completion alone: the reference."""
    model = setup[2]
    ids, mask = padded(ANSWERS)
    found = torch.zeros(ids.shape)
    losses = []
    for i, row in enumerate(rows_of(setup, ANSWERS)):
        batch = collated(setup, [row])
        log_p = (model(**batch).logits[0].float() / temperature).log_softmax(-1)
        start = len(row["input_ids"]) - len(ANSWERS[i])
        for k, token in enumerate(ANSWERS[i]):
            found[i, k] = log_p[start + k - 1, token].detach()
            losses.append(log_p[start + k - 1, token])
    return found * mask, torch.stack(losses).sum()


def test_log_probabilities_are_those_of_full_passes(setup: Any) -> None:
    family, _, model, _ = setup
    ids, mask = padded(ANSWERS)
    for temperature in (1.0, 0.7):
        expected, _ = whole(setup, temperature)
        found, entropy = sampling.score(
            model,
            family,
            collated(setup, rows_of(setup)),
            ids,
            mask,
            sampling.Distribution(temperature),
        )
        assert torch.allclose(found * mask, expected, atol=2e-5)
        assert (entropy >= 0).all()
        again, _ = sampling.score_without_cache(
            model,
            collated(setup, rows_of(setup, ANSWERS)),
            ids,
            mask,
            sampling.Distribution(temperature),
        )
        assert torch.allclose(again * mask, expected, atol=2e-5)


def test_gradients_flow_through_the_prefix(setup: Any) -> None:
    family, _, model, _ = setup
    ids, mask = padded(ANSWERS)

    def gradients(total: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        total.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients(whole(setup)[1])
    found, _ = sampling.score(
        model, family, collated(setup, rows_of(setup)), ids, mask, sampling.Distribution()
    )
    mine = gradients((found * mask).sum())
    assert mine.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert ((mine[name] - gradient).abs().max() / scale) < 1e-3, name


def test_samples_are_drawn_from_the_models_own_distribution(setup: Any) -> None:
    """Log-probabilities of what was drawn equal those of full passes; a group varies, a seed
    repeats; greedy (a low temperature) equals generate()."""
    family, processor, model, _ = setup
    batch = collated(setup, rows_of(setup))
    stops = family.stop_token_ids(processor)

    def draw(seed: int, **options: Any) -> sampling.Rollout:
        how = sampling.SamplingOptions(max_new_tokens=9, stops=stops, **options)
        generator = torch.Generator().manual_seed(seed)
        return sampling.sample(model, family, batch, how, group=GROUP, generator=generator)

    drawn = draw(0)
    assert drawn == draw(0) and drawn.ids != draw(1).ids
    assert len({tuple(ids) for ids in drawn.ids[:GROUP]}) > 1
    ids, mask = padded(drawn.ids)
    with torch.no_grad():
        found, _ = sampling.score(model, family, batch, ids, mask, sampling.Distribution())
    flat = [value for row in drawn.log_probs for value in row]
    assert found[mask.bool()].tolist() == pytest.approx(flat, abs=2e-5)

    cold = draw(0, temperature=1e-4)
    left = encode.Collator(processor, family, padding="left")(rows_of(setup))
    with torch.no_grad():
        greedy = model.generate(
            **left,
            max_new_tokens=9,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=processor.tokenizer.pad_token_id,
        )[:, left["input_ids"].shape[1] :].tolist()
    for i, row in enumerate(greedy):
        end = next((k + 1 for k, token in enumerate(row) if token in stops), len(row))
        assert cold.ids[i * GROUP] == row[:end]


def test_no_image_token_is_drawn(setup: Any) -> None:
    """What is never drawn has no part in the distribution, when it is scored either."""
    family, _, model, _ = setup
    batch = collated(setup, rows_of(setup))
    how = sampling.SamplingOptions(
        temperature=3.0, never=list(range(60, 70)), max_new_tokens=9, stops=[]
    )
    drawn = sampling.sample(
        model,
        family,
        batch,
        how,
        group=GROUP,
        generator=torch.Generator().manual_seed(0),
    )
    assert not {token for row in drawn.ids for token in row} & set(range(60, 70))
    ids, mask = padded(drawn.ids)
    with torch.no_grad():
        found, entropy = sampling.score(model, family, batch, ids, mask, how)
    flat = [value for row in drawn.log_probs for value in row]
    assert found[mask.bool()].tolist() == pytest.approx(flat, abs=2e-5)
    assert entropy.isfinite().all()


def test_finished_rows_leave_and_the_others_do_not_notice(setup: Any) -> None:
    family, _, model, _ = setup
    batch = collated(setup, rows_of(setup))

    def draw(stops: list[int]) -> sampling.Rollout:
        how = sampling.SamplingOptions(max_new_tokens=8, stops=stops, temperature=1e-4)
        generator = torch.Generator().manual_seed(0)
        return sampling.sample(model, family, batch, how, group=GROUP, generator=generator)

    free = draw([])
    assert not any(free.complete) and {len(ids) for ids in free.ids} == {8}
    stop = next((t for t in free.ids[0] if t not in free.ids[-1]), free.ids[0][2])
    cut = draw([stop])
    for whole_, ids, done in zip(free.ids, cut.ids, cut.complete, strict=True):
        end = whole_.index(stop) + 1 if stop in whole_ else len(whole_)
        assert ids == whole_[:end] and done == (stop in whole_)


def test_top_p_keeps_the_likeliest() -> None:
    chances = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    assert torch.allclose(sampling._top_p(chances, 0.6), torch.tensor([[0.625, 0, 0.375, 0]]))
    assert torch.allclose(sampling._top_p(chances, 0.4), torch.tensor([[1.0, 0, 0, 0]]))
    assert sampling._top_p(chances, 1.0) is chances
