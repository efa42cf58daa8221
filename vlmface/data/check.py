"""`vlmface data check`: whether a copy of a data set is complete and its labels are right.

Errors: a split that cannot be read, files that are missing or cannot be decoded, pictures or
people that two splits share. Warnings: counts other than its owners published, what was left out,
pictures that occur twice within a split. A split named "all" holds the others, and is not compared
with them.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from vlmface import data
from vlmface.data import check_file, check_ratings
from vlmface.data.crop_cache import person_box
from vlmface.data.crops import valid_box
from vlmface.data.dataset_file import DatasetFile
from vlmface.data.dataset_rows import to_dataset
from vlmface.data.rows import Rows, resolve_image_paths
from vlmface.data.sources import Source, content_digest, image_sources, map_in_threads, read_content
from vlmface.errors import UserError
from vlmface.scales import Scale
from vlmface.schema import FaceSample
from vlmface.utils import contact_sheet, files
from vlmface.utils.images import open_image

if TYPE_CHECKING:
    import datasets

WORDS = ("emotion", "age_group", "gender", "race")  # fields that hold one word
NUMBERS = ("age", "valence", "arousal")
PER_CLASS = 8  # faces on the sheet
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass
class SplitData:
    """A split: its labels as rows, the pictures of each row, and what was skipped."""

    split: str
    rows: datasets.Dataset
    pictures: list[list[Source]]
    skipped: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageCheck:
    """A picture that was checked: the digest of its bytes, (width, height) and the bits of
    `check_file.fingerprint`, or what is wrong."""

    digest: str | None = None
    size: tuple[int, int] | None = None
    bits: np.ndarray | None = None
    fault: str | None = None


def check(
    name: str,
    root: str | Path | None = None,
    output: str | Path | None = None,
    *,
    splits: Sequence[str] = (),
    workers: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read splits of a copy of a data set and decode each of its pictures.

    Args:
        name: of the data set.
        root: of the copy.
        output: a folder for check.json and a contact sheet, sheet.png.
        splits: to read, by default all that the copy has.
        workers: number of threads, by default one for each core.
        options: the data set's own.

    Returns:
        {"name", "title", "options", "splits": {split: counts}, "unreadable": {file: reason},
        "duplicates": [[{"split", "id", "label"}, ...], ...], "shared_subjects": {"train, test":
        [...]}, "errors": [...], "warnings": [...]}; check.json has the same. Of a data set's YAML
        file also "alike": {"train, test": [(id, id), ...]}, pictures that look the same in two
        splits, and "faces": {"looked_at": number of pictures, "without": ids}, null where
        vlmface[detect] is not installed.

    Raises:
        UserError: no split can be read.
    """
    module = data.dataset_module(name)
    protocol = dict(options or {})
    parts, errors = _read(name, root, splits or data.splits_of(name, root, **protocol), protocol)
    looks = _look_at_all(parts, workers)
    published = _published(module, protocol)
    scale = module.label_space.scale if isinstance(module, DatasetFile) else None
    folder = None if root is None else Path(root).expanduser()
    if folder is not None and folder.is_file():
        folder = folder.parent
    report: dict[str, Any] = {
        "name": name,
        "title": data.describe(name)["title"],
        "options": protocol,
        "splits": {p.split: _holds(p, looks, published.get(p.split, {}), scale) for p in parts},
        "unreadable": {
            _short(source, folder): look.fault for source, look in looks.items() if look.fault
        },
        "duplicates": _duplicates(parts, looks),
        "shared_subjects": _shared_subjects(parts),
        "errors": errors,
        "warnings": [],
    }
    _judge(report, parts, looks, folder, module)
    if isinstance(module, DatasetFile):
        _judge_file(report, module, parts, looks)
    if output is not None:
        field = module.label_space.field if isinstance(module, DatasetFile) else None
        picture = _draw(parts, looks, field, scale)
        if picture is not None:
            contact_sheet.write(Path(output) / "sheet.png", picture)
        text = json.dumps(report, indent=1, ensure_ascii=False, default=str)
        files.atomic_write(Path(output) / "check.json", text + "\n")
    return report


def _published(module: Any, options: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The counts that the data set's owners published, under these options."""
    published: dict[str, dict[str, int]] = getattr(module, "PUBLISHED", {})
    for (option, value), counts in getattr(module, "PUBLISHED_BY", {}).items():
        if options.get(option) == value:
            published = counts
    return published


def _read(
    name: str, root: str | Path | None, splits: Sequence[str], protocol: dict[str, Any]
) -> tuple[list[SplitData], list[str]]:
    parts: list[SplitData] = []
    failures: dict[str, UserError] = {}
    for split in splits:
        try:
            rows = data.read(name, root, split, **protocol)
            skipped: dict[str, list[str]] = {}
            if isinstance(rows, Rows):
                rows, _ = resolve_image_paths(rows, f"{name}, {split}")
            pictures = image_sources(rows)
            if isinstance(rows, Rows):
                skipped = rows.skipped
                # Without its pictures, so that labels are counted whether or not a file is there.
                labels = {k: v for k, v in rows.columns.items() if k not in ("image", "frames")}
                rows = to_dataset(Rows(labels), name, split)
            parts.append(SplitData(split, rows, pictures, skipped))
        except UserError as error:
            failures[split] = error
    if not parts:
        raise next(iter(failures.values()))
    return parts, [f"{split} cannot be read: {error}" for split, error in failures.items()]


# --- pictures -------------------------------------------------------------------------------------


def _look_at_all(parts: list[SplitData], workers: int | None) -> dict[Source, ImageCheck]:
    every = list(dict.fromkeys(s for part in parts for row in part.pictures for s in row))
    with warnings.catch_warnings():  # open_image sets filters, which are common to all threads
        return dict(
            zip(
                every,
                map_in_threads(_check_image, every, "looking", workers=workers),
                strict=True,
            )
        )


def _check_image(source: Source) -> ImageCheck:
    try:
        encoded = read_content(source)
    except FileNotFoundError:
        return ImageCheck(fault="missing")
    except OSError as error:
        return ImageCheck(fault=str(error))
    try:
        image = open_image(encoded)
        return ImageCheck(content_digest(encoded), image.size, check_file.fingerprint(image))
    except UserError as error:
        return ImageCheck(
            content_digest(encoded), fault=str(error).removeprefix("the image bytes ")
        )


def _duplicates(
    parts: list[SplitData], looks: dict[Source, ImageCheck]
) -> list[list[dict[str, Any]]]:
    """Rows with the same pictures, in groups. Several boxes in one picture of a split are not
    duplicates; in two splits, the picture itself is what must not be shared."""
    same: dict[tuple[str | None, ...], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for part in parts:
        if part.split == "all":
            continue
        labels = part.rows.select_columns(["id", "emotion", "context", "face_box", "meta"])
        for row, pictures in zip(labels, part.pictures, strict=True):
            key = tuple(looks[source].digest for source in pictures)
            if key and None not in key:
                same[key].append((part.split, row))
    groups = []
    for rows in same.values():
        if len({split for split, _ in rows}) == 1 and len(rows) > 1:
            boxes = [str(row["face_box"] or person_box(json.loads(row["meta"]))) for _, row in rows]
            counts = Counter(boxes)
            rows = [row for row, box in zip(rows, boxes, strict=True) if counts[box] > 1]
        if len(rows) > 1:
            groups.append(
                [{"split": split, "id": row["id"], "label": _label(row)} for split, row in rows]
            )
    return groups


def _label(row: Mapping[str, Any]) -> str | None:
    """The emotion of a row, or its labels in other words."""
    return row["emotion"] or ", ".join(row["context"] or ()) or None


def _shared_subjects(parts: list[SplitData]) -> dict[str, list[str]]:
    people = {
        part.split: set(part.rows["subject"]) - {None} for part in parts if part.split != "all"
    }
    return {
        f"{a}, {b}": sorted(people[a] & people[b])
        for a, b in combinations(people, 2)
        if people[a] & people[b]
    }


# --- labels ---------------------------------------------------------------------------------------


def _holds(
    part: SplitData,
    looks: dict[Source, ImageCheck],
    published: dict[str, int],
    scale: Scale | None,
) -> dict[str, Any]:
    """The counts of a split, as in check.json; numbers of a scale in bins."""
    rows = part.rows
    units = rows["aus"]
    present = (label["au"] for row in units for label in row or () if label["present"])
    labels = {
        **{name: _histogram(rows[name]) for name in WORDS},
        "context": _histogram(word for words in rows["context"] for word in words or ()),
        "aus": {f"AU{au}": n for au, n in sorted(Counter(present).items())},
    }
    numbers = {name: sorted(v for v in rows[name] if v is not None) for name in NUMBERS}
    if scale is not None:
        ratings = check_file.ratings_of(rows, scale)
        labels["context"] = check_ratings.histogram(ratings, scale)
        numbers["context"] = sorted(value for value in ratings if value is not None)
    if labels["aus"] and (unlabelled := sum(row is None for row in units)):
        labels["aus"]["(none)"] = unlabelled
    every = list(dict.fromkeys(source for row in part.pictures for source in row))
    sizes = Counter(size for source in every if (size := looks[source].size))
    return {
        "rows": len(rows),
        "labels": {name: counts for name, counts in labels.items() if counts},
        "numbers": {
            name: {"rows": len(v), "min": v[0], "median": v[len(v) // 2], "max": v[-1]}
            for name, v in numbers.items()
            if v
        },
        "published": published,
        "subjects": len(set(rows["subject"]) - {None}),
        "files": len(every),
        "sizes": _sizes(sizes),
        "skipped": part.skipped,
    }


def _sizes(sizes: Counter[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The (width, height) that most pictures have, and those of the smallest and the largest."""
    if not sizes:
        return {}
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return {"usual": sizes.most_common(1)[0][0], "smallest": by_area[0], "largest": by_area[-1]}


def _histogram(words: Iterable[str | None]) -> dict[str, int]:
    """How often each word occurs, rows without one last; {} if none has one."""
    counts = Counter(words)
    unlabelled = counts.pop(None, 0)
    histogram = {str(word): counts[word] for word in sorted(counts, key=str)}
    return histogram | ({"(none)": unlabelled} if histogram and unlabelled else {})


def _count(holds: dict[str, Any], label: str) -> int:
    """How often a label of PUBLISHED was found."""
    if label == "rows":
        return holds["rows"]
    return next((c[label] for c in holds["labels"].values() if label in c), 0)


# --- what is wrong --------------------------------------------------------------------------------


def _judge(
    report: dict[str, Any],
    parts: list[SplitData],
    looks: dict[Source, ImageCheck],
    root: Path | None,
    module: Any,
) -> None:
    errors, hints = report["errors"], report["warnings"]
    for part in parts:
        every = dict.fromkeys(source for row in part.pictures for source in row)
        lost = [s for s in every if looks[s].fault == "missing"]
        bad = [s for s in every if looks[s].fault not in (None, "missing")]
        if lost:
            names = _some(_short(s, root) for s in lost)
            left_out = hints if getattr(module, "missing", "error") == "drop" else errors
            left_out.append(
                f"{part.split}: files missing ({len(lost):,} of {len(every):,}): {names}"
            )
        if bad:
            names = _some(f"{_short(s, root)} {looks[s].fault}" for s in bad)
            errors.append(f"{part.split}: files that cannot be read ({len(bad):,}): {names}")
        holds = report["splits"][part.split]
        other = [
            f"{label} {_count(holds, label):,} (published {n:,})"
            for label, n in holds["published"].items()
            if _count(holds, label) != n
        ]
        if other:
            hints.append(f"{part.split}: not as published ({len(other)}): {_some(other)}")
        for reason, rows in part.skipped.items():
            hints.append(f"{part.split}: left out, {reason} ({len(rows):,}): {_some(rows)}")
        twice = [
            g for g in report["duplicates"] if {member["split"] for member in g} == {part.split}
        ]
        if twice:
            disagree = sum(len({member["label"] for member in group}) > 1 for group in twice)
            hints.append(
                f"{part.split}: pictures that occur again ({len(twice):,}, under different "
                f"labels {disagree:,}): {_some(map(_same, twice))}"
            )
    # Splits by picture are the user's choice, or the only ones that a single person allows.
    shared = hints if isinstance(module, DatasetFile) and module.splits.by == "image" else errors
    for pair, people in report["shared_subjects"].items():
        shared.append(f"{pair}: subjects in both ({len(people):,}): {_some(people)}")
    for pair in combinations([part.split for part in parts], 2):
        both = [
            [next(member for member in group if member["split"] == split) for split in pair]
            for group in report["duplicates"]
            if set(pair) <= {member["split"] for member in group}
        ]
        if both:
            errors.append(
                f"{', '.join(pair)}: pictures in both ({len(both):,}): {_some(map(_same, both))}"
            )


def _judge_file(
    report: dict[str, Any],
    file: DatasetFile,
    parts: list[SplitData],
    looks: dict[Source, ImageCheck],
) -> None:
    """What `check_file` finds."""
    rows = {part.split: part.rows for part in parts}
    report["warnings"] += check_file.label_warnings(file, rows)
    report["warnings"] += check_file.people_warnings(file, rows)
    pictures = {  # of a clip, its middle frame
        part.split: [
            (id, sources[len(sources) // 2])
            for id, sources in zip(part.rows["id"], part.pictures, strict=True)
            if sources
        ]
        for part in parts
    }
    prints = {
        split: [(id, looks[source].bits) for id, source in named]
        for split, named in pictures.items()
    }
    same = {
        frozenset((first["id"], second["id"]))
        for group in report["duplicates"]
        for first, second in combinations(group, 2)
    }
    report["alike"] = {}
    for pair, ids in check_file.alike(prints).items():
        if ids := [two for two in ids if frozenset(two) not in same]:
            report["alike"][pair] = ids
            report["warnings"].append(
                f"{pair}: pictures that look the same ({len(ids):,}): {_some(map(' = '.join, ids))}"
            )
    readable = [
        (id, source) for named in pictures.values() for id, source in named if looks[source].size
    ]
    report["faces"] = faces = check_file.pictures_without_face(readable)
    if faces and len(faces["without"]) >= check_file.MANY_WITHOUT * faces["looked_at"]:
        report["warnings"].append(
            f"no face was found in {len(faces['without'])} of {faces['looked_at']} pictures that "
            f"were searched: {_some(faces['without'])}"
        )


def _same(group: list[dict[str, Any]]) -> str:
    return " = ".join(member["id"] for member in group[:2])


def _some(names: Iterable[str]) -> str:
    items = list(names)
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def _short(source: Source, root: Path | None) -> str:
    if isinstance(source, bytes):
        return f"embedded picture {content_digest(source)[:8]}"
    path = Path(source)
    return str(path.relative_to(root) if root and path.is_relative_to(root) else path)


def format_report(report: dict[str, Any]) -> str:
    """The report as a text table, its errors and warnings last."""
    parts = report["splits"]
    holds = list(parts.values())
    lines = [[f"{report['title']} ({report['name']})", *parts]]
    compared = set()  # each published count is shown in one line

    def counts(title: str, label: str, numbers: Iterable[int]) -> None:
        published = [None if label in compared else h["published"].get(label) for h in holds]
        compared.add(label)
        lines.append([title])
        for n, p in zip(numbers, published, strict=True):
            lines[-1].append(f"{n:,}" + (f" [{p:,}]" if p is not None and p != n else ""))

    def cells(title: str, values: Iterable[str]) -> None:
        if any(values := list(values)):
            lines.append([title, *values])

    counts("rows", "rows", [h["rows"] for h in holds])
    for name in (*WORDS, "context", "aus"):
        tables = [h["labels"].get(name, {}) for h in holds]
        labels = {label for table in tables for label in table}
        if labels:
            lines.append([name, *[""] * len(holds)])
        for label in sorted(labels, key=_order):
            counts(f"  {label}", label, [table.get(label, 0) for table in tables])
    for name in (*NUMBERS, "context"):
        ranges = [h["numbers"].get(name) or {} for h in holds]
        formatted = [", ".join(f"{r[key]:.3g}" for key in list(r)[1:]) for r in ranges]
        cells(f"{name} (min, median, max)", formatted)
    cells("subjects", [f"{h['subjects']:,}" if h["subjects"] else "" for h in holds])
    cells("picture files", [f"{h['files']:,}" for h in holds])
    for name in ("usual", "smallest", "largest"):
        if name == "usual" or any(len(set(h["sizes"].values())) > 1 for h in holds):
            sizes = [h["sizes"].get(name) for h in holds]
            cells(f"  {name} size", ["{} x {}".format(*size) if size else "" for size in sizes])

    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([title.ljust(widths[0]), *map(str.rjust, row, widths[1:])]).rstrip()
        for title, *row in lines
    ]
    if any("[" in cell for _, *row in lines for cell in row):
        table.append("[n]: as published, where that differs")
    if "faces" in report:
        table += ["", _faces_line(report["faces"])]
    table += ["", *(f"error: {message}" for message in report["errors"])]
    table += [f"warning: {message}" for message in report["warnings"]]
    return "\n".join(table).rstrip()


def _faces_line(faces: Mapping[str, Any] | None) -> str:
    if faces is None:
        return "faces were not looked for: pip install 'vlmface[detect]'"
    num_with_face = faces["looked_at"] - len(faces["without"])
    return (
        f"a face was found in {num_with_face} of {faces['looked_at']} pictures that were searched"
    )


def _order(label: str) -> tuple[bool, float, str]:
    """AUs and numbers by their number, other labels by name, "(none)" last."""
    number = _NUMBER.match(label.removeprefix("AU"))
    return label == "(none)", float(number[0]) if number else 0.0, label


# --- the sheet ------------------------------------------------------------------------------------


def _draw(
    parts: list[SplitData],
    looks: dict[Source, ImageCheck],
    field: str | None,
    scale: Scale | None,
) -> Image.Image | None:
    """A few faces of each class, the classes line by line, with the number of each; None if no
    picture can be read.

    Args:
        parts: The splits.
        looks: Each picture, checked.
        field: Where the labels are; None: the first of WORDS that is annotated.
        scale: That the labels are numbers on, whose bins are the classes; None for words.
    """
    fields = WORDS if field is None else (field,)
    by = next((n for n in fields if any(any(p.rows[n]) for p in parts)), None)
    classes: dict[str | None, list[tuple[SplitData, int]]] = defaultdict(list)
    for part in [p for p in parts if p.split != "all"] or parts:
        labels = part.rows[by] if by else [None] * len(part.rows)
        for row, (value, pictures) in enumerate(zip(labels, part.pictures, strict=True)):
            if pictures and looks[pictures[len(pictures) // 2]].size:
                words = value if isinstance(value, list) else [value]
                if scale is not None:
                    rating = scale.value_of(word for word in words if word)
                    words = [None if rating is None else check_ratings.bin_of(rating, scale)]
                for label in words or [None]:
                    classes[label].append((part, row))
    most = PER_CLASS if by else PER_CLASS**2
    examples = {
        label: random.Random(0).sample(classes[label], min(most, len(classes[label])))
        for label in sorted(classes, key=lambda word: (word is None, _order(word or "")))
    }
    columns = min(PER_CLASS, max(map(len, examples.values()), default=0))
    tiles: list[contact_sheet.Tile | None] = []
    for label, rows in examples.items():
        title = f"{label or 'no label'} ({len(classes[label]):,})" if by else None
        tiles += [_tile(part, row, by, title, scale is not None) for part, row in rows]
        tiles += [None] * (-len(tiles) % columns)
    return contact_sheet.draw(tiles, columns) if tiles else None


def _tile(
    part: SplitData, row: int, by: str | None, title: str | None, is_rated: bool
) -> contact_sheet.Tile:
    """A face with its labels but those of the field `by`, which are in its title; of a rated face
    the exact number, too."""
    sample = FaceSample.from_row(part.rows.remove_columns(["image", "frames"])[row])
    pictures = part.pictures[row]
    image = open_image(pictures[len(pictures) // 2])
    if box := valid_box(sample.face_box or person_box(sample.meta), image.size):
        image = _around(image, list(box))
    age = sample.age_group if sample.age is None else f"{sample.age:g} years"
    attributes = {
        "emotion": sample.emotion,
        "age_group": age,
        "gender": sample.gender,
        "race": sample.race,
    }
    context = [] if by == "context" and not is_rated else sample.context or []
    words = [word for name, word in attributes.items() if name != by and word] + context
    lines = [", ".join(words)] if words else []
    if sample.valence is not None and sample.arousal is not None:
        lines.append(f"valence {sample.valence:.2f}, arousal {sample.arousal:.2f}")
    if sample.aus is not None:
        lines.append(contact_sheet.units(sample))
    name = sample.id.removeprefix(f"{sample.dataset}-").removeprefix("table-")  # own files' ids
    where = f"{part.split}: {name}"
    return contact_sheet.Tile(image, title or part.split, (*lines, where))


def _around(image: Image.Image, box: list[float]) -> Image.Image:
    """The box, drawn, and half its size around it."""
    x0, y0, x1, y1 = box
    margin = max(x1 - x0, y1 - y0) / 2
    image = image.copy()
    width = max(1, round((max(x1 - x0, y1 - y0) + 2 * margin) / contact_sheet.TILE * 2))
    ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), outline="#e8281e", width=width)
    corners = (
        max(0, x0 - margin),
        max(0, y0 - margin),
        min(image.width, x1 + margin),
        min(image.height, y1 + margin),
    )
    left, top, right, bottom = map(round, corners)
    if right - left < 1 or bottom - top < 1:  # the box lies outside of the picture: show that
        return image
    return image.crop((left, top, right, bottom))
