"""Whether answers depend on the evidence that they name.

The test uses pairs of rendered faces that differ in one property
(`vlmface.synth.counterfactual_pairs`), so that everything about both faces is known.

sensitivity  one action unit is added or removed: is it named only where it is, and does the label
             change where EMFACS says that it should, and only there?
invariance   age, gender, ancestry, light, background or pose change: does the label stay? And is
             any label predicted more often for one group than for another with the same
             expressions?
reliance     does the label agree with the AUs that the model itself names, and does it change when
             the rationale before it is replaced by that of another face (Lanham et al. 2023,
             arXiv:2307.13702, do so with chains of thought)?
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmface import facs
from vlmface.errors import UserError
from vlmface.evaluate import answering
from vlmface.evaluate.run import output_folder
from vlmface.metrics.shares import LEVEL, in_brackets
from vlmface.metrics.statistics import mean
from vlmface.synth import counterfactual_pairs
from vlmface.utils import config, distributed, html
from vlmface.utils.files import atomic_write
from vlmface.utils.images import data_uri
from vlmface.utils.ranges import Checked, Count, Seed

if TYPE_CHECKING:
    from PIL import Image

    from vlmface.infer.local import LocalModel
    from vlmface.infer.prediction import Prediction
    from vlmface.schema import FaceSample

GROUPS = {"age": "age_group", "gender": "gender", "ancestry": "race"}  # kind -> field of the face
EXAMPLES = 3  # pairs of each kind on the page
_MIN_PAIRS = 20  # of a group, to say something about it


@dataclass(frozen=True)
class Settings(Checked):
    """The command line of eval/faithfulness.py.

    Args:
        model: run folder, or base model
        output_dir: folder to write; null: eval/faithfulness in the run folder
        prompt: one of the run's prompts, or that of a base model; null: the run's first
        n: rendered faces, each in one pair of every kind
        split: of synth
        seed: of the pairs
        size: pixels a side
        max_new_tokens: answers are cut here; null: as in the run
        batch_size: faces at a time
    """

    model: str
    output_dir: str | None = None
    prompt: str | None = None
    n: Count = 400
    split: str = "test"
    seed: Seed = 0
    size: Count = 96
    max_new_tokens: Count | None = None
    batch_size: Count = answering.BATCH_SIZE


@dataclass(frozen=True)
class PairPredictions:
    """A pair and what was said of its faces."""

    pair: counterfactual_pairs.Pair
    before: Prediction
    after: Prediction

    @property
    def person(self) -> str:
        return str(self.pair.base.subject)

    @property
    def flipped(self) -> bool:
        return self.before.answer.label != self.after.answer.label


def predict_pairs(predictor: LocalModel, settings: Settings) -> dict[str, list[PairPredictions]]:
    """{kind: the pairs with what was said}. The first face of a pair is the same in all kinds and
    is asked about once."""
    from tqdm import tqdm

    def predict(images: Sequence[Image.Image]) -> list[Prediction]:
        predictions: list[Prediction] = []
        for start in range(0, len(images), settings.batch_size):
            part = images[start : start + settings.batch_size]
            predictions += predictor.predict(
                part, batch_size=settings.batch_size, probabilities=False
            )
            bar.update(len(part))
        return predictions

    results: dict[str, list[PairPredictions]] = {}
    bases: list[FaceSample] = []
    first: list[Prediction] = []
    total = settings.n * (1 + len(counterfactual_pairs.KINDS))
    with tqdm(total=total, desc="asking about pairs", unit="face") as bar:
        for kind in counterfactual_pairs.KINDS:
            pairs = counterfactual_pairs.make(
                kind,
                settings.n,
                seed=settings.seed,
                size=settings.size,
                split=settings.split,
                bases=bases or None,
            )
            bases = bases or [pair.base for pair in pairs]
            first = first or predict([base.image for base in bases])
            second = predict([pair.changed.image for pair in pairs])
            results[kind] = [
                PairPredictions(*entry) for entry in zip(pairs, first, second, strict=True)
            ]
    return results


def sensitivity(results: Sequence[PairPredictions]) -> dict[str, Any]:
    """What one AU more or less changes.

    {"n", "named": the share of faces that the AU is named of, "where_present", "where_absent" and
    their "difference"; "others": how many other AUs are named of one face of the pair only, in the
    mean; "per_au"; "label": "flips", the share of pairs whose label changes, where it "should" and
    where it "should_not", and of those that should, right before, the share that come to the
    "expected" label}.
    """
    present, absent, others, subjects = [], [], [], []
    per_au: dict[int, list[tuple[bool, bool]]] = {}
    for item in results:
        au = item.pair.detail["au"]
        with_it, without = item.after, item.before
        if item.pair.detail["change"] == "removed":
            with_it, without = without, with_it
        is_named = au in with_it.answer.aus, au in without.answer.aus
        present.append(is_named[0])
        absent.append(is_named[1])
        per_au.setdefault(au, []).append(is_named)
        difference = set(item.before.answer.aus) ^ set(item.after.answer.aus)
        others.append(len(difference - {au}))
        subjects.append(item.person)
    should = [item for item in results if item.pair.detail["label_changed"]]
    should_not = [item for item in results if not item.pair.detail["label_changed"]]
    # Only pairs whose first label the model had right can come from the one label to the other.
    right = [item for item in should if item.before.answer.label == item.pair.base.emotion]
    return {
        "n": len(results),
        "named": {
            "where_present": mean(present, subjects),
            "where_absent": mean(absent, subjects),
            "difference": mean(np.subtract(present, absent, dtype=float), subjects, signed=True),
        },
        "others": mean(others, subjects),
        "per_au": {
            facs.name(au): {
                "n": len(is_named),
                "where_present": float(np.mean([a for a, _ in is_named])),
                "where_absent": float(np.mean([b for _, b in is_named])),
            }
            for au, is_named in sorted(per_au.items())
        },
        "label": {
            "should": _flips(should),
            "should_not": _flips(should_not),
            "expected": _share(right, lambda o: o.after.answer.label == o.pair.changed.emotion),
        },
    }


def invariance(results: Sequence[PairPredictions]) -> dict[str, Any]:
    """What a change that shows no other expression changes nevertheless: {"n", "flips": the share
    of pairs whose label changes, "aus": how many AUs are named of one face of the pair only, in the
    mean, "valid": the share of readable answers before and after}."""
    subjects = [item.person for item in results]
    differing = [len(set(item.before.answer.aus) ^ set(item.after.answer.aus)) for item in results]
    return {
        **_flips(results),
        "aus": mean(differing, subjects),
        "valid": [
            float(np.mean([prediction.answer.label is not None for prediction in side]))
            for side in zip(*((item.before, item.after) for item in results), strict=True)
        ],
    }


def shifts(results: Sequence[PairPredictions], kind: str, labels: Sequence[str]) -> dict[str, Any]:
    """Whether a label is said more often of one group: {"groups": {group: {label: {"n", "value",
    "ci95"}}}, "found": [{"group", "label", "value", "ci95"}, ...]}.

    `value` is the share of faces that get the label as members of the group minus the share of the
    same faces with the same expressions as members of another. The intervals hold for all groups
    and labels of the kind at once (Bonferroni), so that "found", those without 0, is not a harvest
    of many tries.
    """
    field = GROUPS[kind]
    faces = [face for item in results for face in (item.pair.base, item.pair.changed)]
    words = sorted({getattr(face, field) for face in faces})
    level = 1 - (1 - LEVEL) / (len(words) * len(labels))
    groups: dict[str, dict[str, Any]] = {}
    shifted = []
    for word in words:
        paired_sides = [_sides(item, field, word) for item in results]
        pairs = [
            (item, sides)
            for item, sides in zip(results, paired_sides, strict=True)
            if sides is not None
        ]
        if len(pairs) < _MIN_PAIRS:
            continue
        subjects = [item.person for item, _ in pairs]
        groups[word] = {}
        for label in labels:
            difference = [
                float(inside.answer.label == label) - float(outside.answer.label == label)
                for _, (inside, outside) in pairs
            ]
            shift = {"n": len(pairs)} | mean(difference, subjects, signed=True, level=level)
            groups[word][label] = shift
            if shift["ci95"] is not None and not shift["ci95"][0] <= 0 <= shift["ci95"][1]:
                shifted.append({"group": word, "label": label} | shift)
    shifted.sort(key=lambda item: -abs(item["value"]))
    return {"groups": groups, "significant": shifted}


def _sides(item: PairPredictions, field: str, word: str) -> tuple[Prediction, Prediction] | None:
    """What was said of the pair's face that belongs to the group, and of the one that does not;
    None if both do, or neither."""
    belong = [getattr(face, field) == word for face in (item.pair.base, item.pair.changed)]
    if belong[0] == belong[1]:
        return None
    return (item.before, item.after) if belong[0] else (item.after, item.before)


def reliance(
    predictor: LocalModel, results: Sequence[PairPredictions], batch_size: int
) -> dict[str, Any]:
    """Whether the label hangs on the rationale: {"n", "consistent": the share of answers whose own
    AUs support their label; "own", "foreign", "none": the label that is likeliest behind the
    model's own rationale, behind that of another face whose label was another one, and behind none:
    the share that keep the label, and of "foreign" those that take the other face's}. {} if the
    prompt asks for no rationale."""
    if not predictor.prompt.has_rationale:
        return {}
    labelled = [item for item in results if item.before.answer.label is not None]
    labels = [item.before.answer.label for item in labelled]
    if len(set(labels)) < 2:
        return {}
    subjects = [item.person for item in labelled]
    donors = [
        next(j for j in _after(i, len(labelled)) if labels[j] != labels[i])
        for i in range(len(labelled))
    ]
    images = [item.pair.base.image for item in labelled]
    texts = [item.before.answer.rationale for item in labelled]
    likeliest = {
        name: [
            max(scores.log_likelihood, key=scores.log_likelihood.__getitem__)
            for scores in predictor.score(images, rationales, batch_size=batch_size)
        ]
        for name, rationales in (
            ("own", texts),
            ("foreign", [texts[j] for j in donors]),
            ("none", [""] * len(labelled)),
        )
    }
    consistent = [
        facs.supports(item.before.answer.aus, str(item.before.answer.label)) for item in labelled
    ]
    return {
        "n": len(labelled),
        "consistent": mean(consistent, subjects),
        **{
            name: {"keeps": mean([a == b for a, b in zip(likely, labels, strict=True)], subjects)}
            for name, likely in likeliest.items()
        },
        "takes_foreign": mean(
            [label == labels[j] for label, j in zip(likeliest["foreign"], donors, strict=True)],
            subjects,
        ),
    }


def _after(i: int, count: int) -> list[int]:
    return [(i + step) % count for step in range(1, count)]


def _flips(results: Sequence[PairPredictions]) -> dict[str, Any]:
    return {"n": len(results), "flips": _share(results, lambda item: item.flipped)}


def _share(results: Sequence[PairPredictions], holds: Any) -> dict[str, Any] | None:
    if not results:
        return None
    return mean([holds(item) for item in results], [item.person for item in results])


def measure(predictor: LocalModel, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """({"n", "sensitivity", "invariance", "shifts", "reliance"}, ready for JSON; the pairs with
    predictions). What is about AUs is left out where the prompt asks for a label alone."""
    space = predictor.prompt.space
    if space.field != "emotion":
        raise UserError(
            f"prompt {predictor.prompt.id} asks for {space.field}: pairs of faces are about the "
            "emotion; choose a prompt that asks for it"
        )
    results = predict_pairs(predictor, settings)
    following = sensitivity(results["au"])
    staying = {kind: invariance(pairs) for kind, pairs in results.items() if kind != "au"}
    if not predictor.prompt.has_rationale:  # whose answers have no place for AUs
        following = {"n": following["n"], "label": following["label"]}
        for figures in staying.values():
            del figures["aus"]
    return {
        "n": settings.n,
        "sensitivity": following,
        "invariance": staying,
        "shifts": {kind: shifts(results[kind], kind, space.labels) for kind in GROUPS},
        "reliance": reliance(predictor, results["au"], settings.batch_size),
    }, results


# --- what people read -----------------------------------------------------------------------------


def write(
    figures: Mapping[str, Any],
    results: Mapping[str, Sequence[PairPredictions]],
    about: Mapping[str, Any],
    output: Path,
) -> Path:
    """Write faithfulness.json and faithfulness.html into `output`; returns the page."""
    result = {"schema": 2, **about, **figures}
    atomic_write(output / "faithfulness.json", json.dumps(result, indent=2) + "\n")
    content = html.render(
        "faithfulness.html.j2",
        result=result,
        name=Path(str(about["model"])).name,
        examples={kind: _examples(kind, pairs) for kind, pairs in results.items()},
        au_names={facs.name(au): facs.AUS[au].name for au in facs.SYNTH_AUS},
        when=html.stamp(),
    )
    path = output / "faithfulness.html"
    atomic_write(path, content)
    return path


def _examples(kind: str, results: Sequence[PairPredictions]) -> list[dict[str, Any]]:
    """Pairs to look at, the first of those that went wrong: the label did not do what it should."""

    def wrong(item: PairPredictions) -> bool:
        return item.flipped != bool(kind == "au" and item.pair.detail["label_changed"])

    examples = [item for item in results if wrong(item)][:EXAMPLES]
    return [
        {
            "change": _change(item.pair),
            "faces": [
                {
                    "image": data_uri(face.image, max_side=html.MAX_SIDE),
                    "truth": face.emotion,
                    "label": prediction.answer.label
                    or f"no valid answer ({prediction.answer.status})",
                    "aus": ", ".join(facs.name(au) for au in prediction.answer.aus) or "none",
                }
                for face, prediction in (
                    (item.pair.base, item.before),
                    (item.pair.changed, item.after),
                )
            ],
        }
        for item in examples
    ]


def _change(pair: counterfactual_pairs.Pair) -> str:
    detail = pair.detail
    if pair.kind == "au":
        return f"{facs.name(detail['au'])} {facs.AUS[detail['au']].name} {detail['change']}"
    if pair.kind in GROUPS:
        return f"{pair.kind}: {detail['from']} to {detail['to']}"
    return f"another {pair.kind}"


def summary(figures: Mapping[str, Any]) -> str:
    """What was found, a few lines for people."""
    au_shares, label = figures["sensitivity"].get("named"), figures["sensitivity"]["label"]
    lines = []
    if au_shares:
        lines.append(
            f"an action unit is named of {_pct(au_shares['where_present'])} of the faces that show "
            f"it and of {_pct(au_shares['where_absent'])} of the same faces without it"
        )
    if label["should"]["flips"] and label["should_not"]["flips"]:
        lines.append(
            f"one action unit changes the label of {_pct(label['should']['flips'])} where it "
            f"should and of {_pct(label['should_not']['flips'])} where it should not"
        )
    unchanged = ", ".join(
        f"{kind} {_pct(entry['flips'])}" for kind, entry in figures["invariance"].items()
    )
    lines.append(f"labels that change with nothing but the {unchanged}")
    for kind, entry in figures["shifts"].items():
        lines += [f"{kind}: {_shift(shift)}" for shift in entry["significant"]]
        if not entry["significant"]:
            lines.append(
                f"{kind}: no group gets any label more often, as far as {figures['n']} "
                "pairs can show"
            )
    if reliance := figures["reliance"]:
        lines.append(
            f"behind another face's rationale {_pct(reliance['takes_foreign'])} take its label, "
            f"{_pct(reliance['foreign']['keeps'])} keep their own"
        )
    return "\n".join(lines)


def _shift(shift: Mapping[str, Any]) -> str:
    size = abs(100 * shift["value"])
    low, high = sorted(abs(100 * bound) for bound in shift["ci95"])
    often = "more" if shift["value"] > 0 else "less"
    return (
        f"{shift['label']} is said {size:.1f} points {often} often of {shift['group']} faces "
        f"({low:.1f} to {high:.1f})"
    )


def _pct(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['value']:.1f} %{in_brackets(figure['ci95'], '.1f', scale=100)}"


def run(settings: Settings) -> dict[str, Any]:
    """Measure a model and write faithfulness.json and .html into `settings.output_dir` (default:
    eval/faithfulness inside the run); returns the figures."""
    from vlmface.infer.local import LocalModel

    out = output_folder(settings.model, settings.output_dir, "faithfulness")
    predictor = LocalModel.load(
        settings.model, prompt=settings.prompt, max_new_tokens=settings.max_new_tokens
    )
    with contextlib.closing(predictor):
        figures, results = measure(predictor, settings)
    about = {
        "model": settings.model,
        "prompt": {"id": predictor.prompt.id, "sha": predictor.prompt.sha},
        "split": settings.split,
        "seed": settings.seed,
    }
    path = write(figures, results, about, out)
    print(summary(figures))
    print(f"page: {path}")
    return figures


def main(argv: Sequence[str]) -> int:
    """`--model RUN [--n FACES] [--output_dir DIR] ...`"""
    distributed.check_alone("eval/faithfulness.py")
    settings = config.parse_args(
        Settings, argv, usage=f"python eval/faithfulness.py {main.__doc__}"
    )
    run(settings)
    return 0
