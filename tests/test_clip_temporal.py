"""Frames and views become one feature: DFER-CLIP's and CLIP-CAER's forward pass, written again here
in plain torch; what still clips and mirrored orders give; what is trained at which rate."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from vlmface import label_texts
from vlmface.clip import tiny_clip
from vlmface.clip.classifier import Classifier, ClassifierConfig
from vlmface.clip.model import Clip
from vlmface.clip.temporal import Fusion, OverTime, Temporal
from vlmface.data import crops
from vlmface.errors import UserError
from vlmface.train.clip.settings import ContextSettings, Settings
from vlmface.train.clip.trainer import ClipTrainer, parameter_groups, part_of
from vlmface.utils import config

# --- the published forward pass, from its description --------------------------------------------


def published_temporal(weights: dict[str, torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """(n, frames, width) -> (n, width): class token, places, one pre-norm layer of 8 heads of 64,
    no bias in queries, keys and values, an MLP of 1024 with the tanh GELU; the token's output."""
    n, _, width = frames.shape
    x = torch.cat([weights["token"].reshape(1, 1, width).repeat(n, 1, 1), frames], 1)
    x = x + weights["position_embedding"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    read = norm(x, "blocks.0.norm_1") @ weights["blocks.0.qkv.weight"].T
    query, key, value = (
        part.reshape(n, -1, 8, 64).transpose(1, 2) for part in read.split(512, dim=-1)
    )
    shares = (query @ key.transpose(2, 3) / 8).softmax(-1)
    mixed = (shares @ value).transpose(1, 2).reshape(n, -1, 512)
    x = x + mixed @ weights["blocks.0.out.weight"].T + weights["blocks.0.out.bias"]
    inner = norm(x, "blocks.0.norm_2") @ weights["blocks.0.mlp.0.weight"].T
    inner = inner + weights["blocks.0.mlp.0.bias"]
    curve = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    x = x + curve @ weights["blocks.0.mlp.2.weight"].T + weights["blocks.0.mlp.2.bias"]
    return x[:, 0]


def published_logits(model: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    """CLIP-CAER: (n, 2, 16, 3, 224, 224) -> logits (n, 5), divided by the temperature."""
    clip, weights = model.model, model.state_dict()
    of_views = []
    for view in (0, 1):
        n, t = pixels.shape[0], pixels.shape[2]
        features = clip.visual(pixels[:, view].flatten(0, 1)).reshape(n, t, -1)
        prefix = f"over_time.of_view.{view}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        of_views.append(published_temporal(own, features))
    both = torch.cat(of_views, -1)
    video = both @ weights["fusion.join.weight"].T + weights["fusion.join.bias"]
    video = video / video.norm(dim=-1, keepdim=True)

    descriptions = [found[0] for found in model.texts.positive.values()]
    ids = open_clip.tokenize([" ".join(["X"] * 8) + " " + text for text in descriptions])
    embedded = clip.token_embedding(ids)
    prompts = torch.cat([embedded[:, :1], weights["contexts.vectors"], embedded[:, 9:]], 1)
    x = prompts + clip.positional_embedding
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    said = x[torch.arange(len(ids)), ids.argmax(-1)] @ clip.text_projection
    said = said / said.norm(dim=-1, keepdim=True)
    return video @ said.T / 0.01


@pytest.fixture(scope="module")
def caer() -> tuple[Classifier, Settings]:
    """The configuration that ships, over a ViT-B/32 that has learnt nothing."""
    file = config.find_config("clip_caer_raer")
    chosen = config.from_dict(ContextSettings, config.read_yaml(file), where=file.name)
    chosen.check()
    torch.manual_seed(0)
    name = chosen.base_model.partition("/")[0]
    model = open_clip.create_model(name, force_quick_gelu=True)
    with torch.no_grad():
        model.logit_scale.fill_(100.0).log_()  # as in OpenAI's weights
    clip = Clip(
        model.eval(),
        open_clip.get_tokenizer(name),
        {
            "model_cfg": open_clip.get_model_config(name),
            "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
        },
        chosen.base_model,
    )
    shape = chosen.shape(len(crops.parse_views(chosen.views)))
    return Classifier(clip, label_texts.load(chosen.prompt), shape), chosen


def test_clip_caer_is_what_was_published(caer):
    model, _ = caer
    with torch.no_grad():  # away from the mean of the views, where it starts
        nn.init.normal_(model.fusion.join.weight, std=0.03)
        nn.init.normal_(model.fusion.join.bias, std=0.03)
    squares = torch.randint(0, 256, (1, 32, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        ours = model.eval()(squares)["logits"] * model.scale
        pixels = model.clip.pixels(squares).unflatten(1, (2, 16))
        theirs = published_logits(model, pixels)
    assert ours.shape == (1, 5)
    assert theirs.std() > 0.5  # so that the next line says something
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3)


def test_clip_caer_trains_what_was_published_at_its_rates(caer):
    model, chosen = caer
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            sizes[part_of(name)] = sizes.get(part_of(name), 0) + parameter.numel()
    one = 512 + 17 * 512  # token and places
    one += 2 * 2 * 512 + 512 * 1536 + 512 * 512 + 512  # norms, attention
    one += 512 * 1024 + 1024 + 1024 * 512 + 512
    assert sizes == {
        "image_tower": 87_849_216,
        "temporal": 2 * one,
        "fusion": 1024 * 512 + 512,
        "prompts": 5 * 8 * 512,
    }
    rates: dict[float, int] = {}
    decays = set()
    for group in parameter_groups(model, chosen):
        rates[group["lr"]] = rates.get(group["lr"], 0) + sum(p.numel() for p in group["params"])
        decays.add((group["weight_decay"], *{p.ndim >= 2 for p in group["params"]}))
    assert rates == {
        1e-5: sizes["image_tower"] + sizes["fusion"],
        1e-2: sizes["temporal"],
        1e-3: sizes["prompts"],
    }
    assert decays == {(1e-4, True), (0.0, False)}
    assert (chosen.num_frames, chosen.batch_size, chosen.epochs, chosen.seed) == (16, 8, 20, 42)
    assert (chosen.optimizer, chosen.lr_scheduler, chosen.milestones) == ("sgd", "steps", [10, 15])
    face, person = crops.parse_views(chosen.views)
    assert (face.view, face.margin, face.margin_px, face.size) == ("face", 0.0, 20, 224)
    assert (person.view, person.margin, person.margin_px, person.size) == ("person", 0.0, 0, 224)
    assert chosen.checkpoint_selection == "best"
    assert chosen.validation_split == "validation"


def test_rates_fall_at_the_milestones(caer):
    _, chosen = caer
    trainer = object.__new__(ClipTrainer)
    trainer.settings, trainer.lr_scheduler = chosen, None
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = trainer.create_scheduler(40, optimizer)  # two steps an epoch
    rates = []
    for _ in range(40):
        rates.append(round(optimizer.param_groups[0]["lr"], 6))
        optimizer.step()
        schedule.step()
    assert rates == [1.0] * 20 + [0.1] * 10 + [0.01] * 10


# --- what it is of itself -------------------------------------------------------------------------


def test_temporal_transformer_knows_order_and_every_frame():
    torch.manual_seed(0)
    model = Temporal(32, 4)
    frames = torch.randn(3, 4, 32, requires_grad=True)
    out = model(frames)
    assert out.shape == (3, 32)
    assert not torch.allclose(out, model(frames.flip(1)), atol=1e-3)
    out[1].sum().backward()
    moved = frames.grad.abs().sum(-1)
    assert (moved[1] > 0).all() and not moved[[0, 2]].any()


def test_mean_of_a_still_clip_is_its_frame():
    clip = tiny_clip.build()
    still = torch.randint(0, 256, (2, 1, 3, clip.side, clip.side), dtype=torch.uint8)
    asked = label_texts.load("clip_emotion")
    one = Classifier(clip, asked, ClassifierConfig()).eval()
    mean = Classifier(clip, asked, ClassifierConfig(num_frames=16, temporal="mean")).eval()
    alone, _ = one.answer(still)
    repeated, _ = mean.answer(still.repeat(1, 16, 1, 1, 1))
    torch.testing.assert_close(repeated, alone, rtol=0, atol=1e-6)
    moved = still.repeat(1, 16, 1, 1, 1)
    moved[:, 8:] = 255 - moved[:, 8:]
    assert (mean.answer(moved)[0] - alone).abs().max() > 1e-4


def test_views_have_transformers_of_their_own():
    torch.manual_seed(0)
    over = OverTime("transformer", 16, 4, 2)
    frames = torch.randn(1, 1, 4, 16).expand(1, 2, 4, 16)
    first, second = over(frames)[0]
    assert not torch.allclose(first, second, atol=1e-3)


def test_fusion_starts_as_the_mean():
    views = torch.randn(3, 2, 16)
    torch.testing.assert_close(Fusion(16, 2)(views), views.mean(1))


def test_frames_without_a_way_to_join_them_are_refused():
    with pytest.raises(UserError, match=r"num_frames is 16, but temporal is none"):
        Classifier(
            tiny_clip.build(), label_texts.load("clip_emotion"), ClassifierConfig(num_frames=16)
        )


def test_contexts_of_one_text_start_at_random_and_shared_ones_from_words():
    asked = label_texts.load("clip_raer")
    clip = tiny_clip.build()
    own = Classifier(
        clip, asked, ClassifierConfig(text_tower="prompts", class_specific=True)
    ).contexts.vectors
    assert own.shape == (5, 8, 64)
    assert not torch.allclose(own[0], own[1])
    assert own.std().item() == pytest.approx(0.02, rel=0.1)
    shared = Classifier(clip, asked, ClassifierConfig(text_tower="prompts")).contexts.vectors
    words = clip.text_tower.token_embedding(clip.tokens(["a photo of a face that shows"])[0, 1:8])
    assert shared.shape == (1, 8, 64)
    torch.testing.assert_close(shared[0, :7], words)


def test_features_of_scale_do_not_change_mean_or_single():
    """Only a temporal transformer sees how long the tower's features are."""
    clip = tiny_clip.build()
    asked = label_texts.load("clip_emotion")
    features = torch.randn(2, 4, clip.width)
    for shape in (
        ClassifierConfig(num_frames=4, temporal="mean"),
        ClassifierConfig(num_views=4),
        ClassifierConfig(num_frames=4, temporal="transformer"),
    ):
        model = Classifier(clip, asked, shape).eval()
        plain, scaled = (model(features=f)["logits"] for f in (features, 5 * features))
        same = torch.allclose(plain, scaled, atol=1e-5)
        assert same == (shape.temporal != "transformer")


def test_normalised_and_raw_features_are_one_direction():
    clip = tiny_clip.build()
    squares = torch.randint(0, 256, (2, 3, clip.side, clip.side), dtype=torch.uint8)
    raw = clip.image_features(squares, normalize=False)
    torch.testing.assert_close(F.normalize(raw, dim=-1), clip.image_features(squares))
