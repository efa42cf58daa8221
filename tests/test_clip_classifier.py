"""The classifier over a CLIP: what is trained, equalities, zero-shot as open_clip does it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch

from vlmface import label_texts
from vlmface.clip import checkpoint, model
from vlmface.clip.affect import AFFECT_HEADS
from vlmface.clip.classifier import Classifier, ClassifierConfig
from vlmface.errors import UserError
from vlmface.train.clip.settings import Settings
from vlmface.train.clip.trainer import depth_of, parameter_groups, part_of

SQUARES = torch.randint(
    256, (5, 1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def _classifier(base: Path, prompt: str = "clip_emotion", **shape: object) -> Classifier:
    torch.manual_seed(1)
    return Classifier(
        model.load_clip(base), label_texts.load(prompt), ClassifierConfig(**shape)
    ).eval()  # type: ignore[arg-type]


def _shaken(classifier: Classifier) -> Classifier:
    """With trained weights moved from where they start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    classifier.reset_cache()
    return classifier


def _settings(**changes: object) -> Settings:
    known: dict = {
        "base_model": "x",
        "dataset": "synth",
        "benchmark": "synth",
        "prompt": "clip_emotion",
        "limitations": "",
        "output_dir": "x",
        "image_tower": "lora",
    }
    return Settings(**(known | changes))


def test_zero_shot_is_open_clips(clip_base: Path) -> None:
    ours = _classifier(clip_base)
    every = ours.texts.positive
    templates = [lambda label, k=k: every[label][k] for k in range(len(every["anger"]))]
    table = open_clip.build_zero_shot_classifier(
        ours.model, ours.clip.tokenizer, list(every), templates
    )
    with torch.no_grad():
        features = ours.clip.image_features(SQUARES[:, 0])
        expected = (features @ table * ours.scale).softmax(-1)
    shares, affect = ours.answer(SQUARES)
    assert torch.allclose(shares, expected, atol=1e-6) and affect is None


POLICIES = [
    {"image_tower": "lora", "text_tower": "lora"},
    {"image_tower": "lora", "text_tower": "full"},
    {"image_tower": "full"},
    {"text_tower": "prompts"},
    {"text_tower": "prompts", "class_specific": True},
    {"head": "linear"},
    {"image_tower": "lora", "affect": "linear"},
    {"image_tower": "lora", "affect": "graph"},
    {"num_views": 2, "num_frames": 3, "temporal": "transformer"},
]


@pytest.mark.parametrize("shape", POLICIES, ids=str)
def test_only_what_the_policy_says_is_trained(shape: dict, clip_base: Path) -> None:
    one = _classifier(clip_base, **shape)
    parts = {part_of(name) for name in checkpoint.names(one)}
    expected = set()
    if shape.get("image_tower") in ("lora", "full"):
        expected.add("image_tower")
    if shape.get("text_tower") in ("lora", "full"):
        expected.add("text_tower")
    if shape.get("text_tower") == "prompts":
        expected.add("prompts")
    if shape.get("head") == "linear":
        expected.add("head")
    if shape.get("affect"):
        expected.add("affect")
    if shape.get("num_views"):
        expected |= {"temporal", "fusion"}
    assert parts == expected


@pytest.mark.parametrize("shape", POLICIES, ids=str)
def test_trained_weights_are_the_whole_difference(shape: dict, clip_base: Path) -> None:
    pictures = shape.get("num_views", 1) * shape.get("num_frames", 1)
    squares = SQUARES.repeat(1, pictures, 1, 1, 1)
    tuned = _shaken(_classifier(clip_base, **shape))
    fresh = _classifier(clip_base, **shape)
    assert not torch.allclose(fresh.answer(squares)[0], tuned.answer(squares)[0], atol=1e-4)
    checkpoint.load_trained(fresh, checkpoint.trained_state(tuned), "here")
    fresh.reset_cache()
    for mine, other in zip(fresh.answer(squares), tuned.answer(squares), strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", POLICIES, ids=str)
def test_wise_ends_are_the_base_and_the_tuned_model(shape: dict, clip_base: Path) -> None:
    squares = SQUARES.repeat(1, shape.get("num_views", 1) * shape.get("num_frames", 1), 1, 1, 1)
    one = _classifier(clip_base, **shape)
    start, base = checkpoint.trained_state(one), one.answer(squares)[0]
    tuned = _shaken(one).answer(squares)[0]
    state = checkpoint.trained_state(one)
    one.interpolate(start, 1.0)
    assert torch.equal(one.answer(squares)[0], tuned)
    one.interpolate(start, 0.5)
    half = one.answer(squares)[0]
    assert not torch.allclose(half, base) and not torch.allclose(half, tuned)
    checkpoint.load_trained(one, state, "here")
    one.interpolate(start, 0.0)
    assert torch.equal(one.answer(squares)[0], base)


def test_merged_lora_is_the_adapter(clip_base: Path) -> None:
    one = _shaken(_classifier(clip_base, image_tower="lora", text_tower="lora"))
    before = one.answer(SQUARES)[0]
    assert not torch.allclose(before, _classifier(clip_base).answer(SQUARES)[0], atol=1e-3)
    one.merge()
    assert not any("lora_" in name for name, _ in one.named_parameters())
    assert torch.allclose(one.answer(SQUARES)[0], before, atol=1e-5)
    assert torch.allclose(one.answer(features=one.image_features(SQUARES))[0], before, atol=1e-5)


def test_lora_reaches_attention_and_mlp_and_leaves_the_base_as_it_is(clip_base: Path) -> None:
    one = _classifier(clip_base, image_tower="lora")
    adapted = {name.split(".lora_")[0] for name in checkpoint.names(one)}
    assert adapted == {
        f"model.visual.transformer.resblocks.{block}.{part}"
        for block in range(2)
        for part in ("attn", "mlp.c_fc", "mlp.c_proj")
    }
    _shaken(one).train()
    for _ in range(3):
        one(SQUARES)["logits"].sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for p in one.parameters() if p.requires_grad
    )
    kept = {n.replace(".base_layer", ""): p for n, p in one.model.named_parameters()}
    for name, weight in model.load_clip(clip_base).model.named_parameters():
        assert torch.equal(kept[name], weight), name


def test_pefts_own_layer_for_attention_is_still_wrong(clip_base: Path) -> None:
    """Once this fails, add_lora can target the whole attention (peft#3774)."""
    from peft import LoraConfig, get_peft_model

    clip = model.load_clip(clip_base)
    adapter = get_peft_model(clip.model, LoraConfig(r=4, target_modules=r"visual\..*\.attn"))
    named = dict(clip.model.named_parameters())
    out = "visual.transformer.resblocks.0.attn.base_layer.out_proj"
    with torch.no_grad():
        for name, parameter in named.items():
            if "lora_B" in name:
                parameter.normal_()
    delta = named[f"{out}.lora_B.default.weight"] @ named[f"{out}.lora_A.default.weight"]
    scaling = adapter.peft_config["default"].lora_alpha / 4
    start = named[f"{out}.base_layer.weight"].clone()
    merged = adapter.merge_and_unload().visual.transformer.resblocks[0].attn.out_proj.weight
    assert not torch.allclose(merged, start + scaling * delta, atol=1e-4)


def test_label_features_are_kept_only_while_they_hold(clip_base: Path) -> None:
    frozen = _classifier(clip_base, image_tower="lora").train()
    assert frozen.label_features() is frozen.label_features()
    learning = _classifier(clip_base, text_tower="lora").train()
    first = learning.label_features()
    assert first.requires_grad and learning.label_features() is not first
    learning.eval()
    before = learning.label_features()
    _shaken(learning.train())
    learning.eval()
    assert not torch.allclose(learning.label_features(), before)


def test_a_model_that_has_answered_can_still_be_trained(clip_base: Path) -> None:
    one = _classifier(clip_base, image_tower="lora")
    one.answer(SQUARES)
    one.train()(SQUARES)["logits"].sum().backward()
    assert all(p.grad is not None for p in one.parameters() if p.requires_grad)


def test_a_linear_head_starts_as_zero_shot(clip_base: Path) -> None:
    probe, plain = _classifier(clip_base, head="linear"), _classifier(clip_base)
    assert torch.allclose(probe.answer(SQUARES)[0], plain.answer(SQUARES)[0], atol=1e-6)


def test_learnt_contexts_start_as_their_words(clip_base: Path) -> None:
    from vlmface.clip.contexts import START

    words = len(START.split())
    one = _classifier(clip_base, text_tower="prompts", num_context_tokens=words)
    said = [f"{START} {text}" for found in one.texts.positive.values() for text in found]
    with torch.no_grad():
        assert one.contexts is not None
        assert torch.allclose(
            one.contexts(), one.clip.text_features(one.clip.tokens(said)), atol=1e-5
        )
    with pytest.raises(UserError, match="set num_context_tokens lower"):
        _classifier(clip_base, text_tower="prompts", num_context_tokens=75)


def test_negatives_count_against_a_label(clip_base: Path) -> None:
    plain = _classifier(clip_base, "clip_signs_contrast")
    against = _classifier(clip_base, "clip_signs_contrast", negative_weight=0.5)
    with torch.no_grad():
        sizes = [len(v) for v in plain.texts.negative.values()]
        negative = [text for v in plain.texts.negative.values() for text in v]
        parts = torch.split(plain.clip.text_features(plain.clip.tokens(negative)), sizes)
        means = torch.stack([torch.nn.functional.normalize(p.mean(0), dim=-1) for p in parts])
        expected = plain.label_features() - 0.5 * means
    assert torch.allclose(against.label_features(), expected, atol=1e-6)


def test_several_labels_have_chances_of_their_own(clip_base: Path) -> None:
    one = _shaken(_classifier(clip_base, "clip_emotic", image_tower="lora"))
    shares = one.answer(SQUARES)[0]
    assert shares.shape == (5, 26) and ((shares > 0) & (shares < 1)).all()
    assert not torch.allclose(shares.sum(-1), torch.ones(5))


def test_frames_need_a_way_to_become_one(clip_base: Path) -> None:
    with pytest.raises(UserError, match="temporal is none"):
        _classifier(clip_base, num_frames=4)
    mean = _classifier(clip_base, num_frames=4, temporal="mean")
    still = SQUARES.repeat(1, 4, 1, 1, 1)
    assert torch.allclose(
        mean.answer(still)[0], _classifier(clip_base).answer(SQUARES)[0], atol=1e-6
    )


def test_views_start_as_their_mean(clip_base: Path) -> None:
    both = _classifier(clip_base, num_views=2)
    pair = torch.stack([SQUARES[:, 0], SQUARES[:, 0].flip(-1)], 1)
    with torch.no_grad():
        features = both.image_features(pair)
        each = torch.nn.functional.normalize(features, dim=-1)
        expected = torch.nn.functional.normalize(each.mean(1), dim=-1)
        assert torch.allclose(both.features(features), expected, atol=1e-6)


@pytest.mark.parametrize("kind", list(AFFECT_HEADS))
def test_affect_is_read_within_its_range(kind: str, clip_base: Path) -> None:
    one = _classifier(clip_base, affect=kind, image_tower="lora")
    shares, affect = one.answer(SQUARES)
    assert affect is not None and affect.shape == (5, 2) and affect.abs().max() <= 1
    # Labels begin where they would be without the head.
    assert torch.allclose(shares, _classifier(clip_base).answer(SQUARES)[0], atol=1e-5)
    told = _shaken(one).answer(SQUARES)[0]
    other = _shaken(_classifier(clip_base, affect="linear", image_tower="lora")).answer(SQUARES)[0]
    assert torch.allclose(told, other, atol=1e-4) is (kind == "linear")


def test_weights_of_another_model_are_refused(clip_base: Path) -> None:
    state = checkpoint.trained_state(_classifier(clip_base, image_tower="lora"))
    with pytest.raises(UserError, match="do not fit the model: missing"):
        checkpoint.load_trained(_classifier(clip_base, image_tower="full"), state, "here")
    with pytest.raises(UserError, match="expected"):
        checkpoint.load_trained(
            _classifier(clip_base, image_tower="lora", lora_rank=4), state, "here"
        )


# --- rates ----------------------------------------------------------------------------------------


def test_rates_fall_towards_the_pixels(clip_base: Path) -> None:
    one = _classifier(clip_base, image_tower="full", text_tower="full", head="linear")
    settings = _settings(
        image_tower="full",
        learning_rate=1.0,
        layer_decay=0.5,
        weight_decay=0.1,
        learning_rates={"head": 4.0},
    )
    groups = parameter_groups(one, settings)
    known = {id(p): name for name, p in one.named_parameters()}
    rates = {known[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert set(rates) == set(checkpoint.names(one))
    assert rates["linear.weight"] == (4.0, 0.1) and rates["linear.bias"] == (4.0, 0.0)
    assert rates["model.visual.proj"][0] == 1.0 and rates["model.visual.ln_post.weight"][0] == 1.0
    assert rates["model.visual.transformer.resblocks.1.mlp.c_fc.weight"][0] == 0.5
    assert rates["model.visual.transformer.resblocks.0.mlp.c_fc.weight"][0] == 0.25
    assert rates["model.visual.conv1.weight"][0] == 0.125
    assert rates["model.transformer.resblocks.0.mlp.c_fc.weight"][0] == 1.0
    assert depth_of("model.visual.trunk.blocks.3.mlp.fc1.weight", 12) == 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_tower": "frozen"}, "nothing would be trained"),
        ({"learning_rates": {"vision_tower": 1.0}}, "learning_rates has vision_tower"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"wise_ft_alpha": "best"}, "at least 0 and at most 1 or auto"),
        ({"wise_ft_alpha": 2.0}, "at least 0 and at most 1 or auto"),
        ({"lr_scheduler": "steps"}, "milestones .* is empty"),
        ({"save_steps": 15}, "must be a multiple of logging_steps"),
        ({"validation_share": 0.95}, "validation_share"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _settings(**changes).check()
    replace(_settings(), image_tower="frozen", text_tower="frozen", head="linear").check()
