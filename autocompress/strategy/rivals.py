"""Optuna's own samplers, for comparison and for searches that know nothing beforehand."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autocompress.strategy.mutation import FrontMutationSampler

POPULATION = 16


class SeededNSGAIISampler(NSGAIISampler):
    """NSGA-II whose seeds become parents.

    Optuna marks a trial with its generation only where the sampler proposed it, so enqueued seeds were never parents.
    """

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Every trial belongs to a generation, whoever proposed it."""
        super().before_trial(study, trial)
        self.get_trial_generation(study, trial)


def rival(name: str, space: Mapping[str, IntDistribution], seed: int) -> BaseSampler:
    """Another sampler by its name in the configuration.

    Raises:
        KeyError: an unknown name.
    """
    return {
        "tpe": lambda: TPESampler(multivariate=True, group=True, seed=seed),
        "nsga2": lambda: SeededNSGAIISampler(population_size=POPULATION, seed=seed),
        "random": lambda: RandomSampler(seed),
        "mutation": lambda: FrontMutationSampler(space, seed),
    }[name]()
