"""CLIPs of open_clip: names, preprocessing, both towers, texts of labels, captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.samples import rows as face_rows
from PIL import Image

from vlmface import facs, label_spaces, label_texts
from vlmface.clip import model, tiny_clip
from vlmface.errors import UserError
from vlmface.schema import AULabel, FaceSample
from vlmface.train.clip import captions

# In the shape of SigLIP: a text tower of its own that sees the whole text at once.
SIGLIP = {
    "embed_dim": 24,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {
        "context_length": 20,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
    },
}


@pytest.fixture(scope="module")
def clip() -> model.Clip:
    return tiny_clip.build(0)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> model.Clip:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    shape = {k: v for k, v in SIGLIP.items() if k != "custom_text"}
    built = open_clip.model.CustomTextCLIP(**shape)
    made = model.Clip(
        built,
        None,
        {"model_cfg": SIGLIP, "preprocess_cfg": {"size": 32, "resize_mode": "squash"}},
        "siglip",
    )
    model.save_clip(made, folder)
    return model.load_clip(folder)


def test_the_tower_is_that_of_vlmface_tiny(clip: model.Clip) -> None:
    from helpers.checkpoints import llava

    from vlmface import manifest

    whole = llava.load_model(
        manifest.resolve(manifest.TINY_MODEL), dtype=torch.float32, device="cpu"
    )
    squares = torch.randint(256, (3, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        seen = clip.model.visual
        ours = seen.transformer(seen._embeds(clip.pixels(squares)))
        theirs = whole.model.vision_tower(
            pixel_values=clip.pixels(squares), output_hidden_states=True
        ).hidden_states[-1]
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("size", [(96, 96), (200, 90), (40, 130)])
def test_squares_and_pixels_are_open_clips_transform(mode: str, size: tuple[int, int]) -> None:
    clip = tiny_clip.build(0)
    config = clip.config | {"preprocess_cfg": clip.config["preprocess_cfg"] | {"resize_mode": mode}}
    clip = model.Clip(clip.model, clip.tokenizer, config, "x")
    whole = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config["preprocess_cfg"]), is_train=False
    )
    noise = np.random.default_rng(0).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = clip.pixels(torch.from_numpy(clip.square(image).copy())[None])[0]
    assert torch.allclose(ours, whole(image), atol=1e-6)


def test_texts_are_read_as_by_open_clip(clip: model.Clip, siglip: model.Clip) -> None:
    said = ["a face.", "the inner ends of the brows are raised, the jaw is dropped.", "x " * 10]
    for one in (clip, siglip):
        tokens = one.tokens(said)
        with torch.no_grad():
            theirs = one.model.encode_text(tokens, normalize=True)
            assert torch.allclose(one.text_features(tokens), theirs, atol=1e-6)
            alone = torch.cat([one.text_features(row[None]) for row in tokens])
        assert torch.allclose(alone, theirs, atol=1e-6)


def test_a_folder_opens_in_open_clip_too(clip: model.Clip, tmp_path: Path) -> None:
    model.save_clip(clip, tmp_path)
    again = model.load_clip(tmp_path)
    assert model.weights_sha(again) == model.weights_sha(clip)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    image = face_rows(1)[0]["image"]
    with torch.no_grad():
        seen = theirs.encode_image(transform(image)[None], normalize=True)
        ours = again.image_features(torch.from_numpy(clip.square(image).copy())[None])
    assert torch.allclose(seen, ours, atol=1e-5)
    assert (
        model.is_clip(tmp_path) and model.is_clip("ViT-B-32/openai") and model.is_clip(model.TINY)
    )
    assert not model.is_clip("llava-hf/llava-1.5-7b-hf") and not model.is_clip(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ViT-B-33/openai", "did you mean .*'ViT-B-32'"),
        ("ViT-B-32/openia", "openai"),
        ("ViT-B-32", "write ViT-B-32/TAG"),
        ("nothing-like-it", "such as vlmface-clip-tiny"),
    ],
)
def test_unknown_names_are_told_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model.load_clip(name)


def test_broken_folders_are_named(clip: model.Clip, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no open_clip_config"):
        model.load_clip(tmp_path)
    (tmp_path / model.CONFIG).write_text(json.dumps(clip.config))
    with pytest.raises(UserError, match="no weights"):
        model.load_clip(tmp_path)
    (tmp_path / model.WEIGHTS).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot open the CLIP"):
        model.load_clip(tmp_path)


# --- texts of labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", label_texts.names())
def test_every_label_has_texts_that_fit(name: str, clip: model.Clip) -> None:
    found = label_texts.load(name)
    assert found.id == name and list(found.positive) == list(found.space.labels)
    every = [text for side in (found.positive, found.negative) for v in side.values() for text in v]
    assert len(every) == len(set(every)) or found.negatives
    label_texts.check_lengths(clip.tokenizer, every, name)
    assert not any("{" in text for text in every)


def test_signs_are_those_of_the_prototypes() -> None:
    assert label_texts.signs("happiness") == f"{facs.AUS[6].cue}, {facs.AUS[12].cue}"
    assert label_texts.signs("neutral") == "no facial muscle is moved"
    with pytest.raises(UserError, match="write descriptions"):
        label_texts.signs("Fatigue")


def test_the_sha_follows_what_the_model_reads(tmp_path: Path) -> None:
    path = Path("prompts/clip/clip_emotion.yaml")
    plain = label_texts.load(path)
    assert plain.sha == label_texts.load("clip_emotion").sha
    for before, after, same in (
        ("happiness: happy", "happiness: joyful", False),
        ("source: ", "notes: nothing\nsource: ", True),
    ):
        changed = tmp_path / "clip_emotion.yaml"
        changed.write_text(path.read_text().replace(before, after))
        assert (label_texts.load(changed).sha == plain.sha) is same


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("templates: ['{nothing}']", "placeholder"),
        ("templates: []", "no text for anger"),
        ("words: {joy: x}\ntemplates: [x]", "not in label space"),
        ("descriptions: {anger: angry}", "must be a list of texts"),
        ("negativ: {}", "negatives"),
    ],
)
def test_wrong_files_are_refused(lines: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"id: own\nversion: 1\nlabel_space: emotion8\nsource: me\n{lines}\n")
    with pytest.raises(UserError, match=said):
        label_texts.load(path)


def test_long_texts_are_counted_and_not_cut(clip: model.Clip) -> None:
    fits, long = "a " * 75, "a " * 76
    assert label_texts.lengths(clip.tokenizer, [fits, long]) == [77, 78]
    label_texts.check_lengths(clip.tokenizer, [fits], "x")
    with pytest.raises(UserError, match=r"1 of 2 texts of x have more than the 77 tokens .* 78"):
        label_texts.check_lengths(clip.tokenizer, [fits, long], "x")


# --- captions -------------------------------------------------------------------------------------


def _sample(**changes: object) -> FaceSample:
    known: dict = {
        "id": "a",
        "dataset": "x",
        "gender": "female",
        "age": 35.0,
        "race": "asian",
        "emotion": "anger",
        "aus": [AULabel(4, 3, True), AULabel(23, 2, True), AULabel(12, 0, False)],
        "meta": {"hair_style": "bob", "hair_colour": "black", "beard": False},
    }
    return FaceSample(**(known | changes))


def test_captions_say_what_is_asked_for() -> None:
    one = captions.write_caption(_sample(), ["attributes", "aus"], 0)
    assert one and "young woman" in one and "asian" in one and "black hair, bob" in one
    assert facs.AUS[4].cue in one and facs.AUS[23].cue in one and facs.AUS[12].cue not in one
    assert not any(word in one.lower() for word in (*label_spaces.EMOTIONS, "angry"))
    assert captions.write_caption(_sample(), ["attributes", "aus"], 0) == one
    several = {captions.write_caption(_sample(), ["attributes", "aus"], seed) for seed in range(8)}
    assert len(several) > 3
    feeling = captions.write_caption(_sample(), ["emotion"], 1)
    assert feeling and "expression of anger" in feeling and "woman" not in feeling
    calm = captions.write_caption(_sample(aus=[AULabel(4, 0, False)]), ["aus"], 0)
    assert calm and any(word in calm for word in ("moved", "rest", "relaxed"))


def test_captions_need_annotations() -> None:
    bare = FaceSample(id="a", dataset="x")
    assert captions.write_caption(bare, ["attributes", "aus", "emotion"], 0) is None
    assert captions.write_caption(_sample(aus=None), ["aus"], 0) is None
    for wrong in ([], ["moods"]):
        with pytest.raises(UserError, match="use some of attributes, aus, emotion"):
            captions.write_caption(_sample(), wrong, 0)
