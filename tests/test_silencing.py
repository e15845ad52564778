"""The check of `benchmarks/coverage_torch.py` passes a right pruning and sees a wrong one."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from silencing import difference, lost_channels, other_channels, perturbed, silenced_outputs

TOLERANCE = 1e-4


class Net(nn.Module):
    """Two convolutions with a depthwise one between them, and a linear layer whose weight is used without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.second, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.second(self.depthwise(torch.sigmoid(self.norm(self.first(x)))))
        return functional.linear(x.mean((2, 3)), self.head.weight, self.head.bias)


def without(model, inner, readers, last, heads):
    """A copy without these outputs of `first`, inputs of `second`, outputs of `second` and inputs of `head`."""
    model = copy.deepcopy(model)

    def keep(module, name, axis, gone):
        value = getattr(module, name).detach()
        kept = [i for i in range(value.shape[axis]) if i not in gone]
        value = value.index_select(axis, torch.tensor(kept))
        setattr(module, name, nn.Parameter(value) if name in ("weight", "bias") else value)

    for module in (model.first, model.norm, model.depthwise):
        for name in ("weight", "bias"):
            keep(module, name, 0, inner)
    keep(model.norm, "running_mean", 0, inner)
    keep(model.norm, "running_var", 0, inner)
    model.depthwise.groups = model.depthwise.in_channels = model.depthwise.out_channels = 8 - len(inner)
    keep(model.second, "weight", 1, readers)
    for name in ("weight", "bias"):
        keep(model.second, name, 0, last)
    keep(model.head, "weight", 1, heads)
    return model


@pytest.fixture
def net():
    torch.manual_seed(0)
    return perturbed(Net())


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def error(net, pruned, image, lost):
    def run(model):
        return [model(image)]

    return difference(silenced_outputs(pruned, {}, run), silenced_outputs(net, lost, run))


def test_lost_channels_are_read_off_the_weights(net):
    inputs, lost = lost_channels(net, without(net, {1, 4}, {1, 4}, {0}, {0}))
    assert {name: channels.tolist() for name, channels in inputs.items()} == {"depthwise": [1, 4], "second": [1, 4], "head": [0]}
    assert {name: channels.tolist() for name, channels in lost.items()} == {"first": [1, 4], "depthwise": [1, 4], "second": [0]}


def test_a_right_pruning_passes(net, image):
    pruned = without(net, {1, 4}, {1, 4}, {0}, {0})
    assert error(net, pruned, image, lost_channels(net, pruned)[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("readers", "heads"), [({1, 5}, {0}), ({1, 4}, {1})], ids=["a layer that is called", "a weight that is used without a call"]
)
def test_a_wrong_mapping_is_seen(net, image, readers, heads):
    pruned = without(net, {1, 4}, readers, {0}, heads)
    assert error(net, pruned, image, lost_channels(net, pruned)[0]) > 100 * TOLERANCE


def test_zeroing_other_channels_is_seen(net, image):
    pruned = without(net, {1, 4}, {1, 4}, {0}, {0})
    others = other_channels(net, lost_channels(net, pruned)[0])
    assert error(net, pruned, image, others) > 100 * TOLERANCE


def test_weights_that_are_not_the_originals_are_refused(net):
    pruned = without(net, {1, 4}, {1, 4}, {0}, {0})
    pruned.second.weight.data *= 2
    with pytest.raises(ValueError, match="second: the pruned weights are not the original's"):
        lost_channels(net, pruned)
