"""Rewards: pure functions of (Answer, FaceSample), read by the parser that the metrics read by.

`reward` makes one of a function; `load` finds it by name, in a file, a module or an installed
package.

`docs/rewards.md` has each one's formula, range and source with a worked example. Where a face lacks
the annotation that a reward compares with, the reward is None: no signal, rather than a constant
that only moves the mean. An answer without a readable label earns the least of every reward that
compares with the truth, so that silence never pays.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlmface import facs
from vlmface.answers import Answer
from vlmface.au_descriptions import MENTION, contradictions
from vlmface.data.options import declared_types
from vlmface.errors import UserError
from vlmface.label_spaces import LabelSpace
from vlmface.metrics import measures
from vlmface.prompts import Prompt
from vlmface.registry import Registry
from vlmface.schema import FaceSample
from vlmface.train.label_weights import label_weights
from vlmface.utils.config import convert
from vlmface.utils.ranges import Count, Positive

RewardFunction = Callable[..., "float | None"]


@dataclass(frozen=True)
class Reward:
    """A reward: a function of an answer, with what a run needs to know of it.

    Attributes:
        function: Called with (answer, sample, space) and its options, which are keyword-only.
            Returns the reward, or None where the sample gives no signal.
        needs_annotation: Whether it compares with an annotation. A face for which all rewards of
            this kind return None is left out of training.
        weight: The weight in a YAML that gives none.
    """

    function: RewardFunction
    needs_annotation: bool = False
    weight: float = 1.0

    def __call__(
        self, answer: Answer, sample: FaceSample, space: LabelSpace, **options: Any
    ) -> float | None:
        return self.function(answer, sample, space, **options)

    @property
    def name(self) -> str:
        """The function's name, which the log uses."""
        return self.function.__name__

    @property
    def description(self) -> str:
        """The first paragraph of the function's docstring, on one line."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    @cached_property
    def options(self) -> dict[str, Any]:
        """{option: its type}: the keyword-only parameters, by their annotation or default."""
        kinds = declared_types(self.function)
        return {
            name: type(parameter.default) if kinds[name] in (Any, parameter.empty) else kinds[name]
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }


REWARDS: Registry[Reward | RewardFunction] = Registry("reward", "vlmface.rewards")


def reward(
    *, needs_annotation: bool = False, weight: float = 1.0
) -> Callable[[RewardFunction], Reward]:
    """A decorator that makes a reward of a function: the one place where it is defined.

        @reward(needs_annotation=True)
        def valence(answer, sample, space, *, tolerance: float = 0.2):
            \"\"\"1 if ..., else 0.\"\"\"

    Args:
        needs_annotation: See `Reward`.
        weight: See `Reward`.
    """
    return lambda function: Reward(function, needs_annotation, weight)


def _built_in(*, needs_annotation: bool = False) -> Callable[[RewardFunction], Reward]:
    """`reward`, entered in REWARDS."""

    def add(function: RewardFunction) -> Reward:
        made = Reward(function, needs_annotation)
        REWARDS.register(made.name)(made)
        return made

    return add


# --- the built-in ones ----------------------------------------------------------------------------


@_built_in()
def format(answer: Answer, sample: FaceSample, space: LabelSpace) -> float:
    """1 if the text is exactly the requested format with a label of the space, else 0."""
    return float(answer.status == "strict")


@_built_in(needs_annotation=True)
def emotion(answer: Answer, sample: FaceSample, space: LabelSpace) -> float | None:
    """1 if the label is the annotated one, else 0; None without an annotation, and where a face may
    have several labels (use `jaccard`).

    Labels are those of the prompt's space (emotion, or any other), after the parser has read
    aliases and case: "Happy" is happiness, "unhappy" is not.
    """
    truth = None if space.multi_label else sample.label(space)
    return None if truth is None else float(answer.label == truth)


@_built_in(needs_annotation=True)
def rating(answer: Answer, sample: FaceSample, space: LabelSpace) -> float | None:
    """Of a scale of numbers: 1 minus the error as a share of the scale's length, in [0, 1]; 0
    without an answer. None without an annotation, and for labels in words."""
    truth = sample.value(space)
    if truth is None or space.scale is None:
        return None
    if answer.label is None:
        return 0.0
    low, high = space.scale.limits
    return 1 - abs(float(answer.label) - truth) / (high - low)


@_built_in(needs_annotation=True)
def jaccard(answer: Answer, sample: FaceSample, space: LabelSpace) -> float | None:
    """Where a face has several labels: those that are said and annotated by those that are either,
    in [0, 1]; 1 if and only if they are the same. None without an annotation.

    The metric `jaccard` is the mean of this over the faces.
    """
    truth = sample.labels(space)
    return measures.jaccard(answer.labels, truth) if truth else None


@_built_in(needs_annotation=True)
def au(
    answer: Answer, sample: FaceSample, space: LabelSpace, *, beta: Positive = 1.0
) -> float | None:
    """2 F_beta - 1 of the AUs that the answer names, over the annotated ones; in [-1, 1].

    An AU without annotation is neither right nor wrong. A face without any present AU gets 1 if
    none is named, else -1. None without AU annotation.
    """
    if sample.aus is None:
        return None
    truth = {label.au for label in sample.aus if label.present}
    return _f_beta(answer, sample, dict.fromkeys(truth, 1.0), beta)


@_built_in(needs_annotation=True)
def au_intensity(
    answer: Answer, sample: FaceSample, space: LabelSpace, *, beta: Positive = 1.0
) -> float | None:
    """As `au`, with recall weighted by intensity: a strong movement that is missed costs more than
    a trace. None unless every present AU is graded."""
    if sample.aus is None:
        return None
    weights = {label.au: label.intensity for label in sample.aus if label.present}
    if any(weight is None for weight in weights.values()):
        return None
    return _f_beta(answer, sample, {n: w for n, w in weights.items() if w is not None}, beta)


def _f_beta(answer: Answer, sample: FaceSample, weights: Mapping[int, float], beta: float) -> float:
    annotated = {label.au for label in sample.aus or ()}
    predicted = annotated.intersection(answer.aus)
    if not answer.labels:
        return -1.0
    if not weights:
        return -1.0 if predicted else 1.0
    hits = predicted & weights.keys()
    if not hits:
        return -1.0
    precision = len(hits) / len(predicted)
    recall = sum(weights[n] for n in hits) / sum(weights.values())
    square = beta**2
    return 2 * (1 + square) * precision * recall / (square * precision + recall) - 1


@_built_in()
def consistency(answer: Answer, sample: FaceSample, space: LabelSpace) -> float | None:
    """1 if no other emotion has more EMFACS evidence in the AUs that the answer names than its own
    label, else 0. None where the space has labels that EMFACS says nothing of."""
    if not set(space.labels) <= facs.PROTOTYPES.keys():
        return None
    return float(answer.label is not None and facs.supports(answer.aus, answer.label))


@_built_in()
def au_description(answer: Answer, sample: FaceSample, space: LabelSpace) -> float:
    """Minus the share of the AUs mentioned whose words describe another movement, as in "the lips
    are parted (AU2)"; in [-1, 0]. The other rewards read numbers alone, and would pay for that."""
    wrong = len(contradictions(answer.rationale))
    return -wrong / len(MENTION.findall(answer.rationale)) if wrong else 0.0


@_built_in()
def length_penalty(
    answer: Answer, sample: FaceSample, space: LabelSpace, *, words: Count = 120
) -> float:
    """0 for a rationale of up to `words` words, falling to -1 at twice as many."""
    return 0.0 - min(1.0, max(0.0, len(answer.rationale.split()) / words - 1))


@_built_in()
def repetition(answer: Answer, sample: FaceSample, space: LabelSpace, *, n: Count = 4) -> float:
    """Minus the share of the rationale's n-grams of words that occurred before; in [-1, 0]."""
    tokens = re.findall(r"\w+", answer.rationale.casefold())
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 0.0 if not grams else len(set(grams)) / len(grams) - 1


# --- what a run is given --------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightedReward:
    """A reward as a run uses it: `weight` times it, after `options`."""

    reward: Reward
    weight: float
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its columns in the log."""
        return self.reward.name

    def __call__(self, answer: Answer, sample: FaceSample, space: LabelSpace) -> float | None:
        return self.reward(answer, sample, space, **self.options)


def load(name: str) -> Reward:
    """The reward of a name.

    Only training calls this: a name may refer to code, and the files of a run that comes from a
    stranger must not.

    Args:
        name: A built-in name, an entry point of the group `vlmface.rewards` in an installed
            package (`kindness = "my_package:kindness"`), `path/to/file.py:function`, or
            `package.module:function`.

    Raises:
        UserError: There is no such reward, or it cannot be called as one.
    """
    item = REWARDS.get(name)
    if isinstance(item, Reward):
        return item
    if not callable(item):
        raise UserError(f"reward {name!r} is a {type(item).__name__}, but must be a function")
    return reward()(item)


def parse(rewards: Mapping[str, Any]) -> list[WeightedReward]:
    """The rewards of a recipe's YAML.

    Args:
        rewards: {name: weight} or {name: {weight: ..., option: ...}}, where the name is as in
            `load`.

    Raises:
        UserError: A name, an option or a weight cannot be used.
    """
    weighted: dict[str, WeightedReward] = {}
    for name, entry in rewards.items():
        item = load(str(name))
        if item.name in weighted:
            raise UserError(
                f"rewards: {name!r} is called {item.name!r}, as another one is: give its function "
                "another name"
            )
        options = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight = convert(f"reward {name}: weight", Positive, options.pop("weight", item.weight))
        weighted[item.name] = WeightedReward(item, weight, _options(name, item, options))
    if not weighted:
        raise UserError("rewards is empty: name at least one, such as {format: 1, emotion: 1}")
    return list(weighted.values())


def _options(name: str, item: Reward, options: Mapping[str, Any]) -> dict[str, Any]:
    for option in options:
        if option not in item.options:
            raise UserError(
                f"reward {name} has no option {option!r}: it has "
                f"{', '.join(['weight', *item.options])}"
            )
    return {
        option: convert(f"reward {name}: {option}", item.options[option], value)
        for option, value in options.items()
    }


def code_shas(rewards: Sequence[WeightedReward]) -> dict[str, str]:
    """{name: 12 hex digits of its source code} of the rewards that are not built in: a run that is
    resumed must have the same ones."""
    shas = {}
    for weighted in rewards:
        if weighted.reward is not REWARDS.built_in.get(weighted.name):
            try:
                source = inspect.getsource(weighted.reward.function)
            except (OSError, TypeError):  # built at run time
                source = ""
            shas[weighted.name] = hashlib.sha256(source.encode()).hexdigest()[:12]
    return shas


def check_truth(
    rewards: Sequence[WeightedReward], samples: Sequence[FaceSample], space: LabelSpace
) -> None:
    """Refuse a reward that no face of the data gives a signal for. Raises UserError."""
    nobody = Answer(None, (), "none", "")
    for reward in rewards:
        if all(reward(nobody, sample, space) is None for sample in samples):
            raise UserError(
                f"reward {reward.name}: none of the {len(samples)} faces has the annotation that "
                "it compares with: take it out of rewards, or use other data"
            )


class RewardScorer:
    """TRL's reward functions over our own: they read the prompt's form once for each text."""

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        samples: Sequence[FaceSample],
        prompt: Prompt,
        label_weight_power: float = 0.0,
    ) -> None:
        """Raises UserError for a power above 0 if a face may have several labels."""
        if label_weight_power and prompt.multi_label:
            raise UserError(
                f"label_weight_power is {label_weight_power}, but a face may have several labels "
                f"of {prompt.space.id}: set it to 0"
            )
        self.rewards = list(rewards)
        self.samples = samples
        self.prompt = prompt
        labels = [sample.label(prompt.space) for sample in samples]
        self.weights = label_weights(Counter(filter(None, labels)), label_weight_power)

    def weight(self, index: int) -> float:
        """What the advantages of a face's completions are multiplied by."""
        label = self.samples[index].label(self.prompt.space)
        return self.weights.get(label or "", 1.0)

    def functions(self) -> list[Callable[..., list[float | None]]]:
        """One function for each reward, named after it, with TRL's signature; the faces are those
        of column `index`. The weights are TRL's own (`reward_weights`)."""

        def adapted(reward: WeightedReward) -> Callable[..., list[float | None]]:
            def function(
                completions: Sequence[Any], index: Sequence[int], **_: Any
            ) -> list[float | None]:
                texts = [completion[-1]["content"] for completion in completions]
                return [
                    reward(self.prompt.parse(text), self.samples[i], self.prompt.space)
                    for text, i in zip(texts, index, strict=True)
                ]

            function.__name__ = reward.name
            return function

        return [adapted(reward) for reward in self.rewards]
