from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.data import MERGED, MERGED_ELEMENTS, Batch, Split, join, map_arrays, merged, rebatched
from autocompress.errors import TaskError

IMAGES = np.arange(20, dtype=np.float32).reshape(10, 2)
CLASSES = np.arange(10)


class Loader:
    """What a DataLoader looks like from outside: batches, again and again, and the data set behind them."""

    def __init__(self, *batches: Any, dataset: Any = None) -> None:
        self.batches = batches
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Samples:
    """A data set: one sample at a time."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return IMAGES[index], index

    def __len__(self) -> int:
        return len(IMAGES)


def loader(size: int) -> Loader:
    starts = range(0, len(IMAGES), size)
    return Loader(*((IMAGES[i : i + size], CLASSES[i : i + size]) for i in starts), dataset=Samples())


def read(split: Split) -> tuple[Any, Any]:
    """All inputs and targets, joined."""
    batches = list(split.numpy())
    return join([batch.inputs for batch in batches]), join([batch.targets for batch in batches])


@pytest.mark.parametrize(
    "source", [(IMAGES, CLASSES), [IMAGES, CLASSES], loader(3), loader(10)], ids=["tuple", "list", "3", "10"]
)
def test_arrays_and_loaders_hold_the_same_samples(source: Any) -> None:
    split = Split("train", source, batch_size=4)
    (images,), classes = read(split)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(classes, CLASSES)
    assert split.length == 10


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_arrays_are_cut_into_batches(size: int) -> None:
    sizes = [batch.size for batch in Split("train", (IMAGES, CLASSES), size).batches()]
    assert sum(sizes) == 10
    assert set(sizes[:-1]) <= {size}


def test_arrays_are_read_in_the_order_that_is_asked_for() -> None:
    batches = list(Split("train", (IMAGES, CLASSES), 2).batches(np.array([7, 1, 4])))
    assert [batch.targets.tolist() for batch in batches] == [[7, 1], [4]]
    np.testing.assert_array_equal(batches[0].inputs[0], IMAGES[[7, 1]])


@pytest.mark.parametrize("count", [2, 3])
def test_a_list_of_batches_is_not_taken_for_inputs_and_targets(count: int) -> None:
    split = Split("train", [(IMAGES[:4], CLASSES[:4])] * count)
    assert [batch.targets.tolist() for batch in split.batches()] == [[0, 1, 2, 3]] * count


@pytest.mark.parametrize("count", [2, 3])
def test_a_list_of_dict_batches_is_not_taken_for_inputs_and_targets(count: int) -> None:
    split = Split("train", [{"pixels": IMAGES[:4], "labels": CLASSES[:4]}] * count)
    assert [sorted(batch.inputs) for batch in split.batches()] == [["pixels"]] * count


def test_the_batches_of_a_list_are_not_counted_as_samples() -> None:
    assert Split("train", [(IMAGES[:4], CLASSES[:4])] * 3).length in (None, 12)


def test_the_inputs_of_arrays_may_be_several_or_named() -> None:
    positional, _ = read(Split("train", ((IMAGES, 2 * IMAGES), CLASSES), 3))
    np.testing.assert_array_equal(positional[1], 2 * IMAGES)
    named, _ = read(Split("train", ({"pixels": IMAGES, "mask": CLASSES}, CLASSES), 3))
    assert list(named) == ["pixels", "mask"]
    np.testing.assert_array_equal(named["mask"], CLASSES)


def test_the_last_of_a_batch_are_the_targets() -> None:
    (batch,) = Split("train", Loader((IMAGES, -IMAGES, CLASSES))).batches()
    assert len(batch.inputs) == 2
    assert batch.targets is CLASSES


def test_a_dict_batch_holds_its_targets_under_the_key() -> None:
    (batch,) = Split("train", Loader({"ids": IMAGES, "y": CLASSES, "mask": IMAGES}), target_key="y").batches()
    assert list(batch.inputs) == ["ids", "mask"]
    assert batch.targets is CLASSES


def test_a_dict_batch_without_the_key_is_answered_with_its_keys() -> None:
    split = Split("train", Loader({"ids": IMAGES, "y": CLASSES}))
    with pytest.raises(TaskError, match=r"under 'labels'; got the keys ids, y.*target_key"):
        next(split.batches())


def test_a_dataloader_of_tensors_is_read_as_numpy() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(IMAGES, requires_grad=True), torch.tensor(CLASSES))
    split = Split("train", torch.utils.data.DataLoader(data, batch_size=3, shuffle=True))
    assert split.length == 10
    assert split.digest() == Split("train", (IMAGES, CLASSES)).digest()


@pytest.mark.parametrize(
    "source",
    [(batch for batch in [(IMAGES, CLASSES)]), iter([(IMAGES, CLASSES)]), map(tuple, [])],
    ids=["generator", "iter", "map"],
)
def test_what_can_be_iterated_only_once_is_refused(source: Any) -> None:
    with pytest.raises(TaskError, match=r"valid data can be iterated again and again.*Pass a DataLoader or arrays"):
        Split("valid", source)


@pytest.mark.parametrize("source", [Samples(), IMAGES, {"x": IMAGES}, "data/"], ids=["dataset", "array", "dict", "path"])
def test_a_data_set_without_a_loader_is_refused(source: Any) -> None:
    with pytest.raises(TaskError, match=r"test data yields batches.*which yields samples.*Wrap it in a DataLoader"):
        Split("test", source)


@pytest.mark.parametrize("source", [3, object(), lambda: None], ids=["number", "object", "function"])
def test_what_is_no_data_at_all_is_refused(source: Any) -> None:
    with pytest.raises(TaskError, match=r"train data is \(inputs, targets\) or yields batches"):
        Split("train", source)


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), 3], ids=["array", "one", "number"])
def test_a_batch_without_targets_is_refused(batch: Any) -> None:
    with pytest.raises(TaskError, match=r"batch of the train data is \(inputs, targets\) or a dict"):
        next(Split("train", Loader(batch)).batches())


def test_empty_arrays_are_refused_at_once() -> None:
    with pytest.raises(TaskError, match="train data holds at least one sample"):
        Split("train", (IMAGES[:0], CLASSES[:0]))


@pytest.mark.parametrize("source", [[], (), Loader()], ids=["list", "tuple", "loader"])
def test_an_empty_loader_is_refused_when_it_is_read(source: Any) -> None:
    with pytest.raises(TaskError, match="train data holds at least one sample"):
        list(Split("train", source).numpy())


def test_inputs_and_targets_have_one_length() -> None:
    with pytest.raises(TaskError, match=r"one length; got \[9, 10\]"):
        Split("train", (IMAGES, CLASSES[:9]))


@pytest.mark.parametrize("source", [(IMAGES, CLASSES), loader(3)], ids=["arrays", "loader"])
@pytest.mark.parametrize(("count", "found"), [(1, 1), (4, 4), (100, 10)])
def test_samples_are_taken_one_by_one(source: Any, count: int, found: int) -> None:
    samples = Split("train", source, 4).take(count)
    assert [sample[0].shape for sample in samples] == [(1, 2)] * found
    np.testing.assert_array_equal(np.concatenate([sample[0] for sample in samples]), IMAGES[:found])


@given(st.permutations(range(10)), st.integers(1, 12))
def test_the_digest_does_not_depend_on_order_or_batches(order: list[int], size: int) -> None:
    shuffled = Split("valid", (IMAGES[order], CLASSES[order]), size)
    assert shuffled.digest() == Split("valid", (IMAGES, CLASSES)).digest()


@given(st.integers(0, 9), st.integers(0, 1))
def test_the_digest_sees_one_changed_input(row: int, column: int) -> None:
    changed = IMAGES.copy()
    changed[row, column] += 1
    assert Split("valid", (changed, CLASSES)).digest() != Split("valid", (IMAGES, CLASSES)).digest()


def test_the_digest_sees_targets_that_are_exchanged_left_out_or_repeated() -> None:
    exchanged = CLASSES.copy()
    exchanged[[0, 1]] = exchanged[[1, 0]]
    twice = [0, 0, *range(1, 10)]
    sources = [(IMAGES, CLASSES), (IMAGES, exchanged), (IMAGES[1:], CLASSES[1:]), (IMAGES[twice], CLASSES[twice])]
    assert len({Split("valid", source).digest() for source in sources}) == 4


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 5))
def test_rebatched_keeps_every_sample_once_and_fills_with_the_last(sizes: list[int], size: int) -> None:
    ends = np.cumsum([0, *sizes])
    batches = [Batch((np.arange(a, b),), None) for a, b in pairwise(ends)]
    parts = list(rebatched(iter(batches), size))
    assert all(len(inputs[0]) == size for inputs, _ in parts)
    assert [i for inputs, real in parts for i in inputs[0][:real]] == list(range(ends[-1]))
    assert all((inputs[0][real:] == inputs[0][real - 1]).all() for inputs, real in parts)


def test_rebatched_keeps_the_names_of_inputs() -> None:
    ((inputs, real),) = rebatched(iter([Batch({"a": IMAGES[:2], "b": CLASSES[:2]}, None)]), 3)
    assert real == 2
    assert inputs["b"].tolist() == [0, 1, 1]


@given(st.lists(st.tuples(st.integers(1, 7), st.sampled_from([3, 5])), min_size=1, max_size=12))
def test_merged_batches_hold_the_same_samples_in_order(shapes: list[tuple[int, int]]) -> None:
    batches = [(np.full((size, length), i),) for i, (size, length) in enumerate(shapes)]
    found = list(merged(iter(batches)))
    assert [list(row) for (part,) in found for row in part] == [list(row) for (part,) in batches for row in part]
    assert len(found) <= len(batches)


def test_small_inputs_are_merged_and_others_stay() -> None:
    small: list[Any] = [{"a": np.zeros((64, 28, 28)), "b": np.zeros(64)}] * 4
    large: list[Any] = [(np.zeros((8, 224, 224, 3)),)] * 2
    assert [len(inputs["b"]) for inputs in merged(small)] == [256]  # type: ignore[call-overload]
    tiny: list[Any] = [(np.zeros((2, 3)),)] * (2 * MERGED + 1)
    assert [len(array) for (array,) in merged(tiny)] == [2 * MERGED, 2 * MERGED, 2]
    half: list[Any] = [(np.zeros((4, MERGED_ELEMENTS // 8)),)] * 2
    more: list[Any] = [*half[:1], (np.zeros((5, MERGED_ELEMENTS // 8)),)]
    assert [[len(array) for (array,) in merged(two)] for two in (half, more)] == [[8], [4, 5]]
    assert [inputs is large[0] for inputs in merged(large)] == [True, True]
    others: list[Any] = [
        ({"a": np.zeros(2)},),
        ({"b": np.zeros(2)},),
        (np.zeros(2), np.zeros(2)),
        (np.zeros(2, int), np.zeros(2)),
    ]
    assert list(merged(others)) == others


def test_nested_inputs_keep_their_form() -> None:
    nested = ({"a": IMAGES}, [CLASSES, CLASSES])
    assert [part.shape for part in map_arrays(nested, lambda a: a[:2])[1]] == [(2,), (2,)]
    assert join([nested, nested])[0]["a"].shape == (20, 2)


class PyDataset:
    """What a Keras PyDataset looks like from outside: batches by index, without an end that iteration would find."""

    def __init__(self, *batches: Any) -> None:
        self.batches, self.passes = batches, 0

    def __getitem__(self, index: int) -> Any:
        return self.batches[index % len(self.batches)]

    def __len__(self) -> int:
        return len(self.batches)

    def on_epoch_end(self) -> None:
        self.passes += 1


class TfDataset(Loader):
    """What a tf.data.Dataset looks like from outside."""

    element_spec = "an element spec"

    def __init__(self, *batches: Any, cardinality: int) -> None:
        super().__init__(*batches)
        self.count = cardinality

    def cardinality(self) -> int:
        return self.count


@pytest.mark.parametrize("kind", ["PyDataset", "TfDataset"])
def test_batches_of_keras_data_may_weigh_their_samples(kind: str) -> None:
    batches = [(IMAGES[:6], CLASSES[:6], CLASSES[:6] / 10), (IMAGES[6:], CLASSES[6:], CLASSES[6:] / 10)]
    split = Split("train", PyDataset(*batches) if kind == "PyDataset" else TfDataset(*batches, cardinality=2))
    read = list(split.numpy())
    assert [len(batch.inputs) for batch in read] == [1, 1]
    np.testing.assert_array_equal(join([batch.targets for batch in read]), CLASSES)
    np.testing.assert_array_equal(join([batch.weights for batch in read]), CLASSES / 10)
    assert split.batch_count == 2


def test_a_py_dataset_is_told_when_a_pass_ends() -> None:
    source = PyDataset((IMAGES, CLASSES))
    split = Split("train", source)
    for _ in range(3):
        assert sum(batch.size for batch in split.batches()) == 10
    assert source.passes == 3


def test_data_without_an_end_are_refused() -> None:
    with pytest.raises(TaskError, match=r"train data ends after one pass; got a TfDataset without an end.*repeat"):
        Split("train", TfDataset((IMAGES, CLASSES), cardinality=-1))


@pytest.mark.parametrize(("size", "count"), [(1, 10), (3, 4), (10, 1), (64, 1)])
def test_batches_are_counted(size: int, count: int) -> None:
    assert Split("train", (IMAGES, CLASSES), size).batch_count == count
    assert Split("train", loader(size)).batch_count == count
    assert Split("train", (IMAGES, CLASSES), size).comes_alone == Split("train", loader(size)).comes_alone == (size == 1)
