"""What may be answered: label spaces with their aliases, and each benchmark's own numbers.

A label space is a YAML file; `prompts/label_spaces/` has the built-in ones:

    id: engagement3
    field: context
    labels: [bored, neutral, engaged]
    aliases:
      bored: [uninterested]
    source: MyLab's annotation manual

`from_mapping` explains the keys. Instead of labels it may have a scale of numbers, see `scales`.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import regex

from vlmface import scales
from vlmface.errors import UserError
from vlmface.registry import Registry
from vlmface.resources import content_sha, definitions, is_yaml, read_yaml
from vlmface.scales import Scale

# Fields of FaceSample that a label space may name.
FIELDS = ("emotion", "context", "gender", "age_group", "race")
# Of a word, for `regex`: letters, digits, and the marks that scripts such as Devanagari and Thai
# write vowels with, which `re` takes for the end of a word.
WORD_CHARACTERS = r"\p{L}\p{N}\p{M}"
LONGEST_ID = 100
ID = rf"\w[\w.-]{{0,{LONGEST_ID - 1}}}"  # ids become file names
_LONGEST = 200  # characters of a label
_INVISIBLE = regex.compile(r"[\p{Cf}\uFE00-\uFE0F]+")  # format characters, variants of a glyph
_OTHER = regex.compile(rf"[^{WORD_CHARACTERS}]+")
_MOST = 1000  # labels, and aliases of each


def normalise(text: str) -> str:
    """Lower case, compatibility forms unified, invisible characters dropped, and every run of
    other characters than letters, digits and combining marks turned into one space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    if text.isascii():
        return re.sub(r"[\W_]+", " ", text).strip()
    text = unicodedata.normalize("NFKC", text)  # casefold may take letters apart
    return _OTHER.sub(" ", _INVISIBLE.sub("", text)).strip()


@dataclass(frozen=True)
class LabelSpace:
    """A closed set of labels.

    Attributes:
        id: Its name.
        field: The FaceSample attribute that holds its labels.
        labels: The labels, in the order in which prompts list them.
        aliases: {other word: label}; only words that cannot mean anything else.
        source: Where the labels come from.
        several: Whether a face may have more than one of them.
        ordered: Whether the labels are steps of a scale, from the lowest to the highest. Metrics
            then also measure how far an answer is from the truth.
        scale: The numbers that faces are rated on, whose steps are the labels (`vlmface.scales`);
            None where labels are words.
    """

    id: str
    field: str
    labels: tuple[str, ...]
    aliases: dict[str, str] = dataclasses.field(hash=False)
    source: str
    multi_label: bool = False
    ordered: bool = False
    scale: Scale | None = None

    @cached_property
    def sha(self) -> str:
        """12 hex digits of the canonical JSON of id, field, labels, aliases and scale."""
        content = {"id": self.id, "field": self.field, "labels": self.labels}
        scale = {} if self.scale is None else {"scale": self.scale.to_mapping()}
        return content_sha({**content, "aliases": self.aliases, **scale})

    @property
    def candidates(self) -> str:
        """What may be answered, in words."""
        return ", ".join(self.labels) if self.scale is None else self.scale.candidates

    @cached_property
    def index(self) -> dict[str, str]:
        """Normalised label or alias -> label."""
        return {normalise(alias): label for alias, label in self.aliases.items()} | {
            normalise(label): label for label in self.labels
        }

    def match(self, text: str) -> str | None:
        """The label that `text` is, up to case, spaces, punctuation and aliases; else None.
        The whole text must match: "unhappy" and "not happy" are not labels. Of a scale, a number in
        its range is the nearest step."""
        if self.scale is not None:
            number = scales.read_number(text)
            return None if number is None else self.scale.nearest(number)
        return self.index.get(normalise(text))

    def labels_of(self, words: Iterable[str]) -> tuple[str, ...]:
        """The labels that are among words, in the order of the space."""
        if self.scale is not None:
            value = self.scale.value_of(words)
            return () if value is None else (str(self.scale.nearest(value)),)
        labels = {self.match(word) for word in words}
        return tuple(label for label in self.labels if label in labels)

    def age_group_of(self, years: float) -> str:
        """The label of an age, for a space of `age_group`: its labels begin with their first year
        ("20-39", "60+", "more than 70")."""
        firsts = {label: int(re.findall(r"\d+", label)[0]) for label in self.labels}
        return max((label for label in firsts if firsts[label] <= years), key=firsts.__getitem__)

    @property
    def is_built_in(self) -> bool:
        """Whether this is the built-in label space of its id."""
        return SPACES.get(self.id) == self

    def to_mapping(self) -> dict[str, Any]:
        """The content of its YAML file."""
        if self.scale is not None:
            kind = {"id": self.id, "field": self.field}
            return {**kind, "scale": self.scale.to_mapping(), "source": self.source}
        aliases: dict[str, list[str]] = {}
        for alias, label in sorted(self.aliases.items(), key=lambda x: self.labels.index(x[1])):
            aliases.setdefault(label, []).append(alias)
        return {
            "id": self.id,
            "field": self.field,
            "labels": list(self.labels),
            **({"aliases": aliases} if aliases else {}),
            **({"multi_label": True} if self.multi_label else {}),
            **({"ordered": True} if self.ordered else {}),
            "source": self.source,
        }


# --- reading --------------------------------------------------------------------------------------

_KEYS = ("id", "field", "labels", "aliases", "multi_label", "ordered", "scale", "source")


def from_mapping(content: Mapping[Any, Any], where: str) -> LabelSpace:
    """A label space from the content of its YAML file.

    Args:
        content: `id`; `field` (one of FIELDS); `labels`, a list; `aliases`, {label: other words
            for it}, may be left out; `multi_label`, whether a face may have several of the labels
            (false if left out); `ordered`, whether the labels are listed from the lowest to the
            highest step of a scale (false if left out); `source`, where the labels come from.
            `scale` instead of labels, aliases, multi_label and ordered: see `scales.from_mapping`.
        where: What messages call the file.

    Raises:
        UserError: A key is missing or unknown, or a value cannot be used.
    """
    if odd := [key for key in content if key not in _KEYS]:
        raise UserError(f"{where} has the unknown key {odd[0]!r}: use {', '.join(_KEYS)}")
    for key in ("id", "field", "source"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise UserError(f"{where}: {key} is {content.get(key)!r}, but must be a text")
    if not re.fullmatch(ID, content["id"]):
        raise UserError(
            f"{where}: the id is {content['id']!r}: use letters, digits, dots, dashes and "
            "underscores, at most 100"
        )
    if content["field"] not in FIELDS:
        raise UserError(
            f"{where}: field is {content['field']!r}: use one of {', '.join(FIELDS)}, or context "
            "for labels that fit none of the others"
        )
    if "scale" in content:
        return _scale_space(content, where)
    for key in ("multi_label", "ordered"):
        if not isinstance(content.get(key, False), bool):
            raise UserError(f"{where}: {key} is {content[key]!r}, use true or false")
    if content.get("multi_label") and content.get("ordered"):
        raise UserError(f"{where}: multi_label and ordered are both true: use one of them")
    labels = _texts(content.get("labels"), f"{where}: labels", least=2)
    space = LabelSpace(
        content["id"],
        content["field"],
        labels,
        _aliases(content.get("aliases") or {}, labels, where),
        content["source"],
        content.get("multi_label", False),
        content.get("ordered", False),
    )
    _check(space, where)
    return space


def _scale_space(content: Mapping[Any, Any], where: str) -> LabelSpace:
    """The label space of a scale, from the content of its file."""
    if other := [key for key in ("labels", "aliases", "multi_label", "ordered") if key in content]:
        raise UserError(
            f"{where} has scale and {other[0]}: a scale of numbers has neither labels nor aliases, "
            "leave one of the two out"
        )
    if content["field"] != "context":
        raise UserError(
            f"{where}: field is {content['field']!r}, but a scale has field: context, which holds "
            "the ratings"
        )
    scale = scales.from_mapping(content["scale"], where)
    id, field, source = (content[key] for key in ("id", "field", "source"))
    return LabelSpace(id, field, scale.labels, {}, source, ordered=True, scale=scale)


def _aliases(aliases: Any, labels: tuple[str, ...], where: str) -> dict[str, str]:
    if not isinstance(aliases, Mapping):
        raise UserError(f"{where}: aliases is {aliases!r}, but must be {{label: [words]}}")
    named = {unicodedata.normalize("NFC", str(label)): words for label, words in aliases.items()}
    for label in named:
        if label not in labels:
            raise UserError(
                f"{where}: aliases has {label!r}, which is not one of the labels "
                f"{', '.join(labels)}"
            )
    return {
        word: label
        for label, words in named.items()
        for word in _texts(words, f"{where}: aliases of {label!r}", least=1)
    }


def _texts(value: Any, description: str, least: int) -> tuple[str, ...]:
    fits = isinstance(value, list) and least <= len(value) <= _MOST
    if not fits or not all(isinstance(x, str) and 0 < len(x) <= _LONGEST for x in value):
        raise UserError(
            f"{description}: expected a list of {least} or more texts; put words that YAML reads "
            "as something else, such as no or 10, in quotes"
        )
    return tuple(unicodedata.normalize("NFC", text) for text in value)


def _check(space: LabelSpace, where: str) -> None:
    """Refuse words that mean two labels, and labels that no sample could have."""
    meanings: dict[str, str] = {}
    for word, label in [*zip(space.labels, space.labels, strict=True), *space.aliases.items()]:
        key = normalise(word)
        if not key or key in meanings:
            raise UserError(
                f"{where}: {word!r} is {'empty' if not key else 'there twice'} once case, spaces "
                "and punctuation are ignored: use each word once"
            )
        meanings[key] = label
    for label in space.labels:
        if (
            label != label.strip()
            or set(label) & set("<>*\n\r")
            or (space.multi_label and ", " in label)
        ):
            raise UserError(
                f"{where}: the label {label!r} could not be read in an answer: leave out <, >, *, "
                "line breaks, spaces around it and, of several labels a face, commas"
            )
    if space.field == "age_group" and (
        bad := [label for label in space.labels if not re.search(r"\d", label)]
    ):
        raise UserError(f"{where}: the age group {bad[0]!r} must begin with its first year")


def read(path: str | Path) -> LabelSpace:
    """The label space of a YAML file: its content, or the `label_space` that it names or contains
    (a prompt, or the file of a data set, see `vlmface.data.dataset_file`).

    Raises:
        UserError: See `from_mapping`; or its id is that of another, built-in label space.
    """
    path = Path(path).expanduser()
    content = read_yaml(path, "the label space")
    if "labels" in content or "scale" in content or "label_space" not in content:
        return _resolve_built_in(from_mapping(content, str(path)), str(path))
    value = content["label_space"]
    if is_yaml(value):  # read here, as a file that names itself would be read without end
        path = path.parent / Path(value).expanduser()
        return _resolve_built_in(
            from_mapping(read_yaml(path, "the label space"), str(path)), str(path)
        )
    value = of_definition(with_defaults(value, path), where=path)
    return value if isinstance(value, LabelSpace) else SPACES[value]


def with_defaults(value: Any, path: Path) -> Any:
    """The definition of a label space in a file, with the keys that may be left out there: `id` is
    the file's name, `field` is context, `source` is the file.

    Args:
        value: What the file has as `label_space`; anything but a mapping is returned as it is.
        path: The file.
    """
    if not isinstance(value, Mapping):
        return value
    name = re.sub(r"[^\w.-]", "_", path.stem).lstrip(".-")[:LONGEST_ID] or "labels"
    return {"id": name, "field": "context", "source": path.name, **value}


def _resolve_built_in(space: LabelSpace, where: str) -> LabelSpace:
    """A user's label space, or the built-in one that it repeats. Refuses one that takes the id of
    another, and emotions that no sample could have."""
    if space.id in SPACES:
        built_in = SPACES[space.id]
        kind = (space.sha, space.multi_label, space.ordered)
        if kind != (built_in.sha, built_in.multi_label, built_in.ordered):
            raise UserError(
                f"{where}: {space.id!r} is the id of a built-in label space with other labels: "
                "choose another id"
            )
        return built_in
    if space.field == "emotion":
        if space.multi_label:
            raise UserError(f"{where}: a face has one emotion: use field: context with multi_label")
        reached = {space.match(emotion) for emotion in EMOTIONS}
        if missing := [label for label in space.labels if label not in reached]:
            raise UserError(
                f"{where}: no emotion of FaceSample ({', '.join(EMOTIONS)}) is {missing[0]!r}: "
                "add one to its aliases, or use field: context"
            )
    return space


def space(name: str | Path | LabelSpace) -> LabelSpace:
    """The label space of a name.

    Args:
        name: A built-in id, the path of a YAML file, or an entry point of the group
            `vlmface.label_spaces` in an installed package, which refers to a LabelSpace or to the
            path of a YAML file (`engagement3 = "my_package:ENGAGEMENT"`). A label space is returned
            as it is.

    Raises:
        UserError: There is no such label space, or its file is not valid.
    """
    if isinstance(name, LabelSpace):
        return name
    if is_yaml(name):
        return read(name)
    item = REGISTRY.get(str(name))
    return item if isinstance(item, LabelSpace) else read(item)


def of_definition(value: Any, *, where: Path, trusted: bool = True) -> str | LabelSpace:
    """The label space that a prompt's YAML file names or contains.

    Args:
        value: A name as in `space`, a path relative to the file, or the content of a label space.
        where: The prompt's file.
        trusted: Whether the user wrote the file. The files of a run may come from a stranger: they
            can name built-in label spaces and contain others, and nothing is read or imported.

    Returns:
        The id of a built-in label space, or a LabelSpace.

    Raises:
        UserError: There is no such label space, or it is not valid.
    """
    if isinstance(value, Mapping):
        label_space = _resolve_built_in(from_mapping(value, f"label_space of {where}"), str(where))
    elif not isinstance(value, str):
        raise UserError(f"{where}: label_space is {value!r}, but must be a text or a label space")
    elif trusted and is_yaml(value):
        label_space = read(where.parent / Path(value).expanduser())
    elif trusted:
        label_space = space(value)
    elif value in SPACES:
        label_space = SPACES[value]
    else:
        raise UserError(f"{where}: there is no built-in label space {value!r}: restore the file")
    return label_space.id if label_space.is_built_in else label_space


# --- in results -----------------------------------------------------------------------------------


def definitions_of(spaces: Iterable[LabelSpace]) -> dict[str, Any]:
    """`label_spaces` of a metrics.json, {id: content}: those that are not built in. {} if none."""
    added = {space.id: space.to_mapping() for space in spaces if not space.is_built_in}
    return {"label_spaces": added} if added else {}


def of_results(scores: Mapping[str, Any], id: str) -> LabelSpace:
    """The label space with that id in a metrics.json, which may come from a stranger.

    Raises:
        UserError: It is neither built in nor defined in the file.
    """
    if id in SPACES:
        return SPACES[id]
    contained = scores.get("label_spaces")
    content = contained.get(id) if isinstance(contained, Mapping) else None
    if not isinstance(content, Mapping):
        raise UserError(f"metrics.json has no definition of label space {id!r}: evaluate again")
    return from_mapping(content, f"label space {id!r} of metrics.json")


# --- the built-in ones ----------------------------------------------------------------------------


SPACES: dict[str, LabelSpace] = {
    name: from_mapping(read_yaml(file, "the label space"), str(file))
    for name, file in definitions("prompts/label_spaces").items()
}
REGISTRY: Registry[LabelSpace | str | Path] = Registry(
    "label space",
    "vlmface.label_spaces",
    SPACES,  # type: ignore[arg-type]  # dict is invariant
    hint="or give the path of a YAML file",
)
EMOTIONS = SPACES["emotion8"].labels
EMOTIC = SPACES["emotic26"].labels
# The eleven words of MAFW behind the numbers 0 to 10 of its re-users, who number them differently.
MAFW_ORDERS = {
    "anger": SPACES["mafw11"].labels,
    "happiness": (
        "happiness",
        "sadness",
        "neutral",
        "anger",
        "surprise",
        "disgust",
        "fear",
        *SPACES["mafw11"].labels[7:],
    ),
}


@dataclass(frozen=True)
class Coding:
    """A benchmark's own codes. A code with None is legal there but is none of the eight emotions
    (uncertain, not a face, other): such a row has no emotion label."""

    id: str
    codes: dict[int, str | None]
    source: str

    def decode(self, code: int) -> str | None:
        """The emotion that `code` stands for. Raises UserError for a code the set does not have."""
        if code not in self.codes:
            codes_text = ", ".join(f"{k}={v}" for k, v in self.codes.items())
            raise UserError(f"{self.id} has no emotion code {code!r}: its codes are {codes_text}")
        return self.codes[code]


def _codes(order: str, first: int = 0) -> dict[int, str | None]:
    return {i: w if w in EMOTIONS else None for i, w in enumerate(order.split(), first)}


_AFFECTNET = "neutral happiness sadness surprise fear disgust anger contempt"

CODINGS: dict[str, Coding] = {
    coding.id: coding
    for coding in (
        Coding(
            "rafdb",
            _codes("surprise fear disgust happiness sadness anger neutral", 1),
            "RAF-DB basic, EmoLabel/list_patition_label.txt, second column",
        ),
        Coding(
            "affectnet",
            _codes(f"{_AFFECTNET} none uncertain non-face"),
            "AffectNet, column `expression` and annotations/*_exp.npy",
        ),
        Coding(
            "affectnet_sample",
            _codes(_AFFECTNET, 1),
            "AffectNet sample with a csv `image,emotion`: the same order, counted from 1",
        ),
        Coding(
            "fer2013",
            _codes("anger disgust fear happiness sadness surprise neutral"),
            "FER2013, fer2013.csv column `emotion`; folder copies sort by name instead",
        ),
        Coding(
            "ferplus",
            _codes(
                "neutral happiness surprise sadness anger disgust fear contempt unknown no_face"
            ),
            "FERPlus, fer2013new.csv vote columns in their order; the last is `NF`",
        ),
        Coding(
            "ckplus",
            _codes("neutral anger contempt disgust fear happiness sadness surprise"),
            "CK+, Emotion/*/*_emotion.txt, a float in the file",
        ),
        Coding(
            "dfew",
            _codes("happiness sadness neutral anger surprise disgust fear", 1),
            "DFEW, EmoLabel_DataSplit/*(single-labeled)/set_*.csv column `label`",
        ),
        Coding(
            "faba",
            _codes("happiness sadness surprise anger neutral disgust fear"),
            "FABA-Instruct, eval_emotion_anno.json `label`; emotions2num of EmoLA's scorer",
        ),
        Coding(
            "affwild2",
            _codes("invalid neutral anger disgust fear happiness sadness surprise other", -1),
            "Aff-Wild2, expression track; -1 marks a frame that is not annotated",
        ),
    )
}
