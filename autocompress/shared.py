"""Shared fine-tuning: one training whose weights serve every policy of a space.

In every step another policy is in force. Afterwards a candidate inherits its weights, and has its statistics taken anew, instead
of being trained itself. The training runs in cycles, each of which ends with a rate of zero and could be the last; a fixed set of
policies, the probes, tells whether another one is worth it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import mean
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from autocompress.data import Batch, join, map_arrays
from autocompress.errors import RunFolderError
from autocompress.frameworks.base import Candidate, Framework, SharedTraining
from autocompress.policy import FLOAT, LayerPolicy, Policy
from autocompress.run_folder import RunFolder
from autocompress.space import SearchSpace
from autocompress.task import Task
from autocompress.watch import Watcher

FOLDER, STATE = "shared", "shared/progress.json"
SHARED_WEIGHTS = (8, 7, 4, 3)
"""Weight widths that share. Others are trained as the next wider one, and candidates that have them are tuned by themselves.

On a small ResNet of digits, where every width has steps of its own: 16 policies of 8 and 4 bits inherit .940 on average, and have
.929 tuned for 6 epochs each; with 2 bits among them .904 and .920.
"""
SHARED_ACTIVATIONS = 8
SANDWICH = 32
"""Of so many steps on average one trains the largest policy and one the smallest (Yu & Huang 2019); the others are drawn.

With 8 instead, random policies inherit .9433 and .9350 on average, with 32 .9468 and .9368 (ResNet-8, MobileNetV2; up to 7/8 of
the channels gone; gradients clipped to 5), though the smallest policy of all has .91 instead of .92.
"""
DRAWN = 8
"""Random points of which the one nearest to a latency is taken."""
CYCLE, SHORTEST_CYCLE = 7, 3
"""Epochs of a cycle over those of a candidate's own fine-tuning: at most, and at least.

Policies that have .935 on MobileNetV2 tuned one by one for 3 epochs inherit .938 after 18 shared epochs, .940 after 21 and .941
after 24; in Keras, where they have .942, it is .940, .943 and .945 (validation data, up to 7/8 of the channels gone,
two or three seeds). Ranked beside 20 epochs each they are as good after 18 as after 24 (.63, .62, .62), and beside 3 epochs
better after 18 and 21 than after 24 (.81, .82, .74; in Keras .77, .74, .70).
"""
CANDIDATES_PER_LENGTH = 5
"""So that a cycle takes about a quarter of the time in which the candidates could be tuned by themselves."""
MOST_CYCLES = 3
CANDIDATES_PER_CYCLE = 80
"""Another cycle pays for so many more."""
PROBES = 4
PROBE_SAMPLES = 1000
"""Of the validation data; they decide only how long the shared training runs."""
WORTH_A_CYCLE = 0.1
"""Part of what the probes lack that a cycle has to win for another to follow."""


def cycles_for(candidates: int | None) -> int:
    """How many cycles pay for some candidates; None for a number that is not known."""
    return MOST_CYCLES if candidates is None else max(1, min(MOST_CYCLES, candidates // CANDIDATES_PER_CYCLE))


def cycle_within(candidates: int | None, most_seconds: float | None, own_seconds: float | None) -> int:
    """How many times as long as a candidate's own fine-tuning a cycle lasts.

    Args:
        candidates: that are to inherit; None for a number that is not known.
        most_seconds: that a cycle may take; None without a limit.
        own_seconds: what as many shared epochs take as a candidate has; None where that is not known.
    """
    paid = CYCLE if candidates is None else candidates // CANDIDATES_PER_LENGTH
    fits = CYCLE if most_seconds is None else int(most_seconds / (own_seconds or np.inf))
    return min(CYCLE, max(SHORTEST_CYCLE, min(paid, fits)))


def is_shared(policy: Policy) -> bool:
    """True where the shared training trains all that a policy does."""
    return nearest_shared(policy) == policy


def nearest_shared(policy: Policy) -> Policy:
    """The policy with widths that do not share replaced by wider ones that do, and with the branches that it removes whole."""
    pruning = {name: ratio for name, ratio in policy.pruning.items() if ratio < 1}
    return Policy(pruning, {name: _nearest(layer) for name, layer in policy.layers.items()})


@cache
def _nearest(layer: LayerPolicy) -> LayerPolicy:
    weights, activations = layer.weights, layer.activations
    if isinstance(weights, int):
        weights = min(bits for bits in SHARED_WEIGHTS if bits >= min(weights, max(SHARED_WEIGHTS)))
    if activations != FLOAT:
        activations = SHARED_ACTIVATIONS
    return LayerPolicy(weights, activations, layer.sparsity, layer.pattern)


class PolicySampler:
    """Policies for the steps of a shared training: the largest, the smallest, and those between, spread over the latencies.

    Args:
        space: of the search.
        predicted: latency of a policy in any unit.
        limit: policies above this predicted latency are not worth training; None for no limit.
        seed: of what is drawn.
    """

    def __init__(self, space: SearchSpace, predicted: Callable[[Policy], float], limit: float | None, seed: int) -> None:
        self.space, self.predicted, self.seed = space, predicted, seed
        self.largest, self.smallest = (nearest_shared(space.policy(space.level(end))) for end in (0.0, 1.0))
        ends = predicted(self.smallest), predicted(self.largest)
        self.fastest, self.slowest = min(ends), max(ends) if limit is None else min(max(ends), max(limit, min(ends)))

    def policies(self, *place: int) -> Iterator[Policy]:
        """Policies for one step after the other; `place` says of which part of the training, so that it can be repeated."""
        generator = np.random.default_rng((self.seed, *place))
        while True:
            chance = generator.integers(SANDWICH)  # drawn, for an epoch may have few steps
            yield self.largest if chance == 0 else self.smallest if chance == 1 else self.draw(generator)

    def draw(self, generator: np.random.Generator) -> Policy:
        """A random policy near a random latency: of random points alone hardly any is near an end.

        The square root of the latency is uniform: fast policies lack most, and their steps take the least time.
        """
        wanted = generator.uniform(self.fastest**0.5, self.slowest**0.5) ** 2
        found = [nearest_shared(self.space.policy(self._point(generator))) for _ in range(DRAWN)]
        return min(found, key=lambda policy: abs(self.predicted(policy) - wanted))

    def _point(self, generator: np.random.Generator) -> dict[str, int]:
        return {d.name: int(generator.integers(len(d.choices) - d.ends_whole)) for d in self.space.decisions}


class Screen:
    """Scores candidates in simulation, on a split of the data or on its first samples."""

    def __init__(self, framework: Framework, task: Task, samples: int | None = None, split: str = "valid") -> None:
        self.framework, self.task = framework, task
        self.batches: list[Batch] = []
        for batch in task.splits[split].numpy():
            self.batches.append(batch)
            if samples is not None and sum(one.size for one in self.batches) >= samples:
                break
        self.targets = join([batch.targets for batch in self.batches])

    def score(self, candidate: Candidate) -> float:
        """The task's metric."""
        return self.task.scorer(self._predictions(candidate), self.targets)

    def gains(self, candidate: Candidate, parts: int) -> list[float]:
        """The metric on each of some equal parts of the data, with its sign turned so that more is better."""
        predictions = self._predictions(candidate)
        ends = np.linspace(0, sum(batch.size for batch in self.batches), parts + 1).astype(int)
        slices = [slice(a, b) for a, b in itertools.pairwise(ends.tolist()) if b > a]
        scores = (self.task.scorer(_part(predictions, one), _part(self.targets, one)) for one in slices)
        return [self.task.scorer.gain(score) for score in scores]

    def _predictions(self, candidate: Candidate) -> Any:
        return self.framework.predict(self.task, candidate, (batch.inputs for batch in self.batches))


def _part(arrays: Any, one: slice) -> Any:
    return map_arrays(arrays, lambda array: array[one])


class SharedState(BaseModel):
    """How far a shared training is; `shared/progress.json` of a run folder.

    Attributes:
        cycle, epoch: finished ones; of the epochs, those of the present cycle.
        cycle_epochs: that each cycle has.
        checkpoint: the file with the weights.
        probes: after each cycle the score of each probe; of the first alone where no other cycle can follow.
        seconds: that the training and its probes took.
        finished: why no further cycle follows.
    """

    model_config = ConfigDict(extra="forbid")

    cycle: int = 0
    epoch: int = 0
    cycle_epochs: int
    checkpoint: str | None = None
    probes: list[list[float]] = []
    seconds: float = 0.0
    finished: str | None = None


@dataclass
class SharedTuning:
    """A shared training in a run folder, and what decides about its length.

    Attributes:
        screen: that scores the probes.
        training: that the framework makes of the task.
        sampler: of policies.
        cycle_epochs: of each cycle; a training that is resumed keeps its own.
        folder: in which the training is kept.
        watcher: told of progress.
        most_cycles: however much the probes lack.
        most_seconds: no cycle begins that would probably end later.
    """

    screen: Screen
    training: SharedTraining
    sampler: PolicySampler
    cycle_epochs: int
    folder: RunFolder
    watcher: Watcher
    most_cycles: int = MOST_CYCLES
    most_seconds: float | None = None

    def run(self) -> SharedState:
        """Train, or go on with the training in the folder, until another cycle is not worth it.

        Raises:
            DivergedError: the loss is not a number.
        """
        state = self._resumed()
        if state.finished is None and self.sampler.smallest.pruning and self.training.masked_because:
            why = self.training.masked_because
            self.watcher.say(f"Steps of the shared training also compute the channels that go, which takes longer: {why}")
        while state.finished is None:
            start = time.monotonic()
            if state.epoch < state.cycle_epochs:
                self.training.epoch(self.sampler.policies(state.cycle, state.epoch), self.watcher.progress)
                state.epoch += 1
            else:
                self._end_cycle(state)
            state.seconds += time.monotonic() - start
            self._keep(state)
        return state

    def _resumed(self) -> SharedState:
        state = SharedState(cycle_epochs=self.cycle_epochs)
        if self.folder.file(STATE).is_file():
            state = self._read()
        self.training.begin(state.cycle_epochs)
        if state.checkpoint is not None:
            self.training.load(self.folder.file(state.checkpoint))
            if state.epoch == 0:  # between two cycles: the weights go on, the rate begins anew
                self.training.begin(state.cycle_epochs)
        return state

    def _read(self) -> SharedState:
        stored = self.folder.read_json(STATE)
        try:
            return SharedState.model_validate(stored)
        except ValidationError as error:
            place, remedy = self.folder.file(STATE), f"Remove the folder {FOLDER} of the run; the training then begins anew."
            raise RunFolderError("A shared training is resumed by the version that began it", str(place), remedy) from error

    def _keep(self, state: SharedState) -> None:
        """First the weights, under a name of their own, then what tells of them: a kill between the two costs an epoch."""
        older = state.checkpoint
        state.checkpoint = f"{FOLDER}/weights-{state.cycle}-{state.epoch}"
        self.folder.file(FOLDER).mkdir(exist_ok=True)
        with self.folder.disk_guard():
            self.training.save(self.folder.file(state.checkpoint))
        self.folder.write_json(STATE, state.model_dump())
        if older not in (None, state.checkpoint):
            self.folder.file(str(older)).unlink(missing_ok=True)

    def _end_cycle(self, state: SharedState) -> None:
        state.cycle += 1
        state.finished = self._why_no_further(state)
        self._probe(state, PROBES if state.finished is None else 1)
        state.finished = state.finished or self._why_enough(state)
        if state.finished is None:
            state.epoch = 0
            self.training.begin(state.cycle_epochs)

    def _probe(self, state: SharedState, count: int) -> None:
        """Score some probes: one shows that candidates can inherit, all of them what another cycle would have to win."""
        state.probes.append([self._probed(policy) for policy in self._probes[:count]])
        scores = f"{count} random candidate{'s have' if count > 1 else ' has'} {self.screen.task.scorer.name}"
        epochs = state.cycle * state.cycle_epochs
        self.watcher.say(
            f"Shared training, {epochs} epochs: {scores} {mean(state.probes[-1]):.4g}, the original {self._original:.4g}"
        )

    def _probed(self, policy: Policy) -> float:
        candidate = self.training.candidate(policy)
        self.screen.framework.reestimate(self.screen.task, candidate)
        return self.screen.score(candidate)

    @cached_property
    def _probes(self) -> list[Policy]:
        generator = np.random.default_rng(self.sampler.seed)
        return [self.sampler.draw(generator) for _ in range(PROBES)]

    @cached_property
    def _original(self) -> float:
        return self.screen.score(self.screen.framework.compress(self.screen.task, Policy(), "l2"))

    def _why_no_further(self, state: SharedState) -> str | None:
        """Why no cycle follows, whatever the probes would say."""
        if state.cycle >= self.most_cycles:
            return "more would not pay for so few candidates" if self.most_cycles < MOST_CYCLES else "it was long enough"
        if self.most_seconds is not None and state.seconds * (1 + 1 / state.cycle) > self.most_seconds:
            return "the time for it is used up"
        return None

    def _why_enough(self, state: SharedState) -> str | None:
        """Why another cycle is not worth it, as the probes tell."""
        gains = [self.screen.task.scorer.gain(mean(scores)) for scores in state.probes]
        lacking = self.screen.task.scorer.gain(self._original) - gains[-1]
        if lacking <= 0:
            return "the candidates are as good as the original"
        if len(gains) > 1 and gains[-1] - gains[-2] < WORTH_A_CYCLE * lacking:
            return "the last cycle won little"
        return None
