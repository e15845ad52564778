import dataclasses

import pytest
from records import STRUCTURE

from autocompress.policy import LayerPolicy
from autocompress.space import SearchSpace, build_space, load_space_spec, preset_names
from autocompress.strategy.seeds import seeds


def space_of(source: str | dict[str, object]) -> SearchSpace:
    return build_space(load_space_spec(source), STRUCTURE)


def test_the_seeds_of_two_decisions() -> None:
    space = space_of({"channel_step": 4, "pruning": [{"exclude": "layer2.*", "ratios": [0, 0.25, 0.5, 0.75]}]})
    points = [tuple(point[f"prune:{name}"] for name in ("stem", "layer1.conv1")) for point in seeds(space)]
    assert points == [(0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]


@pytest.mark.parametrize("preset", preset_names())
def test_the_seeds_of_a_preset_are_distinct_points_of_its_space(preset: str) -> None:
    space = space_of(preset)
    points = list(seeds(space))
    assert len({space.policy(point).key for point in points}) == len(points)
    assert [space.indices(space.policy(point)) for point in points] == points


def test_the_first_seed_compresses_least_and_the_fourth_most() -> None:
    space = space_of("full")
    policies = [space.policy(point) for point in seeds(space)]
    assert policies[0].is_identity
    assert policies[3].layers == dict.fromkeys(
        ["stem", "layer1.conv1", "layer1.conv2", "layer2.conv1", "head"], LayerPolicy(2, 8, 0.5)
    )


def test_one_branch_at_a_time_goes_whole() -> None:
    groups = tuple(dataclasses.replace(group, removable=group.name != "stem") for group in STRUCTURE.groups)
    structure = dataclasses.replace(STRUCTURE, groups=groups)
    space = build_space(load_space_spec({"channel_step": 4, "pruning": [{"ratios": [0, 0.25, 0.5, 0.75, 1]}]}), structure)
    policies = [space.policy(point).pruning for point in seeds(space)]
    without = [[name for name, ratio in pruning.items() if ratio == 1] for pruning in policies]
    branches = [group.name for group in groups if group.removable]
    assert sorted(filter(None, without)) == sorted([name] for name in branches[:3])


def test_a_space_of_two_policies_has_two_seeds() -> None:
    space = space_of({"precision": [{"layers": "head", "weights": ["float", 8]}]})
    assert list(seeds(space)) == [{"bits:head": 0}, {"bits:head": 1}]


def test_a_space_without_decisions_has_its_only_point_as_seed() -> None:
    assert list(seeds(space_of({"precision": [{"weights": [8]}]}))) == [{}]
