"""What changes in the course of a training: learning rate, zeros, layers of one bit, channels that fall silent."""

from __future__ import annotations

import math

from autocompress.frameworks.base import Progress, TuneSettings

MASKS = 20
"""How often a growing mask is chosen anew. Zhu & Gupta (2017) found that the frequency hardly matters."""
MASK_GROWS_UNTIL = 0.5
"""Fraction of a training after which the zeros stay where they are."""
BINARY_WEIGHTS_FROM = 1 / 3
"""Fraction of a training after which weights of one bit are binary; their activations are from the first step on."""
WARM_UP = 0.1
"""Fraction of a training in which the learning rate rises."""
GRADUAL_SHARE = 1 / 3
"""Of the epochs, in which channels fall silent; the others train what is left. With a single epoch there is none."""


def sparsity_at(fraction: float) -> float:
    """How much of the final sparsity is reached: 1 - (1 - t)³ (Zhu & Gupta, To Prune or Not to Prune, 2017, equation 1)."""
    return 1 - (1 - min(fraction / MASK_GROWS_UNTIL, 1.0)) ** 3


def mask_level(fraction: float) -> int:
    """How far a mask has grown, of MASKS."""
    return math.ceil(sparsity_at(fraction) * MASKS)


def cosine_share(step: int, steps: int) -> float:
    """The share of the highest rate: up in a straight line, then half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def shared_rate(named: float, usual: float, shared: float) -> float:
    """The highest rate of a shared training by SGD where a user has named the rate of candidates.

    It has to go further from the original: a small Keras MobileNetV2, whose candidates are tuned at 0.03, inherited .921 from a
    training at that rate, .938 from one at 0.1, and four policies had .937 by themselves. Above the default it stays as it is.

    Args:
        named: by the user.
        usual: of candidates where nothing is named.
        shared: of shared trainings where nothing is named.
    """
    return max(named, min(named * shared / usual, shared))


def gradual_epochs(settings: TuneSettings) -> int:
    """How many of the epochs train the whole model while its channels go."""
    return 0 if settings.pruning_schedule == "one_shot" else round(GRADUAL_SHARE * settings.epochs)


def silent_channels(channels: int, removed: int, fraction: float, schedule: str) -> int:
    """How many of the channels that go are silent when a fraction of the steps is done.

    linear: equally many in every step. exponential: in every step the same share of those that still speak.
    """
    if schedule == "linear" or removed == channels:
        return round(removed * fraction)
    return round(channels * (1 - math.pow(1 - removed / channels, fraction)))


def part(progress: Progress, first: float, last: float) -> Progress:
    """Progress of a part of a whole."""
    return lambda done: progress(first + (last - first) * done)
