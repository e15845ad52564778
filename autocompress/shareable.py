"""What of a policy one training for all can train, and which residual branches a model can spare in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autocompress.policy import FLOAT, LayerPolicy, Policy
from autocompress.space import SearchSpace

SHARED_WEIGHTS = (8, 7, 4, 3)
"""Weight widths that share. Others are trained as the next wider one, and candidates that have them are tuned by themselves.

On a small ResNet of digits, where every width has steps of its own: 16 policies of 8 and 4 bits inherit .940 on average, and have
.929 tuned for 6 epochs each; with 2 bits among them .904 and .920.
"""
SHARED_ACTIVATIONS = 8
MOST_DAMAGE = 0.1
"""Of what the smallest model loses: a branch that costs more by itself, untrained, does not share.

A MobileNetV2 loses up to .04 without one of its ten, and .76 as the smallest model; a ResNet-8 loses .3 to .57 without one of
its three. Ten policies without some of the MobileNetV2's inherit .936, where they have .942 tuned by themselves for 2 epochs;
twelve without some of the ResNet-8's inherit .76, where they have .87, and those that keep them inherit .942 instead of .953.
"""


@dataclass(frozen=True)
class Shareable:
    """Tells what the shared training trains of a policy.

    Attributes:
        branches: groups whose residual branch it trains the model without. Others it keeps whole: the layers after them would see
            too different data.
    """

    branches: frozenset[str] = frozenset()

    def holds(self, policy: Policy) -> bool:
        """True where the shared training trains all that a policy does."""
        return self.nearest(policy) == policy

    def nearest(self, policy: Policy) -> Policy:
        """The policy with widths that do not share replaced by wider ones that do, and with the branches that do not."""
        pruning = {name: ratio for name, ratio in policy.pruning.items() if ratio < 1 or name in self.branches}
        return Policy(pruning, {name: _nearest(layer) for name, layer in policy.layers.items()})


WITH_ALL_BRANCHES = Shareable()


def _nearest(layer: LayerPolicy) -> LayerPolicy:
    weights, activations = layer.weights, layer.activations
    if isinstance(weights, int):
        weights = min(bits for bits in SHARED_WEIGHTS if bits >= min(weights, max(SHARED_WEIGHTS)))
    if activations != FLOAT:
        activations = SHARED_ACTIVATIONS
    return LayerPolicy(weights, activations, layer.sparsity, layer.pattern)


def branches_that_share(space: SearchSpace, gain: Callable[[Policy], float]) -> frozenset[str]:
    """The branches without which the model is damaged by little.

    Args:
        space: of the search.
        gain: the metric of an untrained model under a policy, with its sign turned so that more is better.
    """
    groups = {d.subject for d in space.decisions if d.ends_whole}
    if not groups:
        return frozenset()
    smallest = Shareable(frozenset(groups)).nearest(space.policy({d.name: len(d.choices) - 1 for d in space.decisions}))
    original = gain(Policy())
    most = MOST_DAMAGE * (original - gain(smallest))
    return frozenset(group for group in sorted(groups) if original - gain(Policy({group: 1.0})) <= most)
