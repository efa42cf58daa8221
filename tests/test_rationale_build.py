"""`vlmface rationale build`, whole: from a data set to one that can be trained on."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_from_disk
from helpers.fake_teacher import FakeTeacher, Reply, TeacherRequest, completion
from miniatures import rafdb
from miniatures import rationales as miniature
from PIL import Image

from vlmface import data, encode, facs, prompts
from vlmface.cli import main
from vlmface.errors import UserError
from vlmface.rationale import rules
from vlmface.schema import FaceSample, features

N = 12


def build(output: Path, *words: str) -> int:
    given = ["--dataset", "synth", "--n", str(N)] if "--dataset" not in words else []
    return main(["rationale", "build", *given, "--output_dir", str(output), *words])


def teacher(server: FakeTeacher, *words: str) -> list[str]:
    label = [] if {"--with-label", "--without-label"} & set(words) else ["--with-label"]
    return ["--writer", "teacher", "--endpoint", server.url, "--model", "big", *label, *words]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(output: Path) -> dict:
    return json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A build by rules."""
    output = tmp_path_factory.mktemp("built") / "rules"
    assert build(output, "--max_words", "55") == 0
    return output


# --- by rules -------------------------------------------------------------------------------------


def test_the_folder_is_a_data_set_of_face_samples(built):
    source = data.load("synth", split="train", n=N, progress=False)
    rows = data.load("rationales", built)
    assert rows.features == load_from_disk(built).features == features()
    kept = [i for i, id in enumerate(source["id"]) if id in set(rows["id"])]
    assert 0 < len(kept) < N  # some are longer than 55 words
    unchanged = [
        c
        for c in source.column_names
        if c not in ("rationale", "rationale_source", "rationale_saw_label", "meta", "image")
    ]
    assert rows.select_columns(unchanged)[:] == source.select(kept).select_columns(unchanged)[:]
    for row, before in zip(rows, source.select(kept), strict=True):
        sample = FaceSample.from_row(row).validate()
        seed = rules.sample_seed(0, sample.id)
        text = rules.write(
            sample.intensities(), sample.emotion, seed=seed, style="varied", body_only=True
        )
        assert sample.rationale == text and sample.rationale_source == "rules"
        assert sample.rationale_saw_label is True
        assert sample.meta.pop("rationale") == {
            "writer": "rules",
            "style": "varied",
            "seed": 0,
            "aus": "annotated",
            "repaired": False,
        }
        assert sample.meta == json.loads(before["meta"])
        assert row["image"].tobytes() == before["image"].tobytes()


def test_counts_add_up(built):
    found = summary(built)
    counts, rejected = found["counts"], lines(built / "rejected.jsonl")
    assert counts["rows"] == counts["written"] == N == counts["kept"] + counts["rejected"]
    assert counts["rejected_by"] == {"too_long": len(rejected)} and rejected
    assert all(line["reasons"] == ["too_long"] and line["text"] for line in rejected)
    assert sum(found["labels"].values()) == counts["kept"] == found["quality"]["distinct"]
    assert (found["quality"]["au_precision"], found["quality"]["au_recall"]) == (1.0, 1.0)
    assert found["cost"] is None


def test_the_card_says_what_it_is(built):
    card, found = (built / "README.md").read_text(), summary(built)
    assert card.startswith("---\npretty_name: ")
    for words in (
        "CC0",
        "docs/synth.md",
        "`rationale_saw_label` is **true**",
        "style `varied`",
        found["source"]["fingerprint"],
        f"| **kept** | **{found['counts']['kept']}** |",
        "because the text has too many words (`too_long`)",
        'data.load("rationales"',
    ):
        assert words in card, words
    assert str(built) not in card and "None" not in card and "{{" not in card


def test_the_page_shows_kept_and_rejected_beside_the_faces(built):
    html, counts = (built / "rationale.html").read_text(), summary(built)["counts"]
    assert html.count("✓ kept") == counts["kept"] and html.count("✗ rejected") == counts["rejected"]
    assert html.count('<img src="data:image/jpeg;base64,') == N
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html) and "<script" not in html
    for row in data.load("rationales", built):
        assert row["rationale"].split("'")[0] in html
    assert "use 55 at most" in html


def test_only_the_finished_folder_is_left(built):
    assert [path.name for path in built.parent.iterdir()] == ["rules"]
    assert {path.name for path in built.iterdir()} == {
        "README.md",
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "rationale.html",
        "rejected.jsonl",
        "run.json",
        "settings.json",
        "state.json",
        "summary.json",
    }


def test_the_same_command_again_changes_nothing(built, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    assert build(built, "--max_words", "55") == 0
    assert "is complete" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    assert build(built, "--max_words", "56") == 2
    assert "was started with max_words = 55, but now" in capsys.readouterr().err
    (built.parent / "other").mkdir()
    (built.parent / "other" / "file").touch()
    assert build(built.parent / "other") == 2
    assert "holds other files than a build" in capsys.readouterr().err


def test_overwrite_starts_anew(tmp_path):
    output = tmp_path / "out"
    output.mkdir()  # empty is as good as not there
    assert build(output) == 0
    assert build(output, "--overwrite", "--style", "plain", "--seed", "3") == 0
    sample = FaceSample.from_row(data.load("rationales", output)[0])
    seed = rules.sample_seed(3, sample.id)
    assert sample.rationale == rules.write(
        sample.intensities(), sample.emotion, seed=seed, body_only=True
    )


def test_an_earlier_build_stays_until_the_new_one_is_finished(tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    assert build(output) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert build(output, "--overwrite", "--min_precision", "0") == 2
    assert build(output, "--overwrite", "--max_words", "16") == 2
    assert "no rationale passes" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("vlmface.rationale.page.write_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(output, "--overwrite", "--style", "plain")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert build(output, "--overwrite", "--style", "plain") == 0
    assert json.loads((output / "settings.json").read_text())["style"] == "plain"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_build_that_was_moved_aside_by_a_killed_one_is_back(tmp_path, capsys):
    output = tmp_path / "out"
    assert build(output) == 0
    output.rename(tmp_path / ".out.replaced")
    assert build(output) == 0
    assert "is complete" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["out", "out.building"])
def test_a_folder_with_settings_is_not_a_build(name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    for file, text in (("settings.json", "{}"), ("summary.json", "{}"), ("thesis.tex", "text")):
        (tmp_path / name / file).write_text(text)
    assert build(tmp_path / "out", "--overwrite") == 2
    assert "other files than a run" in (error := capsys.readouterr().err) or "build" in error
    assert (tmp_path / name / "thesis.tex").read_text() == "text"


def test_two_builds_in_one_folder(tmp_path, capsys):
    from vlmface.utils import lock

    with lock.hold(tmp_path / "out"):
        assert build(tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "out is in use by process" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_build_is_not_resumed_on_other_data(tmp_path, capsys):
    output = tmp_path / "out"
    assert build(output, "--max_words", "16") == 2  # what was done so far is kept
    work = tmp_path / "out.building"
    record = json.loads((work / "run.json").read_text())
    record["identity"]["data"] = "0"
    (work / "run.json").write_text(json.dumps(record))
    (work / "aus.jsonl").write_text('{"id": "a", "aus": null}\n')
    assert build(output, "--max_words", "16") == 2
    assert "was started with data (fingerprint) '0', but now it is" in capsys.readouterr().err


def test_the_recipe_trains_on_it(built, processor):
    from helpers.checkpoints import llava

    from vlmface.train.rows import encode_rows

    rows = data.load("rationales", built)
    for name in ("face_cot", "expllm"):
        prompt = prompts.load(name)
        encoded, skipped = encode_rows(rows, processor, llava, prompt, max_length=2000, seed=0)
        wanted = [i for i, e in enumerate(rows["emotion"]) if prompt.space.match(e)]
        assert len(encoded) == len(wanted) and sum(skipped.values()) == len(rows) - len(wanted)
        for row, line in zip(rows.select(wanted), encoded, strict=True):
            target = prompt.target(FaceSample.from_row(row))
            text = encode.encode_text(processor, llava, prompt.messages(), target)
            assert line["labels"] == text["labels"]


@pytest.mark.slow
def test_the_whole_recipe_runs_on_it(built, sft_cot, tmp_path):
    words = (
        "--dataset",
        "rationales",
        "--dataset_options",
        f"{{folder: {built}}}",
        "--epochs",
        "1",
    )
    assert sft_cot(tmp_path / "run", *words) == 0
    manifest = json.loads((tmp_path / "run" / "vlmface.json").read_text())
    assert manifest["dataset"]["name"] == "rationales"
    assert manifest["dataset"]["n"] == len(data.load("rationales", built))


def test_plain_is_what_the_recipe_would_write_itself(tmp_path):
    from vlmface.train.rows import training_target

    assert build(tmp_path / "out", "--style", "plain") == 0
    prompt = prompts.load("face_cot")
    source = data.load("synth", split="train", n=N, progress=False)
    for row, before in zip(data.load("rationales", tmp_path / "out"), source, strict=True):
        own = training_target(FaceSample.from_row(before), prompt, 0)
        assert training_target(FaceSample.from_row(row), prompt, 0) == own


def test_near_duplicates_can_be_rejected(tmp_path):
    words = ("--n", "64", "--dataset", "synth", "--style", "plain", "--duplicate_threshold", "0.6")
    assert build(tmp_path / "a", *words) == 0
    counts = summary(tmp_path / "a")["counts"]
    assert counts["near_duplicates"] > 0 == counts["rejected"]
    assert build(tmp_path / "b", *words, "--duplicates", "reject") == 0
    again = summary(tmp_path / "b")["counts"]
    assert again["rejected_by"] == {"near_duplicate": counts["near_duplicates"]}
    assert again["kept"] == 64 - counts["near_duplicates"]


# --- faces without annotated action units ---------------------------------------------------------


def test_an_estimator_fills_what_nobody_annotated(tmp_path, monkeypatch, capsys):
    rafdb.write(tmp_path / "raf")
    words = (
        "--dataset",
        "rafdb",
        "--dataset_root",
        str(tmp_path / "raf"),
        "--label_space",
        "emotion7",
    )
    assert build(tmp_path / "out", *words) == 2
    assert "no rationale passes (skipped: {'no action units': 7}" in capsys.readouterr().err

    (tmp_path / "my_aus.py").write_text(
        "calls = 0\n"
        "def look(image):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 3: return None\n"
        "    if calls == 5: raise KeyboardInterrupt\n"
        "    assert image.mode == 'RGB'\n"
        "    return {4: 3.2, 7: None, 12: 0.4, 1: 0.0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = (*words, "--aus", "my_aus:look")
    assert build(tmp_path / "est", *words) == 130  # interrupted at the fifth face
    assert len(lines(tmp_path / "est.building" / "aus.jsonl")) == 4
    assert build(tmp_path / "est", *words) == 0
    import my_aus  # type: ignore[import-not-found]

    assert my_aus.calls == 8  # the fifth face again, and no other
    counts = summary(tmp_path / "est")["counts"]
    assert counts["skipped"] == {"no action units": 1} and counts["kept"] == 6
    row = data.load("rationales", tmp_path / "est")[0]
    assert row["aus"] is None  # an estimate is no annotation
    note = json.loads(row["meta"])["rationale"]
    assert (note["aus"], note["estimated_aus"]) == ("my_aus:look", {"4": 3.2, "7": None})
    assert "AU4" in row["rationale"] and "AU12" not in row["rationale"]
    assert row["image"].size == (100, 100)  # the picture is in the folder, not a path to it
    assert "estimated by `my_aus:look`" in (tmp_path / "est" / "README.md").read_text()
    image = load_from_disk(tmp_path / "est").data.column("image")[0].as_py()
    assert image["bytes"] and str(tmp_path) not in str(image["path"])


# --- by a teacher ---------------------------------------------------------------------------------


NONSENSE = "The face is strange and nothing more can be said about all of it."


def trouble():
    """Another kind of trouble with each of the first seven faces; only the last stays wrong."""
    faces: list[str] = []

    def behave(asked: TeacherRequest) -> Reply | None:
        if asked.face not in faces:
            faces.append(asked.face)
        kind = faces.index(asked.face)
        if kind == 6:
            return Reply(text=NONSENSE)
        if asked.round or kind > 6:
            return None
        right = asked.right()
        other = next(au for au in facs.SYNTH_AUS if au not in asked.aus())
        return (
            Reply(status=429, headers={"Retry-After": "0"}),
            Reply(status=500),
            Reply(body=completion(right)[:50]),
            Reply(delay=3),
            Reply(text=right.replace("<think>", f"<think>AU{other} is at work. ")),
            Reply(text=right.replace("</think>", " It is a face." * 60 + "</think>")),
        )[kind]

    return behave


def test_a_build_by_a_teacher_in_trouble(tmp_path, capsys):
    with FakeTeacher(trouble()) as server:
        words = teacher(
            server,
            "--timeout",
            "1.5",
            "--concurrency",
            "1",
            "--price_in",
            "2.5",
            "--price_out",
            "10",
            "--image_side",
            "64",
        )
        assert build(tmp_path / "out", *words) == 0
        out = capsys.readouterr().out
    told = f"{N} pictures of faces, with their action units and with their emotion labels"
    assert out.startswith(f"{told}, are sent to {server.url} (model big)\n")
    found = summary(tmp_path / "out")
    counts = found["counts"]
    assert (counts["kept"], counts["rejected_by"]["unreadable"]) == (N - 1, 1)
    assert (counts["retried"], counts["repaired"]) == (3, 2)
    assert counts["retried_by"]["hallucinated_au"] == counts["retried_by"]["too_long"] == 1
    requests = N + 3  # those that were answered: each face, and the three sent back
    assert found["cost"] == {
        "requests": requests,
        "prompt_tokens": 1000 * requests,
        "completion_tokens": 100 * requests,
        "requests_without_usage": 0,
        "price": pytest.approx(requests * (2500 + 1000) / 1e6),
        "prices_per_million": [2.5, 10.0],
    }
    assert f"cost {requests * 0.0035:g}" in out
    rows = data.load("rationales", tmp_path / "out")
    assert set(rows["rationale_source"]) == {"teacher"} and set(rows["rationale_saw_label"]) == {
        True
    }
    notes = [json.loads(meta)["rationale"] for meta in rows["meta"]]
    assert sum(note["repaired"] for note in notes) == 2
    assert notes[0]["model"] == "big" and notes[0]["prompt"] == "with_label"
    html = (tmp_path / "out" / "rationale.html").read_text()
    assert html.count("Before the retry") == 3 and NONSENSE in html
    card = (tmp_path / "out" / "README.md").read_text()
    assert notes[0]["prompt_sha"] in card and "cost 0.0525 at 2.5 / 10.0 per million" in card
    for asked in server.requests:
        uri = asked.face.removeprefix("data:image/jpeg;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(uri))).size == (64, 64)


def test_without_label_is_recorded_and_wrong_ones_are_rejected(tmp_path):
    with FakeTeacher() as server:
        assert build(tmp_path / "out", *teacher(server, "--without-label")) == 0
    source = data.load("synth", split="train", n=N, progress=False)
    prompts_sent = {asked.prompt() for asked in server.requests}
    assert not any("The expression is" in text for text in prompts_sent)
    assert len(server.requests) == N  # a wrong label is never told
    counts = summary(tmp_path / "out")["counts"]
    rows = data.load("rationales", tmp_path / "out")
    assert counts["rejected_by"].get("wrong_label", 0) == N - len(rows)
    assert set(rows["rationale_saw_label"]) == {False}
    truth = dict(zip(source["id"], source["emotion"], strict=True))
    assert all(truth[row["id"]] == row["emotion"] for row in rows)
    assert "`rationale_saw_label` is **false**" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_teacher_needs_is_asked_for_before_anything_is_sent(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with FakeTeacher() as server:
        for words, message in (
            (["--writer", "teacher"], "needs --endpoint"),
            (["--writer", "teacher", "--endpoint", server.url], "needs --model"),
            (teacher(server)[:-1], "--with-label (every text"),
            (teacher(server, "--prompt", "without_label"), "does not contain the label"),
            (teacher(server, "--api_key_env", "NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
            (teacher(server, "--request", "seed"), "is not NAME=VALUE"),
            (["--label_space", "gender"], "rationales explain emotions"),
            (["--style", "rich"], "unknown style 'rich'"),
            (["--min_recall", "2"], "min_recall is 2"),
            (["--dataset_options", "colour=red"], "no option 'colour'"),
        ):
            assert build(tmp_path / "out", *words) == 2
            assert message in capsys.readouterr().err
        assert not server.requests
    assert not (tmp_path / "out").exists()


def test_faces_without_an_answer_are_counted(tmp_path, capsys):
    def behave(asked):
        return Reply(status=400, body=b"filtered") if asked.number in (2, 5) else None

    with FakeTeacher(behave) as server:
        assert build(tmp_path / "out", *teacher(server, "--concurrency", "1")) == 2
    assert "error: 2 faces got no answer" in capsys.readouterr().err
    counts = summary(tmp_path / "out")["counts"]
    assert counts["rejected_by"] == {"no_answer": 2} and counts["kept"] == N - 2
    assert {line["messages"][0] for line in lines(tmp_path / "out" / "rejected.jsonl")} == {
        "HTTP 400 filtered"
    }


@pytest.mark.slow
def test_a_killed_build_goes_on_with_nothing_twice_and_nothing_lost(tmp_path, capsys):
    def slowly(asked):
        return Reply(delay=0.15)

    output = tmp_path / "out"
    answers = tmp_path / "out.building" / "answers.jsonl"
    data.load("synth", split="train", n=48, progress=False)  # rendered before the clock starts
    with FakeTeacher(slowly) as server:
        words = [
            "rationale",
            "build",
            "--dataset",
            "synth",
            "--n",
            "48",
            "--output_dir",
            str(output),
            *teacher(server, "--concurrency", "3"),
        ]
        kills = 0
        for goal in (8, 20):
            process = subprocess.Popen(
                [sys.executable, "-m", "vlmface.cli", *words],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            deadline = time.monotonic() + 120
            while not answers.exists() or len(answers.read_bytes().splitlines()) < goal:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            assert not output.exists()
        before = answers.read_bytes()
        done = {json.loads(line)["id"] for line in before.splitlines()}
        # As if the last kill had struck in the middle of a line.
        answers.write_bytes(before + b'{"id": "synth-0-train-0000')
        asked_before = len(server.requests)
        assert main(words) == 0
        assert f"; {len(done)} were answered before" in capsys.readouterr().out
    ids = [json.loads(line)["id"] for line in (output / "answers.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 48  # nothing twice, nothing lost
    assert (output / "answers.jsonl").read_bytes().startswith(before)
    assert len(server.requests) - asked_before == 48 - len(done)
    # What was under way at a kill is asked again, and nothing else: 3 at a time, 2 kills.
    assert 48 <= len(server.requests) <= 48 + 3 * kills
    rows = data.load("rationales", output)
    assert len(rows) == summary(output)["counts"]["kept"] == 48
    assert not answers.parent.exists()


# --- the folder as a data set ---------------------------------------------------------------------


def test_the_adapter_says_what_is_wrong_with_a_folder(tmp_path):
    miniature.write(tmp_path / "mini")
    assert len(data.load("rationales", tmp_path / "mini")) == 5
    assert len(data.load("rationales", tmp_path, folder=str(tmp_path / "mini"))) == 5
    with pytest.raises(UserError, match="needs a root, or the option folder"):
        data.load("rationales")
    with pytest.raises(UserError, match=r"built from split 'train', not 'test'"):
        data.load("rationales", tmp_path / "mini", "test")
    with pytest.raises(UserError, match="is not a folder of `vlmface rationale build`"):
        data.load("rationales", tmp_path)
