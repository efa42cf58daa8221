"""A reward: one decorated function."""

from vlmface.train.rewards import reward


@reward(needs_annotation=True, weight=0.5)
def mood(answer, sample, space, *, wrong: float = 0.0):
    """1 if the mood is the annotated one, else `wrong`."""
    truth = sample.label(space)
    return None if truth is None else 1.0 if answer.label == truth else wrong
