"""Other systems' files: read as they were published, scored as ours, held against FERBench."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_run import ABOUT, AUS, SPACE, random_rows
from helpers.run_files import PREDICTION, read_metrics
from hypothesis import given
from hypothesis import strategies as st
from miniatures.ferbench import ADJECTIVES, NOUNS, question
from miniatures.records import NOT_RECORDS, write_json, write_lines

from vlmface import cli
from vlmface.data.records import records
from vlmface.errors import UserError
from vlmface.evaluate import answering, compare, external_formats, ferbench
from vlmface.label_spaces import SPACES
from vlmface.metrics import metrics
from vlmface.rationale import rules

AFFECTNET = [*NOUNS, "contempt"]
SFEW = [word for word in ADJECTIVES if word != "contempt"]
SETS = {"rafdb": NOUNS, "affectnet": AFFECTNET, "ferplus": ADJECTIVES, "sfew": SFEW}


def item(number: int, true: str, response: Any, words: list[str] = NOUNS, **more: Any) -> dict:
    """An item of FERBench's result files, as infer_unifer.py writes it."""
    return {
        "image_path": f"/RAF-DB/aligned/test_{number:04d}_aligned.jpg",
        "true_label": true,
        "prompt": question(words),
        "candidate_labels": words,
        "model_response": response,
    } | more


def thought(reasoning: str, answer: str) -> str:
    return f"<think>{reasoning}</think>\n<answer>{answer}</answer>"


def score(path: Path, format: str, *words: str) -> Path:
    """Score a file through the command line; returns the folder with the results."""
    out = path.with_name("scored")
    argv = ["score", str(path), "--format", format, "--output_dir", str(out), *words]
    assert cli.main(argv) == 0
    return out


def results(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    scores = read_metrics(out)
    return scores, answering.read_lines(out / "predictions.jsonl")


# --- FERBench -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_clean_outputs_score_alike_by_both_rules(name, tmp_path, capsys):
    words = SETS[name]
    space = SPACES["emotion8" if "contempt" in words else "emotion7"]
    items = []
    for i in range(60):
        said = words[i % len(words)]
        true = said if i % 3 else words[i // 3 % len(words)]
        # The reasoning names another emotion, which neither rule reads beside a clean answer.
        label = space.match(words[(i + 1) % len(words)])
        text = rules.write({1: 3.0, 4: 2.0, 12: 1.0}, label, format="think_answer", seed=i)
        items.append(item(i, true, re.sub(r"(?<=<answer>)\w+", said, text), words))
    out = score(write_json(tmp_path / "results.json", items), "ferbench")
    scores, lines = results(out)
    right = sum(one["true_label"] in one["model_response"].split("<answer>")[1] for one in items)
    assert scores["emotion"]["accuracy"] == scores["ferbench_rule"]["accuracy"] == right / 60
    assert scores["ferbench_rule"] == {
        "accuracy": right / 60,
        "n": 60,
        "errors": 0,
        "unknown": 0,
        "disagreements": 0,
    }
    # The words that were asked for are the exact format, adjectives too.
    assert scores["parse"]["strict"] == 1 and scores["label_space"] == space.id
    assert (out / "disagreements.jsonl").read_text() == ""
    assert "both read every answer alike" in capsys.readouterr().out
    assert {line["label"] for line in lines} <= set(space.labels)
    page = (out / "report.html").read_text()
    assert "results.json on ferbench" in page and "FERBench&#39;s own rule" in page


# text, candidates, our label, FERBench's label, step, reason
CASES = [
    (
        thought("The lips tremble.", "unhappy"),
        SFEW,
        None,
        "happiness",
        "answer",
        "substring: unhappy",
    ),
    (
        thought("The lips tremble.", "unhappy"),
        NOUNS,
        None,
        "happiness",
        "synonym",
        "synonym: happy, inside unhappy",
    ),
    ("A fearless look.", NOUNS, None, "fear", "response", "substring: fearless"),
    (
        thought("A smile.", "not happy"),
        SFEW,
        None,
        "happiness",
        "answer",
        "passed over a negation: not happy",
    ),
    (
        thought("A smile.", "The person isn’t very happy."),
        SFEW,
        None,
        "happiness",
        "answer",
        "passed over a negation: isn’t very happy",
    ),
    (
        "<think>The cheeks suggest happiness, but",
        NOUNS,
        None,
        "happiness",
        "response",
        "searched the reasoning: happiness",
    ),
    (
        thought("It may be fear.", "bored"),
        NOUNS,
        None,
        "fear",
        "response",
        "searched the reasoning: fear",
    ),
    # A right answer in the other part of speech is lost to a word of the reasoning.
    (
        thought("It may be fear.", "angry"),
        NOUNS,
        "anger",
        "fear",
        "response",
        "searched the reasoning: fear",
    ),
    (
        thought("Made up.", "bored"),
        AFFECTNET,
        None,
        "anger",
        "synonym",
        "searched the reasoning: made",
    ),
    (
        thought("-", "sad or happy"),
        SFEW,
        None,
        "happiness",
        "answer",
        "several candidates, took the first of the list",
    ),
    (
        "The person is happy. The person is sad.",
        SFEW,
        None,
        "happiness",
        "response",
        "several candidates, took the first of the list",
    ),
    (
        "<answer>fear</answer> <answer>anger</answer>",
        NOUNS,
        None,
        "fear",
        "answer",
        "several answers, took the first",
    ),
    (thought("-", "calm"), NOUNS, None, "neutral", "synonym", "synonym: calm"),
    (
        thought("-", "an abnormal mood"),
        NOUNS,
        None,
        "neutral",
        "synonym",
        "synonym: normal, inside abnormal",
    ),
    (thought("-", "He made a face."), SFEW, None, "anger", "synonym", "synonym: mad, inside made"),
    (thought("-", "furious"), NOUNS, "anger", None, "unknown", "did not know the word: furious"),
    (
        "I cannot determine it, perhaps neutral.",
        NOUNS,
        None,
        "neutral",
        "response",
        "took a refusal for an answer: neutral",
    ),
    (thought("-", "Is it anger?"), NOUNS, None, "anger", "answer", "mentioned, not stated: anger"),
]


@pytest.mark.parametrize(("text", "words", "ours", "theirs", "step", "reason"), CASES)
def test_each_disagreement_is_listed_with_both_readings_and_its_reason(
    tmp_path, text, words, ours, theirs, step, reason
):
    path = write_json(tmp_path / "results.json", [item(1, words[0], text, words)])
    [line] = answering.read_lines(score(path, "ferbench") / "disagreements.jsonl")
    assert line["id"] == "ferbench-RAF-DB/aligned/test_0001_aligned" and line["text"] == text
    assert line["ours"]["label"] == ours
    assert line["ferbench"] == {"label": theirs, "step": step}
    assert line["reason"] == reason


def test_both_accuracies_their_denominators_and_the_printed_table(tmp_path, capsys):
    items = [
        item(1, "happiness", thought("-", "happiness")),
        item(2, "happiness", thought("It may be sadness.", "happy")),
        item(3, "fear", thought("-", "fear or anger")),
        item(4, "anger", "ERROR: CUDA out of memory", error=True),
        item(5, "anger", ""),
        item(6, "anger", None),
        item(7, "anger", thought("-", "anger"), error=False),
        item(8, "anger", thought("-", "happiness, anger")),
    ]
    out = score(write_json(tmp_path / "uni fer.json", items), "ferbench")
    scores, lines = results(out)
    assert (scores["n"], scores["emotion"]["accuracy"]) == (8, 3 / 8)
    assert scores["ferbench_rule"] == {
        "accuracy": 3 / 7,
        "n": 7,
        "errors": 1,
        "unknown": 2,
        "disagreements": 4,
    }
    assert [line["status"] for line in lines] == [
        "strict",
        "lenient",
        "ambiguous",
        "none",
        "none",
        "none",
        "strict",
        "ambiguous",
    ]
    assert scores["parse"]["none"] == 3 / 8
    assert set(lines[0]) == PREDICTION
    different = answering.read_lines(out / "disagreements.jsonl")
    assert [(one["id"][-12:-8], one["right"], one["reason"]) for one in different] == [
        ("0002", "ours", "searched the reasoning: sadness"),
        ("0003", "ferbench", "several candidates, took the first of the list"),
        ("0004", "neither", "error dropped from the denominator"),
        ("0008", "neither", "several candidates, took the first of the list"),
    ]
    printed = capsys.readouterr().out
    assert "uni fer.json: 8 answers as ferbench, labels of emotion7" in printed
    assert "3 of them are errors or empty; they count as wrong" in printed
    assert "emotion accuracy 0.375 [" in printed
    assert "FERBench's own rule: accuracy 0.429 on 7 faces, 1 left out for an error" in printed
    table = [re.split(r"  +", line) for line in printed.splitlines()]
    assert ["several candidates, took the first of the list", "2", "1", "0", "1"] in table
    assert ["searched the reasoning", "1", "0", "1", "0"] in table


def test_a_file_of_nothing_but_errors_has_no_accuracy_by_their_rule(tmp_path, capsys):
    items = [item(i, "anger", "ERROR: x", error=True) for i in range(3)]
    del items[1]["model_response"]
    scores, _ = results(score(write_json(tmp_path / "results.json", items), "ferbench"))
    assert scores["emotion"]["accuracy"] == 0 and scores["ferbench_rule"]["accuracy"] is None
    assert "own rule: accuracy none on 0 faces" in capsys.readouterr().out


def test_the_synonyms_of_the_four_sets():
    assert ferbench.synonyms(NOUNS)["anger"] == ["angry"]
    assert ferbench.synonyms(AFFECTNET)["anger"] == ["angry", "mad"]
    assert ferbench.synonyms(ADJECTIVES)["angry"] == ["anger"]
    assert ferbench.synonyms(SFEW)["angry"] == ["anger", "mad"]
    assert list(ferbench.synonyms(ADJECTIVES)) == [
        "angry",
        "contempt",
        "disgust",
        "fear",
        "happy",
        "sad",
        "neutral",
        "surprise",
    ]
    assert ferbench.synonyms(SFEW)["sad"] == ["sorrow", "unhappy"]
    assert "contempt" not in ferbench.synonyms(SFEW)


PIECES = st.lists(
    st.sampled_from(
        [
            "<answer>",
            "</answer>",
            "<ANSWER>",
            "</Answer>",
            "<think>",
            "</think>",
            " ",
            "\n",
            "\t",
            "happy",
            "unhappy",
            "sad",
            "mad",
            "not",
            "fear",
            ".",
            "x",
        ]
    ),
    max_size=14,
).map("".join)
PATTERN = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.IGNORECASE)


@given(PIECES)
def test_the_first_answer_is_what_their_pattern_captures(text):
    match = PATTERN.search(text)
    assert ferbench.first_answer(text) == (match[1].lower() if match else None)


def test_a_hostile_response_takes_no_time():
    start = time.perf_counter()
    for text in (
        "<answer>" * 50_000 + "\nx</answer>",
        "<answer>" + " " * 300_000 + "x",
        "<answer>x\n</answer>" * 20_000,
        "not " * 100_000 + "happy",
    ):
        row = {
            "id": "1",
            "image": None,
            "text": text,
            "label": None,
            "status": "none",
            "truth": {"emotion": "fear"},
        }
        ferbench.compare([row], [SFEW], [False], SPACES["emotion7"])
    assert time.perf_counter() - start < 5


@given(st.one_of(st.text(), PIECES), st.sampled_from(list(SETS.values())))
def test_no_text_breaks_either_reading(text, words):
    space = SPACES["emotion8" if "contempt" in words else "emotion7"]
    truth = {"emotion": "fear", "aus": None, "attributes": {}}
    one = external_formats.Item("here", "1", None, truth, text, False, tuple(words))
    for format in ("think_answer", "three_part", "label"):
        [line] = external_formats.predictions(external_formats.Answers(space, format, [one]))
        assert line["label"] is None or line["status"] in ("strict", "lenient")
        theirs, different = ferbench.compare([line], [words], [False], space)
        assert (theirs["accuracy"] == (line["label"] == "fear")) or different
        ferbench.table(different)


# --- Facial-R1 ------------------------------------------------------------------------------------


def inferred(image: str, aus: list[str], labels: list[str], text: str) -> dict[str, Any]:
    """An item of eval_qwen.py's `inference_results`."""
    return {
        "image": image,
        "question": "<image>\nWhich?",
        "gt_AUs": aus,
        "gt_labels": labels,
        "pred_AUs": ["AU99"],
        "pred_labels": ["?"],
        "description": text,
        "gt_description": "The brows ...",
    }


def test_facial_r1_results_score_labels_and_aus(tmp_path, capsys):
    said = [
        inferred(
            "FABA/1.jpg", ["AU4", "AU23"], ["anger"], thought("AU4 is there, no AU23.", "anger")
        ),
        inferred("FABA/2.jpg", ["AU12"], ["happiness"], thought("AU12 and AU6.", "sadness")),
        inferred("FABA/3.jpg", [], ["anger", "disgust"], thought("AU4.", "anger")),
        inferred("FABA/4.jpg", ["AU4"], ["confusion"], ""),
    ]
    path = write_json(tmp_path / "log.json", {"au_metrics": None, "inference_results": said})
    scores, lines = results(score(path, "facial-r1"))
    assert [line["truth"]["emotion"] for line in lines] == ["anger", "happiness", None, None]
    assert lines[0]["aus"] == [4] and scores["emotion"]["n"] == 2
    assert scores["emotion"]["accuracy"] == 0.5
    # AU6 is in no truth of the file; an item that does not list AU4 does not show it.
    assert list(scores["au"]["per_au"]) == ["AU4", "AU12", "AU23"]
    assert scores["au"]["per_au"]["AU4"] == {
        "f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "support": 2,
    }
    assert scores["au"]["per_au"]["AU12"]["f1"] == 1 and scores["au"]["per_au"]["AU23"]["f1"] == 0
    printed = capsys.readouterr().out
    assert "2 of them have no single true label" in printed and "1 of them are errors" in printed
    assert not (path.with_name("scored") / "disagreements.jsonl").exists()


def test_facial_r1_lines_in_the_form_of_fea20k(tmp_path):
    rows = [
        {
            "id": f"{i:03d}",
            "dataset": dataset,
            "image": f"{dataset}/{i}.jpg",
            "question": "?",
            "AUs": aus,
            "labels": labels,
            "description": thought("AU1.", "fear"),
            "is_valid": False,
        }
        for i, (dataset, aus, labels) in enumerate(
            [
                ("DISFA", ["AU1"], []),
                ("DISFA", ["AU2"], []),
                ("FER2013", [], ["fear"]),
            ]
        )
    ]
    path = write_lines(tmp_path / "out.jsonl", *rows)
    scores, lines = results(score(path, "facial-r1"))
    assert [line["id"] for line in lines] == [
        "fea20k-DISFA-000",
        "fea20k-DISFA-001",
        "fea20k-FER2013-002",
    ]
    assert [line["truth"]["annotated_aus"] for line in lines] == [[1, 2], [1, 2], None]
    assert scores["n"] == 3 and scores["emotion"]["accuracy"] == 1
    assert scores["au"]["per_au"]["AU1"]["precision"] == 0.5


# --- ExpLLM ---------------------------------------------------------------------------------------


def test_expllm_labels_and_descriptions(tmp_path, capsys):
    said = [
        {
            "task": "emo_estim",
            "gt": true,
            "offset": [0, 0],
            "img_path": f"test_{i}.jpg",
            "pred": pred,
        }
        for i, (true, pred) in enumerate(
            [
                ("Happiness", "Happiness"),
                ("Anger", "Anger."),
                ("Fear", "Surprise"),
                ("Sadness", "unsadness"),
            ]
        )
    ]
    scores, lines = results(score(write_json(tmp_path / "result_all.json", said), "expllm"))
    assert scores["emotion"]["accuracy"] == 0.5 and "au" not in scores
    assert [line["status"] for line in lines] == ["strict", "lenient", "strict", "none"]
    assert lines[0]["id"] == "expllm-test_0"
    assert "read in the format label" in capsys.readouterr().out

    parts = "**Key Observations:** Low brows.\n**Overall Emotional Interpretation:** Strain.\n"
    told = [
        {
            "file_name": "test_1_aligned.jpg",
            "emo": "Anger",
            "au": [0.0] * 24,
            "description": f"{parts}**Conclusion:** anger",
        },
        # `emo` is then what the model said before; the conclusion is prose that states nothing.
        {
            "file_name": "test_2_aligned.jpg",
            "emo": "Fear",
            "gt_emo": "Sadness",
            "description": parts
            + "**Conclusion:** A nuanced depiction of sadness and of strength.",
        },
    ]
    scores, lines = results(score(write_json(tmp_path / "told.json", told), "expllm"))
    assert [line["status"] for line in lines] == ["strict", "ambiguous"]
    assert lines[1]["truth"]["emotion"] == "sadness" and scores["emotion"]["accuracy"] == 0.5

    with pytest.raises(UserError, match=r"record 1 holds a label and .*record 5 a description"):
        external_formats.read(write_json(tmp_path / "both.json", [*said, *told]), "expllm")


# --- our own --------------------------------------------------------------------------------------


def test_jsonl_with_labels_aus_and_another_space(tmp_path, capsys):
    path = write_lines(
        tmp_path / "answers.jsonl",
        {"id": 1, "text": thought("AU4.", "anger"), "truth": "Angry"},
        {
            "id": "b",
            "text": thought("AU6 and AU12.", "happiness"),
            "truth": {"emotion": "happiness", "aus": ["AU12", 6], "annotated_aus": [4, 6, 12]},
        },
        {
            "id": "c",
            "text": thought("AU4.", "sadness"),
            "truth": {"emotion": None, "aus": {"AU4": 2.5, "1": 0, "15": None}},
        },
        {"id": "d", "text": None, "truth": "fear"},
    )
    scores, lines = results(score(path, "jsonl"))
    assert scores["emotion"]["accuracy"] == 2 / 3
    assert lines[2]["truth"]["aus"] == {"4": 2.5, "1": 0, "15": None}
    assert scores["au"]["per_au"]["AU15"]["recall"] == 0
    assert scores["au"]["per_au"]["AU12"]["f1"] == 1
    assert "read in the format think_answer" in capsys.readouterr().out

    path = write_lines(
        tmp_path / "gender.jsonl",
        {"id": 1, "text": "female", "truth": "woman"},
        {"id": 2, "text": "male", "truth": {"attributes": {"gender": "female"}}},
    )
    scores, lines = results(score(path, "jsonl", "--label_space", "gender"))
    assert scores["attributes"]["gender"]["accuracy"] == 0.5 and "emotion" not in scores
    assert scores["parse"]["strict"] == 1 and lines[0]["truth"]["attributes"]["gender"] == "female"


def test_our_own_predictions_score_as_they_did_and_can_be_compared(tmp_path, capsys):
    rows = random_rows(80, seed=3)
    before = metrics.summarise(rows, SPACE, AUS, about=ABOUT)
    rows[0]["text"] += "\u2028"  # a line separator that JSON lines do not break at
    path = write_lines(tmp_path / "predictions.jsonl", *rows)
    out = score(path, "jsonl")
    scores, lines = results(out)
    assert len(lines) == 80 and lines[0]["text"] == rows[0]["text"]
    for key in ("accuracy", "uar", "f1_macro", "ci95", "confusion"):
        assert scores["emotion"][key] == before["emotion"][key]
    assert scores["au"]["f1_macro"] == before["au"]["f1_macro"]
    assert scores["parse"] == before["parse"]
    # What was written can be scored again, and compared.
    again = score(out / "predictions.jsonl", "jsonl", "--output_dir", str(tmp_path / "again"))
    assert again != tmp_path / "again" and (tmp_path / "again" / "report.html").exists()
    runs = [compare.read(out), compare.read(tmp_path / "again")]
    [pair] = compare.compare(runs)["pairs"]
    assert pair["emotion"]["accuracy"]["difference"] == 0 and pair["n"] == 80


# --- what is refused ------------------------------------------------------------------------------

GOOD = {
    "ferbench": item(1, "anger", "anger"),
    "facial-r1": inferred("a.jpg", [], ["anger"], "x"),
    "expllm": {"gt": "Anger", "img_path": "a.jpg", "pred": "Anger"},
    "jsonl": {"id": 1, "text": "anger", "truth": "anger"},
}


@pytest.mark.parametrize(
    ("format", "fields", "message"),
    [
        ("ferbench", {"true_label": "bored"}, "'true_label' is 'bored', expected one of the cand"),
        ("ferbench", {"candidate_labels": ["joyride"]}, "'candidate_labels' .* 'joyride' is not"),
        ("ferbench", {"candidate_labels": "anger"}, "expected a list of texts"),
        ("ferbench", {"candidate_labels": []}, "'true_label' is 'anger', expected one of the"),
        ("ferbench", {"image_path": "/"}, "'image_path' is '/', expected the path of an image"),
        ("ferbench", {"image_path": None}, "'image_path' is None, expected a text"),
        ("ferbench", {"model_response": 7}, "'model_response' is 7, expected the model's text"),
        ("ferbench", {"model_response": ...}, "'model_response' is missing, expected the model's"),
        ("facial-r1", {"gt_labels": ["bored"]}, "'gt_labels' is 'bored', expected one of anger"),
        ("facial-r1", {"gt_labels": "anger"}, "'gt_labels' is 'anger', expected a list of texts"),
        ("facial-r1", {"gt_AUs": ["AU99"]}, "'gt_AUs': 'AU99' is not a known action unit"),
        ("facial-r1", {"image": ""}, "'image' is '', expected the path of an image, or an 'id'"),
        ("facial-r1", {"gt_labels": ..., "gt_AUs": ...}, "'gt_labels' is missing, expected true"),
        ("expllm", {"gt": "Boredom"}, "'gt' is 'Boredom', expected one of anger"),
        ("expllm", {"task": "headpose_estim"}, "'task' is 'headpose_estim', expected 'emo_estim'"),
        ("expllm", {"task": "emo_analysis"}, "'emo' is missing, expected the true label"),
        ("expllm", {"img_path": ...}, "'img_path' is missing"),
        ("jsonl", {"id": ...}, "'id' is missing"),
        ("jsonl", {"id": " "}, "'id' is ' ', expected a text"),
        ("jsonl", {"id": True}, "'id' is True"),
        ("jsonl", {"text": ["x"]}, r"'text' is \['x'\], expected the model's text"),
        ("jsonl", {"truth": "unhappy"}, "'truth' is 'unhappy', expected one of anger.*emotion8; "),
        ("jsonl", {"truth": None}, "'truth' is None, expected a label, or"),
        ("jsonl", {"truth": {"emotion": 3}}, "truth: 'emotion' is 3"),
        ("jsonl", {"truth": {"aus": [99]}}, "truth: 'aus' is 99, expected AUs of FACS"),
        ("jsonl", {"truth": {"aus": ["AU4" * 99]}}, r"'aus' is 'AU4AU4.*\.\.\., expected AUs of"),
        ("jsonl", {"truth": {"aus": [True]}}, r"'aus' is \[True\], expected a list of AUs"),
        ("jsonl", {"truth": {"aus": 4}}, "'aus' is 4, expected a list of AUs"),
        ("jsonl", {"truth": {"aus": {"4": 9}}}, "'aus' is {'4': 9}, expected intensities"),
        ("jsonl", {"truth": {"aus": {"4": float("nan")}}}, "expected intensities from 0 to 5"),
        ("jsonl", {"truth": {"annotated_aus": [4]}}, "'aus' is missing, expected the AUs that are"),
        ("jsonl", {"truth": {"aus": [4], "annotated_aus": [1]}}, "all AUs of 'aus', AU4 too"),
        ("jsonl", {"truth": {"attributes": [1]}}, r"'attributes' is \[1\]"),
    ],
)
def test_a_wrong_item_is_named_with_its_file_and_place(tmp_path, format, fields, message):
    wrong = {k: v for k, v in (GOOD[format] | fields).items() if v is not ...}
    if "id" in wrong or "image" in wrong:
        wrong |= {k: "2" for k in ("id", "image") if k in wrong and k not in fields}
    if format == "jsonl":
        path, place = write_lines(tmp_path / "a.jsonl", GOOD[format], wrong), "line 2"
    else:
        path, place = write_json(tmp_path / "a.json", [GOOD[format], wrong]), "record 2"
    with pytest.raises(UserError, match=message) as error:
        external_formats.read(path, format)
    assert str(error.value).startswith(f"{path}, {place}")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("format", external_formats.FORMATS)
def test_an_id_that_occurs_twice(tmp_path, format):
    rows = [GOOD[format], GOOD[format]]
    if format == "jsonl":
        path = write_lines(tmp_path / "a.jsonl", *rows)
    else:
        path = write_json(tmp_path / "a.json", rows)
    with pytest.raises(UserError, match=r"2: id '.*' is that of .* 1 too, but an item has one"):
        external_formats.read(path, format)


@pytest.mark.parametrize("format", external_formats.FORMATS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON|holds no answers"),
        (b"[]", "holds no answers|expected a record"),
        (b'[{"image_path": "cut o', "not JSON"),
        (b"7", "expected a list of records|expected a record"),
        (b'["a"]', "expected a record"),
        (b"\xff{}", "is not UTF-8"),
        (b'{"id": "\\ud83d"}', "half of a|expected a list of records"),
        *NOT_RECORDS,
    ],
)
def test_a_file_that_is_something_else(tmp_path, format, content, message, capsys):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    argv = ["score", str(path), "--format", format, "--output_dir", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and str(path) in said and len(said) < 500
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_the_command_refuses(tmp_path, capsys):
    path = write_lines(tmp_path / "predictions.jsonl", GOOD["jsonl"])

    def refused(*words: str) -> str:
        assert cli.main(["score", str(path), "--format", "jsonl", *words]) == 2
        return capsys.readouterr().err

    assert "there is no label space 'emotion9'" in refused("--label_space", "emotion9")
    assert "expected one of female, male" in refused("--label_space", "gender")
    assert "holds a run or the file itself" in refused("--output_dir", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "vlmface.json").write_text("{}")
    assert "holds a run or" in refused("--output_dir", str(tmp_path / "run"))
    assert "cannot be made" in refused("--output_dir", str(path / "out"))
    assert path.read_text().count("\n") == 1 and len(list((tmp_path / "run").iterdir())) == 1
    assert cli.main(["score", str(tmp_path / "none.json"), "--format", "ferbench"]) == 2
    assert "none.json cannot be read: No such file" in capsys.readouterr().err
    write_lines(path, {"id": 1, "text": "x", "truth": {}})
    assert "no item has a true label or AUs" in refused()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["score", str(path), "--format", "csv"])
    [listed] = re.findall(r"choose from (.*)\)", capsys.readouterr().err)
    assert [word.strip("' ") for word in listed.split(",")] == list(external_formats.FORMATS)
    with pytest.raises(UserError, match="format='csv': use one of 'ferbench'"):
        external_formats.read(path, "csv")


def test_results_replace_those_of_an_earlier_file(tmp_path):
    out = score(write_json(tmp_path / "a.json", [item(1, "anger", "fear, anger")]), "ferbench")
    assert (out / "disagreements.jsonl").exists()
    score(write_lines(tmp_path / "a.jsonl", GOOD["jsonl"]), "jsonl")
    assert not (out / "disagreements.jsonl").exists()


def test_records_within_a_mapping_and_lines_by_request(tmp_path):
    path = write_json(tmp_path / "a.json", {"rows": [{"x": 1}], "n": 1})
    assert records(path, within="rows")[0].fields == {"x": 1}
    with pytest.raises(UserError, match="expected a list of records"):
        records(path)
    assert records(path, lines=True)[0].fields["n"] == 1


# --- what was asked -------------------------------------------------------------------------------


def scored(tmp_path: Path, name: str, rows: list[dict], *words: str) -> dict[str, Any]:
    folder = tmp_path / name
    folder.mkdir()
    return results(score(write_lines(folder / "answers.jsonl", *rows), "jsonl", *words))[0]


@pytest.mark.parametrize("written", [str.title, str.upper, "{}.".format, "**{}**".format])
def test_the_letters_of_a_label_do_not_decide_the_form(tmp_path, written):
    truths = {"happiness": [6, 12], "anger": [4, 7], "sadness": [1, 15]}
    rows = [
        {"id": i, "text": label, "truth": {"emotion": label, "aus": aus}}
        for i, (label, aus) in enumerate(truths.items())
    ]
    expected = scored(tmp_path, "lower", rows)
    found = scored(tmp_path, "other", [row | {"text": written(row["text"])} for row in rows])
    assert expected["emotion"]["accuracy"] == 1 and "au" not in expected
    assert found["emotion"] == expected["emotion"] and "au" not in found


def au_rows(*named: int, **truth: Any) -> list[dict]:
    text = thought(" ".join(f"AU{au} is active." for au in named), "happiness")
    return [
        {"id": i, "text": text, "truth": {"emotion": "happiness", "aus": [6, 12]} | truth}
        for i in range(4)
    ]


def test_false_alarms_on_aus_that_no_truth_lists_count(tmp_path):
    right = scored(tmp_path, "right", au_rows(6, 12))["au"]
    alarms = scored(tmp_path, "alarms", au_rows(6, 12, 4))["au"]
    assert right["f1_micro"] == 1 and alarms["f1_micro"] == pytest.approx(16 / 20)
    assert alarms["per_au"]["AU4"]["precision"] == 0
    # Where the truth says what was coded, another AU is no alarm: nobody looked for it.
    coded = scored(tmp_path, "coded", au_rows(6, 12, 4, annotated_aus=[6, 12, 25]))["au"]
    assert coded["f1_micro"] == 1 and "AU4" not in coded["per_au"]


def test_the_aus_to_score_can_be_named(tmp_path, capsys):
    rows = au_rows(6, 12, 4)
    named = scored(tmp_path, "named", rows, "--au_set", "AU4", "12,6")["au"]
    assert set(named["per_au"]) == {"AU4", "AU6", "AU12"}
    assert set(scored(tmp_path, "two", rows, "--au_set", "6", "12")["au"]["per_au"]) == {
        "AU6",
        "AU12",
    }
    disfa = scored(tmp_path, "disfa", rows, "--au_set", "disfa8")["au"]
    assert set(disfa["per_au"]) == {f"AU{n}" for n in (1, 2, 4, 6, 9, 12, 25, 26)}
    path = str(write_lines(tmp_path / "again.jsonl", *rows))
    for words, message in (
        (["AU3"], "is not a known action unit"),
        (["rafdb"], "scores no action"),
    ):
        argv = ["score", path, "--format", "jsonl", "--au_set", *words]
        assert cli.main(argv) == 2
        assert message in capsys.readouterr().err
    text = thought("AU12 and AU4 are active.", "happiness")
    released = [
        {
            "id": 1,
            "dataset": "d",
            "image": "a.jpg",
            "AUs": ["AU12"],
            "labels": ["happiness"],
            "description": text,
        }
    ]
    path = write_lines(tmp_path / "released.jsonl", *released)
    units = results(score(path, "facial-r1", "--au_set", "fea20k"))[0]["au"]["per_au"]
    assert (units["AU4"]["precision"], units["AU12"]["precision"]) == (0, 1)
