"""SmolVLM and Idefics3: tiles, their text and their tokens are what processor and model make."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import smolvlm
from helpers.samples import FACES, picture
from helpers.scripts import Recipe
from PIL import Image
from safetensors import safe_open

from vlmface import encode, manifest, prompts
from vlmface.errors import UserError
from vlmface.families.tiny.smolvlm import SMOLVLM_TEMPLATE, TinySmolVLM
from vlmface.infer.local import LocalModel
from vlmface.rationale import rules

PROMPT = prompts.load("face_cot")
TARGET = PROMPT.completion("The lip corners are pulled up (AU12).", "happiness")
ALL_LORA = {"vision_tower": "lora", "projector": "lora", "language_model": "lora"}
# Square, wide, tall, of one pixel's height, tiny and large: 5, 3 or 2 tiles, of which one is whole.
SHAPES = [(40, 40), (90, 40), (40, 100), (300, 20), (16, 300), (17, 16), (1200, 900)]
PICTURES = [picture(seed, size) for seed, size in enumerate(SHAPES[:5])]
TYPES = ("smolvlm", "idefics3")

# What HuggingFaceTB's and HuggingFaceM4's checkpoints publish; it reads blocks only.
PUBLISHED = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def corpus() -> list[str]:
    texts = [
        rules.write(aus, emotion, format="think_answer", seed=seed)
        for aus, emotion in FACES
        for seed in range(20)
    ]
    for name in ("face_cot", "expllm"):
        texts += [str(prompts.load(name).messages()), "User: Assistant:"] * 20
    return texts


@pytest.fixture(scope="module")
def type_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random checkpoint of each type: tiles of 32 pixels, 4 tokens each; images of 64."""
    found = {name: tmp_path_factory.mktemp(name) for name in TYPES}
    for name, folder in found.items():
        smolvlm.build_tiny(folder, corpus(), model_type=name)
    return found


@pytest.fixture(scope="module")
def folder(type_folders: dict[str, Path]) -> Path:
    return type_folders["smolvlm"]


@pytest.fixture(scope="module", params=TYPES)
def kind(request: pytest.FixtureRequest, type_folders: dict[str, Path]) -> Path:
    return type_folders[request.param]


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return smolvlm.load_model(folder)


@pytest.fixture
def own(folder: Path) -> Any:
    """A processor that a test may change."""
    return smolvlm.load_processor(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def whole_text(processor: Any) -> str:
    turn = {"role": "assistant", "content": [{"type": "text", "text": TARGET}]}
    return processor.apply_chat_template([*PROMPT.messages(), turn]).removesuffix("\n")


# --- the checkpoint -------------------------------------------------------------------------------


def test_the_weights_have_their_published_names(kind: Path) -> None:
    names = {name for name, _ in smolvlm.load_model(kind).named_parameters()}
    with safe_open(kind / "model.safetensors", "pt") as file:  # vLLM reads these
        assert set(file.keys()) == names
    assert (kind / "chat_template.jinja").read_text() == SMOLVLM_TEMPLATE


# --- tiles and tokens -----------------------------------------------------------------------------

MANY_SHAPES = [
    *SHAPES,
    (64, 64),
    (65, 64),
    (64, 33),
    (63, 31),
    (33, 64),
    (1, 500),
    (500, 1),
    (1, 1),
]


@pytest.mark.parametrize("splitting", [True, False])
@pytest.mark.parametrize("resize", [32, 64, 96, 100, 130, {"height": 40, "width": 90}, None])
def test_tiles_are_counted_as_the_processor_cuts_them(
    kind: Path, splitting: bool, resize: Any
) -> None:
    from transformers.image_utils import SizeDict

    processor = smolvlm.load_processor(kind)
    settings = processor.image_processor
    settings.do_image_splitting, settings.do_resize = splitting, resize is not None
    if resize is not None:
        size = {"longest_edge": resize} if isinstance(resize, int) else resize
        settings.size = SizeDict(**size)
    for shape in MANY_SHAPES:
        if resize is None and max(shape) > 300:
            continue
        image = Image.new("RGB", shape)
        found = settings([[image]], return_tensors="pt", return_row_col_info=True)
        grid = smolvlm.tile_grid(processor, shape)
        assert grid == (found["rows"][0][0], found["cols"][0][0]), shape
        tiles = found["pixel_values"].shape[1]
        assert smolvlm.image_tokens(processor, shape) == tiles * processor.image_seq_len
        assert (tiles == 1) == (grid == (0, 0))


@pytest.mark.parametrize(("edge", "tile"), [(2048, 512), (1536, 384), (1456, 364)])
def test_published_sizes(folder: Path, edge: int, tile: int) -> None:
    """SmolVLM-256M and SmolVLM2-256M, SmolVLM2-2.2B, Idefics3-8B: no picture is needed to count."""
    processor = TinySmolVLM(tile_size=tile, longest_edge=edge).processor(
        smolvlm.load_processor(folder).tokenizer
    )
    for shape, expected in [((224, 224), (4, 4)), ((640, 360), (3, 4)), ((100, 300), (4, 2))]:
        assert smolvlm.tile_grid(processor, shape) == expected
    shape = (300, 224)
    found = processor.image_processor(
        [[picture(0, shape)]], return_tensors="pt", return_row_col_info=True
    )
    assert smolvlm.tile_grid(processor, shape) == (found["rows"][0][0], found["cols"][0][0])


def test_no_image_is_made_larger_than_the_processor_allows(folder: Path) -> None:
    processor = TinySmolVLM(tile_size=512, longest_edge=5120).processor(
        smolvlm.load_processor(folder).tokenizer
    )
    for shape, expected in [((400, 20), (1, 8)), ((20, 400), (8, 1))]:
        found = processor.image_processor(
            [[picture(0, shape)]], return_tensors="pt", return_row_col_info=True
        )
        assert (found["rows"][0][0], found["cols"][0][0]) == expected
        assert smolvlm.tile_grid(processor, shape) == expected


def test_the_count_of_transformers_would_be_wrong(own: Any) -> None:
    """Why `tile_grid` does not ask the image processor."""
    from transformers.image_utils import SizeDict

    own.image_processor.size = SizeDict(longest_edge=100)
    shape = (100, 60)
    _, *theirs = own.image_processor.get_number_of_image_patches(shape[1], shape[0])
    found = own.image_processor(
        [[picture(0, shape)]], return_tensors="pt", return_row_col_info=True
    )
    real = (found["rows"][0][0], found["cols"][0][0])
    assert smolvlm.tile_grid(own, shape) == real == (3, 4)
    assert tuple(theirs) == (2, 4)
    own.image_processor.do_image_splitting = False
    assert own.image_processor.get_number_of_image_patches(60, 100)[0] == 0  # it is one


def test_the_text_of_tiles(own: Any) -> None:
    tile = "<image>" * 4
    around = "<fake_token_around_image>"
    assert smolvlm.image_text(own, (90, 40)) == (
        f"{around}<row_1_col_1>{tile}{around}<row_1_col_2>{tile}\n\n{around}<global-img>{tile}{around}"
    )
    assert smolvlm.image_tokens(own, (90, 40)) == 12
    own.image_processor.do_image_splitting = False
    assert smolvlm.image_text(own, (90, 40)) == f"{around}<global-img>{tile}{around}"
    with pytest.raises(ValueError, match=r"depends on its size"):
        smolvlm.image_text(own)
    with pytest.raises(encode.SkippedSampleError, match=r"0 x 40 pixels yields no token") as error:
        smolvlm.image_text(own, (0, 40))
    assert error.value.reason == "image_shape"


# --- the limit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", [1, 2, 4, 5, 9, 10, 16, 17, 30])
def test_max_pixels_holds_for_every_shape_and_is_saved(
    folder: Path, tmp_path: Path, tiles: int
) -> None:
    processor = TinySmolVLM(longest_edge=128).processor(smolvlm.load_processor(folder).tokenizer)
    smolvlm.set_max_pixels(processor, tiles * 32 * 32 + 5)
    processor.save_pretrained(tmp_path)
    again = smolvlm.load_processor(tmp_path)
    most = 0
    for shape in MANY_SHAPES:
        found = smolvlm.image_inputs(again, [Image.new("RGB", shape)])["pixel_values"]
        assert found.shape[1] * 4 == smolvlm.image_tokens(processor, shape)
        most = max(most, found.shape[1])
    assert most == max(n for n in (1, 5, 10, 17) if n <= tiles)
    assert smolvlm.describe_image(again) == {
        "height": 32,
        "width": 32,
        "tiles": most,
        "tokens": 4 * most,
    }


def test_max_pixels_never_enlarges(own: Any) -> None:
    before = own.image_processor.to_dict()
    smolvlm.set_max_pixels(own, 10**9)
    assert own.image_processor.to_dict() == before
    with pytest.raises(UserError, match=r"max_pixels is 1023, .* 32 x 32 = 1024 pixels"):
        smolvlm.set_max_pixels(own, 1023)
    own.image_processor.do_image_splitting = False
    smolvlm.set_max_pixels(own, 1024)
    assert own.image_processor.to_dict() == before | {"do_image_splitting": False}


def test_max_pixels_limits_images_that_were_not_resized(own: Any) -> None:
    own.image_processor.do_resize = False
    assert smolvlm.describe_image(own) == {"height": 32, "width": 32}  # no bound
    assert smolvlm.image_tokens(own, (300, 300)) == 101 * 4
    smolvlm.set_max_pixels(own, 12 * 1024)
    assert smolvlm.image_tokens(own, (300, 300)) == 10 * 4
    assert smolvlm.image_inputs(own, [picture(0, (300, 300))])["pixel_values"].shape[1] == 10


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("splitting", [True, False])
@pytest.mark.parametrize("size", SHAPES)
def test_a_row_is_what_the_processor_makes(
    kind: Path, size: tuple[int, int], splitting: bool
) -> None:
    processor = smolvlm.load_processor(kind)
    processor.image_processor.do_image_splitting = splitting
    image = picture(4, size)
    theirs = processor(
        text=whole_text(processor), images=[image], return_tensors="pt", add_special_tokens=False
    )
    ours = encode.encode(processor, smolvlm, PROMPT.messages(), image, TARGET)
    assert ours["input_ids"] == theirs["input_ids"][0].tolist()
    assert set(ours) == {*theirs, "labels"}
    for name in ("pixel_values", "pixel_attention_mask"):
        assert torch.equal(ours[name], theirs[name])


def test_a_golden_row(own: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which"}]}]
    row = encode.encode(own, smolvlm, messages, picture(0, (90, 40)), "Q1")
    tile = ["<image>"] * 4
    prompt = [
        "<s>",
        "User",
        ":",
        "<fake_token_around_image>",
        "<row_1_col_1>",
        *tile,
        "<fake_token_around_image>",
        "<row_1_col_2>",
        *tile,
        "Ċ",
        "Ċ",
        "<fake_token_around_image>",
        "<global-img>",
        *tile,
        "<fake_token_around_image>",
        "Which",
        "<end_of_utterance>",
        "Ċ",
        "A",
        "ss",
        "istant",
        ":",
    ]
    answer = ["Ġ", "Q", "1", "<end_of_utterance>"]
    assert own.tokenizer.convert_ids_to_tokens(row["input_ids"]) == prompt + answer
    supervised = own.tokenizer.convert_tokens_to_ids(answer)
    assert row["labels"] == [-100] * len(prompt) + supervised
    assert row["attention_mask"] == [1] * len(prompt + answer)
    assert smolvlm.stop_token_ids(own) == supervised[-1:]
    assert row["pixel_values"].shape == (1, 3, 3, 32, 32)
    assert row["pixel_attention_mask"].shape == (1, 3, 32, 32)


def test_the_published_template_and_another_eos(own: Any) -> None:
    """Idefics3's EOS is not what ends an answer; generation stops at both."""
    expected = encode.encode_text(own, smolvlm, PROMPT.messages(), TARGET, image_size=(40, 40))
    own.chat_template = PUBLISHED.replace("<|im_start|>", "<s>")
    own.tokenizer.eos_token = "</s>"
    row = encode.encode_text(own, smolvlm, PROMPT.messages(), TARGET, image_size=(40, 40))
    assert row == expected
    ends = [own.tokenizer.convert_tokens_to_ids(t) for t in ("<end_of_utterance>", "</s>")]
    assert smolvlm.stop_token_ids(own) == ends
    assert row["labels"][-1] == ends[0]


def test_strings_are_read_as_blocks_are(own: Any) -> None:
    blocks = PROMPT.messages()
    text = "<image>" + blocks[0]["content"][1]["text"]
    asked = smolvlm.prompt_text(own, [{"role": "user", "content": text}])
    assert asked == smolvlm.prompt_text(own, blocks).replace(":<image>", ": <image>")
    answered = [*blocks, {"role": "assistant", "content": TARGET}]
    assert own.apply_chat_template(answered).removesuffix("\n") == whole_text(own)


def test_images_of_different_tiles_in_one_batch(own: Any, model: Any) -> None:
    encoded = [encode.encode(own, smolvlm, PROMPT.messages(), image, TARGET) for image in PICTURES]
    lazy = [
        {
            **encode.encode_text(own, smolvlm, PROMPT.messages(), TARGET, image_size=image.size),
            "image": image,
        }
        for image in PICTURES
    ]
    collate = encode.Collator(own, smolvlm)
    batch = collate(encoded)
    assert [len(row["pixel_values"][0]) for row in encoded] == [5, 3, 3, 3, 3]
    assert batch["pixel_values"].shape == (5, 5, 3, 32, 32)
    assert batch["pixel_attention_mask"].shape == (5, 5, 32, 32)
    assert set(collate(lazy)) == set(batch)
    for name, values in collate(lazy).items():
        assert torch.equal(values, batch[name]), name
    theirs = own(
        text=[whole_text(own)] * 5,
        images=[[image] for image in PICTURES],
        return_tensors="pt",
        add_special_tokens=False,
        padding=True,
    )
    for name, values in theirs.items():
        assert torch.equal(values, batch[name]), name
    supervised = batch["labels"] != -100
    assert not supervised[batch["attention_mask"] == 0].any()
    assert not supervised[batch["input_ids"] == own.image_token_id].any()
    features = smolvlm.tower_features(model, batch)
    assert [image.shape for image in features] == [(n, 16, 32) for n in (5, 3, 3, 3, 3)]


def test_a_row_too_long_is_refused_before_its_image_is_decoded(own: Any) -> None:
    whole = encode.encode_text(own, smolvlm, PROMPT.messages(), TARGET, image_size=(90, 40))
    length = len(whole["input_ids"])
    encode.encode_text(
        own, smolvlm, PROMPT.messages(), TARGET, image_size=(90, 40), max_length=length
    )
    with pytest.raises(encode.SkippedSampleError, match=r"\(20 of the image, "):
        encode.encode_text(
            own, smolvlm, PROMPT.messages(), TARGET, image_size=(40, 40), max_length=length
        )


# --- training -------------------------------------------------------------------------------------


def test_the_gpu_settings_run_on_miniatures_of_their_data(
    tmp_path: Path, folder: Path, sft_cot: Recipe
) -> None:
    from miniatures import expllm, rafdb

    expllm.write(tmp_path / "anno_json")
    rafdb.write(tmp_path / "RAF-DB", "_aligned")
    words = ["--config", "sft_cot_smolvlm", "--dataset_root", str(tmp_path / "anno_json")]
    words += ["--benchmark_root", str(tmp_path / "RAF-DB"), "--base_model", str(folder)]
    words += ["--n_train", "null", "--n_eval", "null", "--vision_tower", "frozen", "--epochs", "1"]
    words += ["--train_embeddings", "false", "--dataloader_workers", "0", "--max_pixels", "4096"]
    assert sft_cot(tmp_path / "run", *words) == 0
    found, _ = manifest.load(tmp_path / "run")
    assert (found.dataset["name"], found.dataset["n"], found.family) == ("expllm", 4, "smolvlm")
    assert found.image == {"height": 32, "width": 32, "tiles": 1, "tokens": 4}
    own = LocalModel.load(tmp_path / "run").processor  # what was learnt is what is served
    assert smolvlm.image_tokens(own, (100, 100)) == 4
    assert found.trainable == {
        "vision_tower": "frozen",
        "projector": "frozen",
        "language_model": "lora",
    }


# --- serving --------------------------------------------------------------------------------------


def test_vllm_is_told_what_it_needs(own: Any) -> None:
    frozen = {"vision_tower": "frozen", "projector": "frozen", "language_model": "lora"}
    smolvlm.set_max_pixels(own, 3 * 1024)
    flags = smolvlm.vllm_flags(own, max_length=512, trainable=frozen)
    assert flags["serve"]["max-model-len"] == 512
    assert json.loads(flags["serve"]["mm-processor-kwargs"]) == {
        "size": {"longest_edge": 32},
        "max_image_size": {"longest_edge": 32},
        "do_image_splitting": True,
        "do_resize": True,
    }
    assert flags["extra_body"] == {"stop_token_ids": [own.tokenizer.eos_token_id]}
    assert flags["merge"] is False
    assert smolvlm.vllm_flags(own, max_length=512, trainable=ALL_LORA)["merge"] is True
    own.chat_template = own.chat_template.replace("{{- bos_token -}}", "")
    flags = smolvlm.vllm_flags(own, max_length=512, trainable=frozen)
    assert flags["extra_body"]["add_special_tokens"] is True


def test_a_server_told_so_cuts_images_as_the_run_does(own: Any, folder: Path) -> None:
    """The base's processor with the flags' settings makes the inputs of the run's processor."""
    smolvlm.set_max_pixels(own, 3 * 1024)
    flags = smolvlm.vllm_flags(own, max_length=512, trainable=ALL_LORA)
    theirs = smolvlm.load_processor(folder)
    found = theirs(
        text="<image>",
        images=[PICTURES[0]],
        return_tensors="pt",
        **json.loads(flags["serve"]["mm-processor-kwargs"]),
    )
    ours = smolvlm.image_inputs(own, PICTURES[:1])
    assert torch.equal(found["pixel_values"], ours["pixel_values"])
    assert smolvlm.image_inputs(theirs, PICTURES[:1])["pixel_values"].shape[1] == 5  # untold


# --- refusals -------------------------------------------------------------------------------------


def test_a_processor_that_counts_other_tokens_than_the_model(copy: Path) -> None:
    file = copy / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_seq_len": 9}))
    with pytest.raises(UserError, match=r"reserves 9 tokens for a tile, but the model makes 4"):
        smolvlm.load_processor(copy)


def test_num2words_is_asked_for(
    type_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(UserError, match=r"num2words, .*: pip install 'vlmface\[smolvlm\]'"):
        smolvlm.load_processor(type_folders["smolvlm"])
    assert smolvlm.load_processor(type_folders["idefics3"])
