"""What may be answered: label spaces with their aliases, and each benchmark's own numbers."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from vlmface.errors import UserError

EMOTIONS = (
    "anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise",
)  # fmt: skip


def normalise(text: str) -> str:
    """Lower case, compatibility forms unified, invisible characters dropped, and every run of
    other characters than letters and digits turned into one space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return re.sub(r"[\W_]+", " ", text).strip()


@dataclass(frozen=True)
class LabelSpace:
    """A closed set of labels. `field` is the FaceSample attribute that holds them, `aliases` maps
    other words to a label: only words that cannot mean anything else. `several`: a face may have
    more than one of them."""

    id: str
    field: str
    labels: tuple[str, ...]
    aliases: dict[str, str]
    source: str
    several: bool = False

    @cached_property
    def sha(self) -> str:
        """12 hex digits of the canonical JSON of id, field, labels and aliases."""
        content = {"id": self.id, "field": self.field, "labels": self.labels}
        text = json.dumps({**content, "aliases": self.aliases}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def index(self) -> dict[str, str]:
        """Normalised label or alias -> label."""
        return {normalise(alias): label for alias, label in self.aliases.items()} | {
            normalise(label): label for label in self.labels
        }

    def canonical(self, text: str) -> str | None:
        """The label that `text` is, up to case, spaces, punctuation and aliases; else None.
        The whole text must match: "unhappy" and "not happy" are no labels."""
        return self.index.get(normalise(text))

    def of_age(self, years: float) -> str:
        """The label of an age, for a space of `age_group`: its labels begin with their first year
        ("20-39", "60+", "more than 70")."""
        firsts = {label: int(re.findall(r"\d+", label)[0]) for label in self.labels}
        return max((label for label in firsts if firsts[label] <= years), key=firsts.__getitem__)


_EMOTION_WORDS = {
    "anger": "angry anger rage fury furious enraged",
    "contempt": "contemptuous scorn scornful disdain disdainful",
    "disgust": "disgusted revulsion revolted repulsed",
    "fear": "fearful afraid scared frightened terrified terror",
    "happiness": "happy joy joyful joyous",
    "neutral": "neutrality expressionless emotionless",
    "sadness": "sad sorrow sorrowful",
    "surprise": "surprised astonished astonishment",
}


def _aliases(words: dict[str, str], labels: tuple[str, ...]) -> dict[str, str]:
    return {w: label for label in labels for w in words[label].split() if w != label}


_EMOTIONS7 = tuple(emotion for emotion in EMOTIONS if emotion != "contempt")

_MAFW_REST = ("contempt", "anxiety", "helplessness", "disappointment")
# The eleven words of MAFW behind the numbers 0 to 10 of its re-users, who number them differently.
MAFW_ORDERS = {
    "anger": ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise",
              *_MAFW_REST),
    "happiness": ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear",
                  *_MAFW_REST),
}  # fmt: skip
_MAFW_WORDS = _EMOTION_WORDS | {
    "anxiety": "anxious", "helplessness": "helpless", "disappointment": "disappointed",
}  # fmt: skip

EMOTIC = (
    "Affection", "Anger", "Annoyance", "Anticipation", "Aversion", "Confidence", "Disapproval",
    "Disconnection", "Disquietment", "Doubt/Confusion", "Embarrassment", "Engagement", "Esteem",
    "Excitement", "Fatigue", "Fear", "Happiness", "Pain", "Peace", "Pleasure", "Sadness",
    "Sensitivity", "Suffering", "Surprise", "Sympathy", "Yearning",
)  # fmt: skip

SPACES: dict[str, LabelSpace] = {
    space.id: space
    for space in (
        LabelSpace("emotion8", "emotion", EMOTIONS, _aliases(_EMOTION_WORDS, EMOTIONS),
                   "Ekman's seven emotions and neutral, as in AffectNet-8, FERPlus and CK+"),
        LabelSpace("emotion7", "emotion", _EMOTIONS7, _aliases(_EMOTION_WORDS, _EMOTIONS7),
                   "without contempt, as in RAF-DB, FER2013, AffectNet-7, DFEW and CAER-S"),
        LabelSpace("rafdb_compound11", "context",
                   ("Happily Surprised", "Happily Disgusted", "Sadly Fearful", "Sadly Angry",
                    "Sadly Surprised", "Sadly Disgusted", "Fearfully Angry", "Fearfully Surprised",
                    "Angrily Surprised", "Angrily Disgusted", "Disgustedly Surprised"), {},
                   "RAF-DB (Li & Deng, TIP 2019), compound part, codes 1 to 11 of its list"),
        LabelSpace("mafw11", "context", MAFW_ORDERS["anger"],
                   _aliases(_MAFW_WORDS, MAFW_ORDERS["anger"]),
                   "MAFW (Liu et al., ACM MM 2022), single expressions, words of its label files"),
        LabelSpace("raer5", "context",
                   ("Neutrality", "Enjoyment", "Confusion", "Fatigue", "Distraction"),
                   {"neutral": "Neutrality", "confused": "Confusion", "fatigued": "Fatigue",
                    "tired": "Fatigue", "distracted": "Distraction"},
                   "RAER (Zhao et al., ICCV 2025), codes 1 to 5 of its list files"),
        LabelSpace("bah2", "context", ("No A-H", "With A-H"),
                   {"not ambivalent": "No A-H", "no ambivalence or hesitancy": "No A-H",
                    "ambivalent": "With A-H", "ambivalence or hesitancy": "With A-H"},
                   "BAH (Gonzalez-Gonzalez et al., ICLR 2026), codes 0 and 1 of its list files"),
        LabelSpace("gender", "gender", ("female", "male"),
                   {"woman": "female", "girl": "female", "man": "male", "boy": "male"},
                   "binary annotation of FairFace, UTKFace and CelebA"),
        LabelSpace("age_group5", "age_group", ("0-9", "10-19", "20-39", "40-59", "60+"),
                   {"0-2": "0-9", "3-9": "0-9", "20-29": "20-39", "30-39": "20-39",
                    "40-49": "40-59", "50-59": "40-59", "60-69": "60+", "more than 70": "60+"},
                   "five groups of FaceScanPaliGemma; FairFace's nine fall into them"),
        LabelSpace("race7", "race",
                   ("Black", "East Asian", "Indian", "Latino_Hispanic", "Middle Eastern",
                    "Southeast Asian", "White"),
                   {"Latino": "Latino_Hispanic", "Hispanic": "Latino_Hispanic",
                    "Hispanic Latino": "Latino_Hispanic", "South East Asian": "Southeast Asian"},
                   "FairFace (Karkkainen & Joo, WACV 2021), its own words"),
        LabelSpace("race6", "race",
                   ("Asian", "Black", "Indian", "Latino_Hispanic", "Middle Eastern", "White"),
                   {"East Asian": "Asian", "Southeast Asian": "Asian", "South East Asian": "Asian",
                    "Latino": "Latino_Hispanic", "Hispanic": "Latino_Hispanic",
                    "Hispanic Latino": "Latino_Hispanic"},
                   "race7 with East and Southeast Asian as one"),
        LabelSpace("race3", "race", ("african", "asian", "caucasian"), {},
                   "ancestries of the rendered faces of synth"),
        LabelSpace("race5", "race", ("White", "Black", "Asian", "Indian", "Others"),
                   {"Other": "Others"},
                   "UTKFace (Zhang, Song & Qi, CVPR 2017), codes 0 to 4 in its file names"),
        LabelSpace("age_group9", "age_group",
                   ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69",
                    "more than 70"),
                   {"70+": "more than 70", "over 70": "more than 70"},
                   "FairFace (Karkkainen & Joo, WACV 2021), its own words"),
        LabelSpace("emotic26", "context", EMOTIC,
                   {"Doubt": "Doubt/Confusion", "Confusion": "Doubt/Confusion"},
                   "EMOTIC (Kosti et al., TPAMI 2020), discrete categories, several a person",
                   several=True),
    )
}  # fmt: skip


def space(id: str) -> LabelSpace:
    """The label space of that id. Raises UserError if there is none."""
    if id not in SPACES:
        raise UserError(f"there is no label space {id!r}: use one of {', '.join(SPACES)}")
    return SPACES[id]


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
            known = ", ".join(f"{k}={v}" for k, v in self.codes.items())
            raise UserError(f"{self.id} has no emotion code {code!r}: its codes are {known}")
        return self.codes[code]


def _codes(order: str, first: int = 0) -> dict[int, str | None]:
    return {i: w if w in EMOTIONS else None for i, w in enumerate(order.split(), first)}


_AFFECTNET = "neutral happiness sadness surprise fear disgust anger contempt"

CODINGS: dict[str, Coding] = {
    coding.id: coding
    for coding in (
        Coding("rafdb", _codes("surprise fear disgust happiness sadness anger neutral", 1),
               "RAF-DB basic, EmoLabel/list_patition_label.txt, second column"),
        Coding("affectnet", _codes(f"{_AFFECTNET} none uncertain non-face"),
               "AffectNet, column `expression` and annotations/*_exp.npy"),
        Coding("affectnet_sample", _codes(_AFFECTNET, 1),
               "AffectNet sample with a csv `image,emotion`: the same order, counted from 1"),
        Coding("fer2013", _codes("anger disgust fear happiness sadness surprise neutral"),
               "FER2013, fer2013.csv column `emotion`; folder copies sort by name instead"),
        Coding("ferplus", _codes("neutral happiness surprise sadness anger disgust fear contempt "
                                 "unknown no_face"),
               "FERPlus, fer2013new.csv vote columns in their order; the last is `NF`"),
        Coding("ckplus", _codes("neutral anger contempt disgust fear happiness sadness surprise"),
               "CK+, Emotion/*/*_emotion.txt, a float in the file"),
        Coding("dfew", _codes("happiness sadness neutral anger surprise disgust fear", 1),
               "DFEW, EmoLabel_DataSplit/*(single-labeled)/set_*.csv column `label`"),
        Coding("faba", _codes("happiness sadness surprise anger neutral disgust fear"),
               "FABA-Instruct, eval_emotion_anno.json `label`; emotions2num of EmoLA's scorer"),
        Coding("affwild2", _codes("invalid neutral anger disgust fear happiness sadness surprise "
                                  "other", -1),
               "Aff-Wild2, expression track; -1 marks a frame that is not annotated"),
    )
}  # fmt: skip
