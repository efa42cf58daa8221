"""Evidence in prompts: its text, where it is measured, changes in training, the whole path."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fastapi.testclient import TestClient
from helpers.checkpoints import llava
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest
from helpers.run_files import adapter, read_jsonl, read_metrics
from helpers.samples import picture, rows
from helpers.scripts import Recipe
from helpers.trainers import interrupted, starter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmface import encode, evidence, facs, manifest, prompts
from vlmface.aus import evidence as measured
from vlmface.aus.evidence import COLUMN, EvidenceSource, picture_index, with_evidence
from vlmface.benchmarks import load_benchmark, load_rows
from vlmface.cli import main
from vlmface.data import detect
from vlmface.data.crops import View
from vlmface.data.row_images import open_row_image
from vlmface.encode import Collator
from vlmface.errors import UserError
from vlmface.evaluate import robustness, withholding
from vlmface.infer.local import LocalModel
from vlmface.infer.predictor import Predictor
from vlmface.serving import parity
from vlmface.serving.gateway.app import create_app
from vlmface.serving.gateway.settings import Settings
from vlmface.train.augmentation import Augmentation, AugmentedRows
from vlmface.train.evidence_changes import SOURCE, EvidenceChanges, Rewriter
from vlmface.train.rows import encode_rows

needs_detector = pytest.mark.skipif(
    detect.unavailable_reason() is not None, reason="vlmface[detect] is missing"
)
GOLDEN = Path(__file__).parent / "golden" / "evidence.yaml"
PROMPT = prompts.load("face_cot_evidence")
ONE_SIDED = evidence.text_of(evidence.Movements({14: 3.0}, {14: (3.0, 0.0)}))
TEXTS = [
    evidence.text_of(evidence.Movements({6: 2.0, 12: 4.0})),
    ONE_SIDED,
    evidence.NONE,
    *(evidence.text_of(evidence.Movements(aus)) for aus in ({1: 2, 4: 3, 15: 1}, {25: 5}, {9: 2})),
]


def units(text: str) -> list[int]:
    """The AUs of a text, in its order."""
    return [int(number) for number in re.findall(r"\(AU(\d+)", text)]


# --- the text -------------------------------------------------------------------------------------


def test_the_text_of_a_version_is_pinned() -> None:
    golden = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))
    assert golden["version"] == evidence.VERSION
    for case in golden["cases"]:
        movements = None
        if case["aus"] is not None:
            sides = {au: tuple(pair) for au, pair in case.get("sides", {}).items()}
            movements = evidence.Movements(case["aus"], sides, case.get("photograph", False))
        assert evidence.text_of(movements) == case["text"]


@given(st.dictionaries(st.sampled_from(facs.SYNTH_AUS), st.floats(0, 5)), st.data())
def test_a_mixed_text_is_between_both(aus: dict[int, float], data: st.DataObject) -> None:
    own = evidence.text_of(evidence.Movements(aus))
    others = data.draw(st.dictionaries(st.sampled_from(facs.SYNTH_AUS), st.floats(0, 5)))
    other = evidence.text_of(evidence.Movements(others))

    assert evidence.mixed(own, other, lambda: False) == own
    assert set(units(evidence.mixed(own, other, lambda: True))) == set(units(other))
    some = evidence.mixed(own, other, lambda: data.draw(st.booleans()))
    assert {*units(own)} & {*units(other)} <= {*units(some)} <= {*units(own), *units(other)}
    assert units(some) == facs.top_down(units(some))
    photograph = evidence.of_photograph(own)
    assert evidence.is_of_photograph(photograph) and not evidence.is_of_photograph(own)
    assert evidence.mixed(photograph, other, lambda: False) == photograph
    for text in (own, other):
        assert evidence.mixed(text, evidence.NOT_MEASURED, lambda: True) == text
    assert evidence.mixed(evidence.NOT_MEASURED, other, lambda: True) == evidence.NOT_MEASURED


def test_only_a_prompt_with_the_placeholder_takes_evidence(monkeypatch: Any) -> None:
    plain = prompts.load("face_cot")
    assert not plain.uses_evidence and plain.messages("AU12 4") == plain.messages()
    assert PROMPT.uses_evidence
    with pytest.raises(UserError, match=r"contains measured movements of each face.*without \{ev"):
        PROMPT.messages()
    (message,) = PROMPT.messages("AU12 4 {candidates}")
    text = message["content"][-1]["text"]
    assert text.startswith("Measured: AU12 4 {candidates}.\n")  # filled once, not again
    assert PROMPT.with_label_order(PROMPT.space.labels[::-1]).uses_evidence
    sha = PROMPT.sha
    monkeypatch.setattr(prompts, "EVIDENCE_VERSION", evidence.VERSION + 1)
    assert prompts.load("face_cot_evidence").sha != sha
    assert prompts.load("face_cot").sha == plain.sha


# --- which picture --------------------------------------------------------------------------------


def test_the_face_in_the_middle_frame_is_measured() -> None:
    face, scene, masked = View(view="face"), View(view="scene"), View(view="face_masked")
    assert picture_index((), 1) == picture_index((face,), 1) == picture_index((face, scene), 1) == 0
    assert picture_index((scene, face), 1) == 1
    assert picture_index((scene, face), 4) == 4 + 2
    assert picture_index((), 3) == 1
    with pytest.raises(UserError, match=r"views are scene, face_masked.*add \{view: face\}"):
        picture_index((scene, masked), 1)


def test_a_run_without_a_view_of_the_face_is_refused(sft_cot: Recipe, tmp_path: Path) -> None:
    words = ("--prompt", "face_cot_evidence", "--views", "[{view: scene}]")
    with pytest.raises(UserError, match="measured in a view of the face"):
        sft_cot(tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


# --- measuring rows -------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, into which nothing is rendered."""
    from vlmface.utils import files

    monkeypatch.setattr(files, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@needs_detector
def test_rows_are_measured_once(monkeypatch: Any, own_cache: Path) -> None:
    benchmark = load_benchmark("synth")
    monkeypatch.undo()  # the faces are rendered into the cache that all tests share
    faces = load_rows(benchmark, None, 6)
    monkeypatch.setattr(measured.files, "cache_dir", lambda: own_cache)
    twice = faces.select([0, 1, 2, 3, 4, 5, 0, 1])
    texts = with_evidence(twice, [PROMPT], progress=False)[COLUMN][:]
    assert texts[:2] == texts[6:] and len(set(texts)) > 3
    with sqlite3.connect(measured.cache_file()) as store:
        assert store.execute("select count(*) from faces").fetchone() == (6,)
    with EvidenceSource() as source:
        images = [open_row_image(image) for image in twice["image"]]
        assert source.texts(images) == texts == [source.text(image) for image in images]
        mirrored = source.text(images[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert units(mirrored) == units(texts[0])
    monkeypatch.setattr(measured, "Estimator", None)  # nothing is left to be measured
    assert with_evidence(faces, [PROMPT], progress=False)[COLUMN][:] == texts[:6]
    plain = prompts.load("face_cot")
    assert COLUMN not in with_evidence(faces, [plain]).column_names


@needs_detector
def test_a_picture_without_a_face_is_not_measured(own_cache: Path) -> None:
    (text, *_) = with_evidence(rows(2), [PROMPT], progress=False)[COLUMN][:]
    assert text == evidence.NOT_MEASURED
    with EvidenceSource("withheld") as source:
        assert source.text(picture(0)) == evidence.NOT_MEASURED


def test_swapped_and_withheld_rows(monkeypatch: Any) -> None:
    data = with_texts(rows(6))
    monkeypatch.setattr(measured, "with_evidence", lambda rows, *_: rows)

    def changed(source: Any, pictures: Any) -> Any:
        return withholding.with_sources(data, [PROMPT], ((), 1), source, pictures)

    def pixels(faces: Any) -> list[bytes]:
        return [open_row_image(image).tobytes() for image in faces["image"]]

    assert changed("withheld", "shown")[COLUMN][:] == [evidence.NOT_MEASURED] * 6
    swapped = changed("swapped", "shown")[COLUMN][:]
    assert sorted(swapped) == sorted(TEXTS)
    assert not any(a == b for a, b in zip(swapped, TEXTS, strict=True))
    both = changed("swapped", "swapped")
    assert both[COLUMN][:] == swapped and both["id"] == data["id"]
    donors = [TEXTS.index(text) for text in swapped]
    own = pixels(data)
    assert pixels(both) == pixels(changed("measured", "swapped")) == [own[i] for i in donors]
    grey = [open_row_image(image) for image in changed("measured", "withheld")["image"]]
    assert {(image.size, image.getcolors()[0][1]) for image in grey} == {
        ((40, 40), withholding.GREY)
    }
    with pytest.raises(UserError, match="there is one row"):
        withholding.with_sources(data.select([0]), [PROMPT], ((), 1), "swapped", "shown")
    plain = [prompts.load("face_cot")]
    with pytest.raises(UserError, match="evidence is withheld, but prompt face_cot contains none"):
        withholding.with_sources(data, plain, ((), 1), "withheld", "shown")


# --- changes in training --------------------------------------------------------------------------


def with_texts(data: Any) -> Any:
    from datasets import Dataset, concatenate_datasets

    texts = [TEXTS[i % len(TEXTS)] for i in range(len(data))]
    return concatenate_datasets([data, Dataset.from_dict({COLUMN: texts})], axis=1)


def encoded(processor: Any, data: Any, max_length: int = 512) -> Any:
    rows, skipped = encode_rows(data, processor, llava, PROMPT, max_length=max_length, seed=0)
    assert not skipped
    return rows


@pytest.fixture(scope="module")
def processor(base: Path) -> Any:
    return llava.load_processor(base)


def rewriter(processor: Any, data: Any, max_length: int = 512, **shares: float) -> Rewriter:
    changes = EvidenceChanges(
        **{"dropout": 0.0, "picture_noise": 0.0, "noise": 0.0} | shares, seed=3
    )  # type: ignore[arg-type]
    return Rewriter(changes, processor, llava, max_length, data[SOURCE][:])


def test_changes_follow_seed_epoch_and_row() -> None:
    changes = EvidenceChanges(dropout=0.3, picture_noise=0.2, noise=0.1, seed=3)
    drawn = {(epoch, row): changes.draw(epoch, row) for epoch in range(4) for row in range(500)}
    for place, (withheld, swapped, rng) in drawn.items():
        again = changes.draw(*place)
        assert again[:2] == (withheld, swapped) and again[2].random() == rng.random()
        assert not (withheld and swapped)
    assert 500 < sum(withheld for withheld, _, _ in drawn.values()) < 700
    assert 320 < sum(swapped for _, swapped, _ in drawn.values()) < 480
    assert any(drawn[0, k][:2] != drawn[1, k][:2] for k in range(50))


def test_a_changed_row_is_what_the_encoder_makes_of_its_text(processor: Any) -> None:
    data = rows(6)
    own = encoded(processor, with_texts(data))
    assert own[SOURCE][0] is not None
    withheld = rewriter(processor, own, dropout=1.0)
    from datasets import Dataset, concatenate_datasets

    texts = Dataset.from_dict({COLUMN: [evidence.NOT_MEASURED] * 6})
    expected = encoded(processor, concatenate_datasets([data, texts], axis=1))
    for number in range(6):
        changes, shown = withheld.change(0, number, is_mirrored=False, is_corrupted=False)
        assert shown == number
        assert all(changes[name] == expected[number][name] for name in ("input_ids", "labels"))
        kept, _ = rewriter(processor, own).change(0, number, is_mirrored=False, is_corrupted=False)
        assert kept == {}
        hidden, _ = rewriter(processor, own).change(0, number, is_mirrored=False, is_corrupted=True)
        assert hidden["input_ids"] == changes["input_ids"]


def test_noise_changes_action_units_and_nothing_else(processor: Any) -> None:
    own = encoded(processor, with_texts(rows(6)))
    noisy = rewriter(processor, own, noise=0.5)
    seen: Counter[str] = Counter()
    for epoch in range(8):
        for number in range(6):
            changes, _ = noisy.change(epoch, number, is_mirrored=False, is_corrupted=False)
            again, _ = noisy.change(epoch, number, is_mirrored=False, is_corrupted=False)
            assert changes == again
            if changes:
                text = processor.tokenizer.decode(changes["input_ids"])
                seen[text.partition("Measured: ")[2].partition(".")[0]] += 1
                learnt = [token for token in changes["labels"] if token != encode.IGNORED]
                before = own[number]["labels"]
                assert learnt == [token for token in before if token != encode.IGNORED]
    assert len(seen) > 10


def test_a_mirrored_row_has_the_mirrored_evidence(processor: Any) -> None:
    own = encoded(processor, with_texts(rows(6)))
    augmented = AugmentedRows(
        own, Augmentation(0.0, (), flip=True, seed=0), rewriter(processor, own)
    )
    sides = set()
    for index in range(1, 60, 6):  # the row with AU14 on one side, in each epoch
        row = augmented[index]
        stored = open_row_image(own[1]["image"])
        is_mirrored = row["image"].tobytes() != stored.tobytes()
        text = processor.tokenizer.decode(row["input_ids"])
        assert ("(AU14 right)" if is_mirrored else "(AU14 left)") in text
        assert SOURCE not in Collator(processor, llava)([row, augmented[index]])
        sides.add(is_mirrored)
    assert sides == {True, False}


def test_a_row_that_would_be_too_long_keeps_its_own_text(processor: Any) -> None:
    data = with_texts(rows(6))
    longest = max(encoded(processor, data)["length"])
    own = encoded(processor, data, longest)
    tight = rewriter(processor, own, max_length=min(own["length"]), noise=1.0, dropout=0.3)
    for number in range(6):
        changes, _ = tight.change(0, number, is_mirrored=False, is_corrupted=False)
        if changes:
            fits = len(changes["input_ids"]) <= min(own["length"])
            assert fits or changes["input_ids"] == own[number]["input_ids"]


@pytest.mark.parametrize("share", [0.99, 1.0])
def test_a_rendered_face_gets_another_picture_as_if_photographed(
    processor: Any, share: float
) -> None:
    own = encoded(processor, with_texts(rows(6)))
    texts = rewriter(processor, own, picture_noise=share)
    shown = []
    for index in range(24):
        row = AugmentedRows(own, None, texts)[index]
        cached = AugmentedRows(own.remove_columns("image"), None, texts)[index]
        assert row["row"] == cached["row"] and "image" not in cached
        assert row["image"] == own[row["row"]]["image"]
        text = processor.tokenizer.decode(row["input_ids"])
        is_other = row["row"] != index % 6
        mark = evidence.PHOTOGRAPH if is_other and share < 1 else ""
        assert f"Measured: {mark}{TEXTS[index % 6]}." in text
        shown.append(is_other)
    assert sum(shown) > 12


def test_a_photograph_keeps_its_picture(processor: Any) -> None:
    data = with_texts(rows(6)).map(lambda row: {COLUMN: evidence.of_photograph(row[COLUMN])})
    own = encoded(processor, data)
    texts = rewriter(processor, own, picture_noise=1.0)
    assert [AugmentedRows(own, None, texts)[index]["row"] for index in range(6)] == [*range(6)]


def test_a_row_without_evidence_keeps_its_picture(processor: Any) -> None:
    """Nothing would be left that its target follows from."""
    own = encoded(processor, with_texts(rows(6)))
    texts = rewriter(processor, own, picture_noise=0.99)
    rows_shown = [texts.change(0, k, is_mirrored=False, is_corrupted=True)[1] for k in range(6)]
    assert rows_shown == [*range(6)]
    assert any(texts.change(0, k, is_mirrored=False, is_corrupted=False)[1] != k for k in range(6))
    unmeasured = with_texts(rows(6)).map(lambda row: {COLUMN: evidence.NOT_MEASURED})
    texts = rewriter(processor, encoded(processor, unmeasured), picture_noise=0.99)
    rows_shown = [texts.change(0, k, is_mirrored=False, is_corrupted=False)[1] for k in range(6)]
    assert rows_shown == [*range(6)]


def test_weights_stay_on_the_label(processor: Any) -> None:
    from vlmface.train import task_sampling

    data = with_texts(rows(6))
    (targets,) = task_sampling.row_targets(data, [PROMPT], soft=False)
    weighted, _ = task_sampling.training_rows(data, list(range(6)), PROMPT, targets, 1.0)
    own = encoded(processor, weighted)
    changes, _ = rewriter(processor, own, dropout=1.0).change(
        0, 0, is_mirrored=False, is_corrupted=False
    )
    learnt = [label != encode.IGNORED for label in own[0]["labels"]]
    of_changed = [label != encode.IGNORED for label in changes["labels"]]
    assert len(changes["token_weights"]) == len(changes["input_ids"])
    assert [
        w for w, is_learnt in zip(own[0]["token_weights"], learnt, strict=True) if is_learnt
    ] == [w for w, is_learnt in zip(changes["token_weights"], of_changed, strict=True) if is_learnt]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evidence_dropout": 0.7, "picture_noise": 0.4}, "their sum must be at most 1"),
        ({"evidence_dropout": 1.5}, r"evidence_dropout is 1\.5, but must be"),
        ({"evidence_noise": -0.1}, r"evidence_noise is -0\.1, but must be"),
        (
            {"evidence_dropout": 1, "picture_noise": 0, "evidence_noise": 0.2},
            r"evidence_noise is 0\.2, but has no effect: evidence_dropout is 1",
        ),
        ({"prompt": "face_cot", "evidence_noise": 0.2}, "prompt face_cot contains no evidence"),
    ],
)
def test_settings_are_checked(
    settings: dict[str, Any], message: str, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    changes = {"prompt": "face_cot_evidence"} | settings
    with pytest.raises(UserError, match=message):
        starter("sft", base, clip_base)(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


# --- the whole path -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(folders: Any, sft_cot: Recipe) -> Path:
    """A finished run whose prompt contains evidence."""

    def build(to: Path) -> None:
        assert sft_cot(to, "--prompt", "face_cot_evidence", "--n_train", "24") == 0

    return folders.copy("evidence", build)


@pytest.fixture(scope="module")
def faces(run: Path) -> list[Image.Image]:
    """The first rows of the run's test split."""
    return [open_row_image(image) for image in load_rows(load_benchmark("synth"), None, 4)["image"]]


@needs_detector
def test_the_manifest_names_the_estimator(run: Path) -> None:
    stored, (prompt,) = manifest.load(run)
    assert stored.evidence == measured.identity() and prompt.sha == PROMPT.sha
    assert stored.evidence["format"] == evidence.VERSION
    assert len(stored.evidence["sha256"]) == len(stored.evidence["landmarker_sha256"]) == 64
    lines = read_jsonl(run / "predictions.jsonl")
    with EvidenceSource() as source:
        images = [
            open_row_image(image) for image in load_rows(load_benchmark("synth"), None, 8)["image"]
        ]
        assert [line["evidence"] for line in lines] == source.texts(images)


@needs_detector
def test_evaluation_predict_and_gateway_show_the_same(
    run: Path, faces: list[Image.Image], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "eval"
    words = ["eval", "run", "--benchmark", "synth", "--n", "8", "--model", str(run)]
    assert main([*words, "--output_dir", str(out)]) == 0
    lines, expected = (read_jsonl(folder / "predictions.jsonl") for folder in (out, run))
    for name in ("evidence", "text", "label", "probabilities"):
        assert [line[name] for line in lines] == [line[name] for line in expected]
    for number, face in enumerate(faces):
        face.save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(len(faces))]
    capsys.readouterr()
    assert main(["predict", *files, "--model", str(run), "--json", "--faces", "none"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for report, line in zip(reports, lines, strict=False):
        assert report["evidence"] == line["evidence"]
        assert report["answers"]["emotion"]["text"] == line["text"]
    with Predictor.load(run) as predictor:
        with TestClient(create_app(predictor, Settings()), base_url="http://localhost") as client:
            body = {"image": base64.b64encode(Path(files[0]).read_bytes()).decode()}
            reply = client.post("/v1/analyze", json={**body, "faces": "none"})
            (face,) = reply.json()["faces"]
        assert face["evidence"] == lines[0]["evidence"]
        assert face["answers"]["emotion"]["text"] == lines[0]["text"]
        *_, streamed = predictor.stream(faces[0], faces="none")
        assert (
            streamed.evidence == lines[0]["evidence"] and streamed.primary.text == lines[0]["text"]
        )
        alone = [predictor.predict(face, faces="none") for face in faces]
        together = predictor.predict(faces, faces="none")
        waiting = asyncio.run(gather(predictor, faces))
    for reports_of in (alone, together, waiting):
        assert [report.evidence for report in reports_of] == [
            line["evidence"] for line in lines[:4]
        ]
        assert [report.primary.text for report in reports_of] == [
            line["text"] for line in lines[:4]
        ]


async def gather(predictor: Predictor, faces: list[Image.Image]) -> list[Any]:
    return await asyncio.gather(*(predictor.apredict(face, faces="none") for face in faces))


@needs_detector
def test_withheld_swapped_and_grey(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    words = ["eval", "run", "--benchmark", "synth", "--n", "8", "--model", str(run)]
    own = [line["evidence"] for line in read_jsonl(run / "predictions.jsonl")]
    assert main([*words, "--evidence", "swapped", "--pictures", "withheld"]) == 0
    folder = run / "eval" / "synth_evidence_swapped_pictures_withheld"
    swapped = [line["evidence"] for line in read_jsonl(folder / "predictions.jsonl")]
    assert swapped != own and sorted(swapped) == sorted(own)
    assert read_metrics(folder)["pictures"] == "withheld"
    monkeypatch.setattr(detect, "unavailable_reason", lambda: "pip install 'vlmface[detect]'")
    assert main([*words, "--output_dir", str(tmp_path / "none")]) == 2
    fix = "vlmface[detect]'; or answer without evidence: --evidence withheld"
    assert fix in capsys.readouterr().err
    with pytest.raises(UserError, match=r"vlmface\[detect\]"):
        Predictor.load(run)
    withheld = [*words, "--evidence", "withheld", "--output_dir", str(tmp_path / "out")]
    assert main(withheld) == 0
    lines = read_jsonl(tmp_path / "out" / "predictions.jsonl")
    assert {line["evidence"] for line in lines} == {evidence.NOT_MEASURED}
    with Predictor.load(run, evidence="withheld") as predictor:
        report = predictor.predict(picture(0), faces="none")
    assert report.evidence == evidence.NOT_MEASURED


def test_withheld_evidence_needs_a_prompt_with_evidence(run_dir: Path) -> None:
    with pytest.raises(UserError, match=r"evidence is withheld, but no prompt of .* contains any"):
        Predictor.load(run_dir, evidence="withheld")


@needs_detector
def test_a_server_is_sent_the_evidence(run: Path, tmp_path: Path) -> None:
    local = LocalModel.load(run)

    def behave(asked: TeacherRequest) -> Reply:
        image = Image.open(io.BytesIO(base64.b64decode(asked.face.partition(",")[2])))
        text = local.evidence.text(image.convert("RGB"))
        assert asked.prompt() == PROMPT.messages(text)[-1]["content"][-1]["text"]
        (prediction,) = local.predict([image], probabilities=False, evidence=[text])
        return Reply(prediction.text)

    out = tmp_path / "served"
    with FakeTeacher(behave) as server:
        words = ["eval", "run", "--benchmark", "synth", "--n", "8", "--model", server.url]
        assert main([*words, "--run_dir", str(run), "--output_dir", str(out)]) == 0
    local.close()
    for name in ("evidence", "text"):
        assert [line[name] for line in read_jsonl(out / "predictions.jsonl")] == [
            line[name] for line in read_jsonl(run / "predictions.jsonl")
        ]


@needs_detector
def test_the_parity_check_of_a_server_shows_the_evidence(run: Path, faces: list[Any]) -> None:
    large = [face.resize((64, 64)) for face in faces[:2]]
    with EvidenceSource() as source:
        texts = source.texts(large)
    processor = llava.load_processor(run)
    local = parity.generate_local(run, large, "float32")
    for generation, text in zip(local, texts, strict=True):
        assert f"Measured: {text}." in processor.tokenizer.decode(generation.prompt)


@needs_detector
def test_labels_are_scored_behind_the_evidence(run: Path, faces: list[Image.Image]) -> None:
    model = LocalModel.load(run)
    measured_scores = model.score(faces, prior=True)
    known = model.score(faces, prior=True, evidence=model.evidence.texts(faces))
    for one, other in zip(known, measured_scores, strict=True):
        assert one.log_likelihood == other.log_likelihood and one.prior == other.prior
    alone = [model.score([face])[0].log_likelihood for face in faces]
    for one, together in zip(alone, measured_scores, strict=True):
        assert one == pytest.approx(together.log_likelihood, abs=1e-4)
    withheld = model.score(faces, evidence=[evidence.NOT_MEASURED] * len(faces))
    assert any(
        a.log_likelihood != pytest.approx(b.log_likelihood, abs=1e-4)
        for a, b in zip(withheld, measured_scores, strict=True)
    )
    model.close()


@needs_detector
def test_corrupted_pictures_are_measured_as_they_are_shown(
    run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    seen: list[list[str]] = []
    original = LocalModel.predict

    def predict(self: LocalModel, images: Any, **arguments: Any) -> Any:
        seen.append(list(arguments["evidence"]))
        assert seen[-1] == self.evidence.texts([image for (image,) in images])
        return original(self, images, **arguments)

    monkeypatch.setattr(LocalModel, "predict", predict)
    words = ["--model", str(run), "--n", "2", "--corruptions", "[mask]"]
    assert robustness.main([*words, "--output_dir", str(tmp_path)]) == 0
    assert len(seen) == 6 and seen[0] != seen[-1]


@needs_detector
def test_a_resumed_run_sees_the_same_evidence(base: Path, clip_base: Path, tmp_path: Path) -> None:
    start = starter("sft", base, clip_base)
    changes = {
        "prompt": "face_cot_evidence",
        "evidence_dropout": 0.4,
        "evidence_noise": 0.3,
        "picture_noise": 0.2,
        "augment": "flip",
    }
    assert start(tmp_path / "whole", **changes) == 0
    with interrupted("sft", 4):
        start(tmp_path / "run", **changes)
    assert start(tmp_path / "run", **changes) == 0
    assert start(tmp_path / "plain", prompt="face_cot_evidence", evidence_dropout=0) == 0
    whole, resumed, plain = (adapter(tmp_path / name) for name in ("whole", "run", "plain"))
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())
    assert any(not torch.equal(plain[name], weight) for name, weight in whole.items())


@needs_detector
def test_features_of_other_rows_pictures_are_cached(
    base: Path, clip_base: Path, tmp_path: Path
) -> None:
    start = starter("sft", base, clip_base)
    changes = {"prompt": "face_cot_evidence", "picture_noise": 0.5, "lora_dropout": 0}
    assert start(tmp_path / "cached", **changes, vision_tower="frozen", cache_features="true") == 0
    assert start(tmp_path / "plain", **changes, vision_tower="frozen") == 0
    cached, plain = (adapter(tmp_path / name) for name in ("cached", "plain"))
    for name, weight in plain.items():
        torch.testing.assert_close(cached[name], weight, rtol=1e-4, atol=1e-5)


@needs_detector
def test_grpo_starts_from_a_run_with_evidence(
    run: Path, base: Path, clip_base: Path, tmp_path: Path
) -> None:
    start = starter("grpo", base, clip_base)
    assert (
        start(
            tmp_path / "grpo",
            init_from=str(run),
            prompt="face_cot_evidence",
            max_steps=1,
            save_steps=1,
        )
        == 0
    )
    stored, _ = manifest.load(tmp_path / "grpo")
    assert stored.evidence == measured.identity()
    assert all(line["evidence"] for line in read_jsonl(tmp_path / "grpo" / "predictions.jsonl"))


# --- manifests of strangers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sha256", "0" * 64, "whose sha256 is 0000.*install the vlmface that trained it"),
        ("landmarker_sha256", "0" * 64, "whose landmarker_sha256 is 0000"),
        ("format", 99, "whose format is 99, but that of this vlmface is"),
        ("estimator", "other-9", "whose estimator is other-9"),
    ],
)
@needs_detector
def test_another_estimator_is_refused(
    run: Path, tmp_path: Path, name: str, value: Any, message: str
) -> None:
    folder = changed_manifest(
        run, tmp_path, lambda stored: stored["evidence"].update({name: value})
    )
    with pytest.raises(UserError, match=message):
        LocalModel.load(folder)
    with pytest.raises(UserError, match=message):
        Predictor.load("http://127.0.0.1:9/v1", run_dir=folder)
    assert main(["eval", "run", "--benchmark", "synth", "--n", "2", "--model", str(folder)]) == 2


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        "landmarks-1",
        {"estimator": "x"},
        {
            "estimator": "../x",
            "sha256": "0" * 64,
            "landmarker_sha256": "0" * 64,
            "measurement": 1,
            "format": 1,
        },
        {
            "estimator": "x",
            "sha256": "0" * 63,
            "landmarker_sha256": "0" * 64,
            "measurement": 1,
            "format": 1,
        },
        {
            "estimator": "x",
            "sha256": "0" * 64,
            "landmarker_sha256": "0" * 64,
            "measurement": 1,
            "format": True,
        },
        {
            "estimator": "x",
            "sha256": "0" * 64,
            "landmarker_sha256": "0" * 64,
            "measurement": 1,
            "format": 1e9,
        },
    ],
)
@needs_detector
def test_a_hostile_manifest_is_refused(run: Path, tmp_path: Path, value: Any) -> None:
    folder = changed_manifest(run, tmp_path, lambda stored: stored.update(evidence=value))
    with pytest.raises(UserError, match=r"evidence is .*expected null, or the estimator"):
        manifest.load(folder)


@needs_detector
def test_a_manifest_without_the_estimator_is_refused(run: Path, tmp_path: Path) -> None:
    folder = changed_manifest(run, tmp_path, lambda stored: stored.update(evidence=None))
    with pytest.raises(UserError, match="its manifest does not name the estimator"):
        LocalModel.load(folder)


def changed_manifest(run: Path, tmp_path: Path, change: Any) -> Path:
    import shutil

    folder = tmp_path / "changed"
    shutil.copytree(run, folder)
    stored = json.loads((folder / manifest.FILENAME).read_text(encoding="utf-8"))
    change(stored)
    (folder / manifest.FILENAME).write_text(json.dumps(stored), encoding="utf-8")
    return folder
