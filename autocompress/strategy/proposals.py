"""The Optuna study of a search, asked for points and told of records.

The records of the run folder are the truth. Whenever a search starts, the study is made again from them, judged by the budget of
today: a constraint cannot be changed after a trial was told, and a study that was killed half-way needs no repair this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from autocompress.config import Objective
from autocompress.errors import RunFolderError
from autocompress.front import costs
from autocompress.metrics import Metric
from autocompress.policy import Policy
from autocompress.record import State, TrialRecord
from autocompress.space import SearchSpace
from autocompress.strategy.mutation import silence_optuna
from autocompress.strategy.observed import FIDELITY
from autocompress.strategy.sampler import SurrogateSampler

STUDY_NAME = "search"
CONSTRAINT = "latency_over_budget"


class Proposals:
    """What to try next.

    Args:
        storage: the SQLite file.
        space: what is searched.
        objectives: what the front trades off.
        metric: the task's metric.
        budget_ms: the latency budget, if there is one.

    Raises:
        RunFolderError: the file is not an Optuna study.
    """

    def __init__(
        self,
        storage: Path,
        space: SearchSpace,
        objectives: Sequence[Objective],
        metric: Metric,
        budget_ms: float | None,
    ) -> None:
        silence_optuna()
        self._space, self._objectives, self._metric, self._budget_ms = space, objectives, metric, budget_ms
        self._distributions = {d.name: IntDistribution(0, len(d.choices) - 1) for d in space.decisions}
        url = f"sqlite:///{storage}"
        try:
            if STUDY_NAME in optuna.get_all_study_names(url) if storage.exists() else ():
                optuna.delete_study(study_name=STUDY_NAME, storage=url)
            directions: list[Any] = [metric.direction, *["minimize"] * (len(objectives) - 1)]
            self._study = optuna.create_study(study_name=STUDY_NAME, storage=url, directions=directions)
        except Exception as error:  # SQLAlchemy, SQLite and Optuna each have their own
            reason = str(error).splitlines()[0]
            raise RunFolderError(
                "The study of a run is a readable Optuna database",
                f"{storage}: {reason}",
                f"Remove {storage.name} and resume; it is made again from the trials' records.",
            ) from error
        self._seeds: list[dict[str, int]] = []
        self._asked: dict[str, optuna.Trial] = {}

    @property
    def distributions(self) -> dict[str, IntDistribution]:
        """What the study's parameters can be."""
        return dict(self._distributions)

    def begin(self, records: Iterable[TrialRecord], sampler: BaseSampler, seeds: Sequence[Mapping[str, int]] = ()) -> None:
        """Tell of everything that is already known, and queue the seeds.

        Args:
            records: of this run, or of another one in the same space.
            sampler: proposes points after the seeds.
            seeds: points that are tried first.
        """
        self._study.sampler = sampler
        self._seeds = [dict(point) for point in seeds]
        if isinstance(sampler, SurrogateSampler):  # its own seeds follow from what it knows, so they need no queue
            self._seeds += [dict(zip(self._distributions, point, strict=True)) for point in sampler.seeds()]
        for record in records:
            self._add(record)
        for point in seeds:
            self._study.enqueue_trial(dict(point), skip_if_exists=True)

    def ask(self, measure: Callable[[Policy], float] | None = None, most: int = 1) -> tuple[dict[str, int], str]:
        """A point of the space, and where it comes from.

        Args:
            measure: the latency in milliseconds of a policy's untrained candidate.
            most: so many proposals are measured before one is chosen, where the sampler knows what to make of it.
        """
        if measure is not None and most > 1:
            self._choose_measured(measure, most)
        trial = self._study.ask()
        point = {name: trial.suggest_int(name, d.low, d.high) for name, d in self._distributions.items()}
        self._asked[self._space.policy(point).key] = trial
        return point, "seed" if point in self._seeds else "sampler"

    def tell(self, record: TrialRecord) -> None:
        """How the trial that was asked for ended, or one that had the same policy before."""
        trial = self._asked.pop(record.policy.key, None)
        if trial is None:
            self._add(record)
            return
        for name, value in self._constraints(record).items():
            trial.set_constraint(name, value)
        for name, value in _attributes(record).items():
            trial.set_user_attr(name, value)
        state, values = self._outcome(record)
        self._study.tell(trial, values, state=state)

    def _choose_measured(self, measure: Callable[[Policy], float], most: int) -> None:
        """Put the best of the sampler's proposals next, after a look at their latencies."""
        sampler = self._study.sampler
        if not isinstance(sampler, SurrogateSampler) or self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
            return
        found = sampler.shortlist(self._study, most)
        if len(found) > 1:
            points = [dict(zip(self._distributions, point, strict=True)) for point in found]
            latencies = [measure(self._space.policy(point)) for point in points]
            self._study.enqueue_trial(points[sampler.choose(self._study, found, latencies)])

    def _add(self, record: TrialRecord) -> None:
        point = self._space.indices(record.policy)
        if point is None or record.state == State.RUNNING or not record.plan.tune:
            return
        state, values = self._outcome(record)
        self._study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=point,
                distributions=dict(self._distributions),
                user_attrs=_attributes(record),
                constraints=self._constraints(record),
            )
        )

    def _outcome(self, record: TrialRecord) -> tuple[TrialState, list[float] | None]:
        if record.state == State.COMPLETE:
            _, *others = costs(record, self._objectives, self._metric)
            assert record.accuracy_valid is not None  # costs() would have raised
            return TrialState.COMPLETE, [record.accuracy_valid, *others]  # the study knows the metric's direction
        return (TrialState.PRUNED if record.state == State.OVER_BUDGET else TrialState.FAIL), None

    def _constraints(self, record: TrialRecord) -> dict[str, float]:
        """Milliseconds over the budget relative to it; not above zero is feasible."""
        if self._budget_ms is None or record.latency is None:
            return {}
        return {CONSTRAINT: record.latency.ms / self._budget_ms - 1}


def _attributes(record: TrialRecord) -> dict[str, int]:
    return {"record": record.number} | ({} if record.epochs is None else {FIDELITY: record.epochs})
