"""What changes in the course of a training: learning rate, zeros, layers of one bit, channels that fall silent."""

from __future__ import annotations

import math
from typing import Literal

from autocompress.frameworks.base import Candidate, Progress, TuneSettings

OptimizerKind = Literal["sgd", "adam"]
MASKS = 20
"""How often a growing mask is chosen anew. Zhu & Gupta (2017) found that the frequency hardly matters."""
MASK_GROWS_UNTIL = 0.5
"""Fraction of a training after which the zeros stay where they are."""
BINARY_WEIGHTS_FROM = 1 / 3
"""Fraction of a training after which weights of one bit are binary; their activations are from the first step on."""
WARM_UP = 0.1
"""Fraction of a training in which the learning rate rises."""
SGD_RATE, ADAM_RATE = 0.03, 1e-3
"""Highest rates of the cycle where neither the task nor the model names one."""
PRUNED_SGD_RATE = 0.06
"""The same for a candidate that has lost channels which no shared training has made up for.

With half of ResNet-8's channels gone it gave .950 after three epochs where the other gave .946; on a small MobileNetV2 both gave
.943. Where nothing is removed it was worse there (.956 beside .959). 15 policies of a Keras ResNet-8 that had inherited .9504 had
.9486 after an epoch with it, and .9500 with the other; after three epochs five of them had .9513 and .9509.
"""
SHARED_SGD_RATE, SHARED_ADAM_RATE = 0.1, 2e-3
"""The same for a shared training, which has to go further from the original.

On a small ResNet of digits 16 policies inherited .943 on average with SGD's after 24 epochs, and .911 with that of candidates; 6
epochs of their own gave .940. Of 1-D convolutions over words 40 policies inherited .877 at 5e-4, .882 at 1e-3 and .889 at 2e-3 of
AdamW, and had .884 by themselves at 1e-3.
"""
PLAIN_SHARED_ADAM_RATE = 1.4e-3
"""The same without batch norms, whose layers bear less.

40 policies of a transformer that have .8204 by themselves at 1e-3 inherit .8281, .8313 and .8347 at 1e-3, this and 2e-3; beside
their own accuracies they rank by .91, .86 and .78 (two trainings of their own: .98).
"""
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


def shared_rate(named: float | None, kind: OptimizerKind, has_batch_norms: bool) -> float:
    """The highest rate of a shared training.

    A small Keras MobileNetV2, whose candidates are tuned at 0.03, inherited .921 from a training at that rate, .938 from one at
    0.1, and four policies had .937 by themselves. What is named above the default stays as it is.

    Args:
        named: the user's rate for candidates, if there is one.
        kind: of the optimizer.
        has_batch_norms: the model.
    """
    adam = SHARED_ADAM_RATE if has_batch_norms else PLAIN_SHARED_ADAM_RATE
    usual, shared = (SGD_RATE, SHARED_SGD_RATE) if kind == "sgd" else (ADAM_RATE, adam)
    return shared if named is None else max(named, min(named * shared / usual, shared))


def has_lost_much(candidate: Candidate, is_heir: bool) -> bool:
    """Has a candidate lost channels that were not made up for? A shared training does that, but not for whole branches."""
    return bool(candidate.removed) and (not is_heir or 1 in candidate.policy.pruning.values())


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
