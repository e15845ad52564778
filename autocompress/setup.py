"""What happens before the first trial: look at the model, the space and the target, and refuse what cannot work.

Nothing is written here, so whatever is wrong leaves an existing run untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from autocompress.capabilities import Capabilities
from autocompress.config import SearchConfig
from autocompress.device import Fingerprint
from autocompress.errors import ConfigError, RunFolderError, StageError, TaskError
from autocompress.frameworks.base import Framework, framework_of
from autocompress.policy import Policy
from autocompress.record import Plan
from autocompress.space import SearchSpace, SpaceSpec, build_space, load_space_spec, uniform_policy
from autocompress.target.meter import measure
from autocompress.target.probe import capabilities, probed_before
from autocompress.target.runtime import fingerprint
from autocompress.target.yardstick import yardstick
from autocompress.task import Task
from autocompress.trial import Workbench, tune_settings
from autocompress.watch import Watcher

SAME_IN_A_RUN = ("criterion", "storage", "calibration_samples")
"""Settings that a trial's result depends on; with `Identity` the definition of "the same run"."""
PROBING_SECONDS, PROBING_SHARE = 45.0, 0.25
"""What the first probe of a target takes, roughly, and the share of the time that is left that it may take."""
BUDGET_SLACK = 0.97
"""A budget is refused only if it is below this fraction of the fastest candidate: that one is measured with noise."""


@dataclass(frozen=True)
class Landmarks:
    """Latencies that are known before any training, in milliseconds, and the yardstick's relative to the original's."""

    original_ms: float
    int8_ms: float
    fastest_ms: float
    yardstick_ratio: float

    def in_words(self, default_precision: str) -> str:
        """A line for people."""
        return (
            f"Latency: original {self.original_ms:.4g} ms ({default_precision}), INT8 after training {self.int8_ms:.4g} ms, "
            f"fastest candidate {self.fastest_ms:.4g} ms"
        )


@dataclass
class Prepared:
    """A search that could begin.

    Attributes:
        capabilities: what the probe found; None where nothing asked for it.
        identity: what makes a run the same run, by name; compared on resume.
    """

    bench: Workbench
    space: SearchSpace
    fingerprint: Fingerprint
    capabilities: Capabilities | None
    identity: dict[str, Any]
    landmarks: Landmarks

    def budget_ms(self, config: SearchConfig) -> float | None:
        """The budget in milliseconds."""
        if config.latency_budget is None:
            return None
        return config.latency_budget.resolve_ms(self.landmarks.original_ms, self.landmarks.int8_ms)

    def require_reachable(self, config: SearchConfig) -> None:
        """Refuse a budget that no candidate of the space can keep.

        Raises:
            ConfigError: the budget is below the latency of the fastest candidate.
        """
        marks, budget_ms = self.landmarks, self.budget_ms(config)
        if budget_ms is not None and math.isfinite(marks.fastest_ms) and budget_ms < marks.fastest_ms * BUDGET_SLACK:
            raise ConfigError(
                "A budget is at least what the fastest candidate of the space takes",
                f"{config.budget} = {budget_ms:.4g} ms",
                f"The fastest takes {marks.fastest_ms:.4g} ms, {marks.fastest_ms / marks.original_ms:.1%} of the original and "
                f"{marks.fastest_ms / marks.int8_ms:.0%} of int8. Raise the budget or widen the space.",
            )


def open_bench(
    task: Task, config: SearchConfig, say: Callable[[str], None], known: Mapping[str, Any] | None = None
) -> tuple[Workbench, Fingerprint, dict[str, Any]]:
    """The workbench for a task, the target's fingerprint and the run's identity. Its framework is to be closed.

    Args:
        task: what is compressed.
        config: how.
        say: told what is worth a line.
        known: the run.json of the run that is resumed.

    Raises:
        TaskError: the model does not run, or a split is empty.
        TargetError: the device does not exist or refuses a hint.
        RunFolderError: the known run is another one; the message says in what.
    """
    framework = framework_of(task.model)
    found = fingerprint(config.target)
    identity = {
        "model": framework.digest(task),
        **{f"{name} data": task.splits[name].digest() for name in ("valid", "test") if name in task.splits},
        **{f"{name} data": task.splits[name].digest() for name in ("train", "calibration") if _is_fixed(task, name)},
        "train samples": task.splits["train"].length,
        "batch size": task.batch_size,
        "metric": f"{task.scorer.name} ({task.scorer.direction})",
        **{name: config.model_dump(mode="json")[name] for name in SAME_IN_A_RUN},
        "fine-tuning": tuning_identity(task, config),
    }
    if known:
        require_same(known["identity"], identity)
        changed = found.differences(Fingerprint.model_validate(known["fingerprint"]))
        if changed:
            raise _another_run([f"target ({change})" for change in changed])
    try:
        structure = framework.inspect(task)
    except TaskError:
        raise
    except Exception as error:  # the user's model runs here for the first time
        raise TaskError("The model runs on a batch of the train data", f"{type(error).__name__}: {error}") from error
    if not config.target.dynamic:
        _require_alike(task)
    if not structure.layers:
        raise TaskError("The model has at least one convolution or linear layer", "none")
    if config.isolate:
        framework = framework.isolated(task, say)
    with closed_on_failure(framework):
        try:
            return Workbench(task, framework, structure, config, known["reference_ms"] if known else 0.0), found, identity
        except StageError as error:
            raise TaskError("The model can be converted to OpenVINO", str(error)) from error


def _require_alike(task: Task) -> None:
    """Check that all data can be given to a model that is deployed for the shapes of the train data, some perhaps by names."""
    shapes = task.splits["train"].input_shapes
    for name, split in task.splits.items():
        found = split.input_shapes
        if found != shapes and (found.keys() == shapes.keys() or sorted(found.values()) != sorted(shapes.values())):
            remedy = "Give all data the same inputs, or say target.dynamic."
            raise TaskError(f"The {name} data have the shapes of the train data, {shapes}", found, remedy)


@contextmanager
def closed_on_failure(framework: Framework) -> Iterator[None]:
    """Close the framework if what follows raises."""
    try:
        yield
    except BaseException:
        framework.close()
        raise


def prepare(
    task: Task,
    config: SearchConfig,
    known: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
    seconds: float | None = None,
) -> Prepared:
    """Everything a search needs to know before its first trial. The workbench's framework is to be closed.

    A run is resumed with what was probed when it began, so that its space stays what it was.

    Args:
        task: what is compressed.
        config: how.
        known: the run.json of the run that is resumed.
        watcher: told of progress.
        seconds: that the search has; None without a limit. A target is not probed for the first time where they are few.

    Raises:
        SpaceError: the space does not fit the model.
        And what `open_bench` raises.
    """
    spec, watcher = load_space_spec(config.space), watcher or Watcher()
    bench, found, identity = open_bench(task, config, watcher.say, known)
    with closed_on_failure(bench.framework):
        asks = spec.has_choices and not config.keep_inert
        can = _capabilities(config, known, watcher, seconds) if asks else None
        space = build_space(spec, bench.structure, can, config.objectives)
        identity["space"] = space_identity(spec)
        if known:
            require_same(known["identity"], identity)
        failed: list[str] = []
        try:
            landmarks = Landmarks(**known["landmarks"]) if known else _landmarks(bench, space, failed)
        except StageError as error:
            raise TaskError("The model can be converted and quantized", str(error)) from error
        return Prepared(bench, replace(space, notes=(*space.notes, *failed)), found, can, identity, landmarks)


def open_space(task: Task, config: SearchConfig, watcher: Watcher) -> tuple[Workbench, SearchSpace, Fingerprint]:
    """The workbench, the space and the target's fingerprint, for a look without a run. The framework is to be closed.

    Raises:
        SpaceError: the space does not fit the model.
        And what `open_bench` raises.
    """
    spec = load_space_spec(config.space)
    bench, found, _ = open_bench(task, config, watcher.say)
    with closed_on_failure(bench.framework):
        can = None if config.keep_inert or not spec.has_choices else _capabilities(config, None, watcher, None)
        return bench, build_space(spec, bench.structure, can, config.objectives), found


def _capabilities(
    config: SearchConfig, known: Mapping[str, Any] | None, watcher: Watcher, seconds: float | None
) -> Capabilities | None:
    if known and "capabilities" in known:
        return Capabilities.model_validate(known["capabilities"]) if known["capabilities"] else None
    if seconds is not None and PROBING_SHARE * seconds < PROBING_SECONDS and probed_before(config.target) is None:
        watcher.say(
            f"Skipped for lack of time: probing the target (about {PROBING_SECONDS:.0f} s). "
            "So channels go in steps of 8, and choices that buy nothing here are searched too"
        )
        return None

    def tell(fraction: float, words: str) -> None:
        if not fraction:
            watcher.say("Probing the target: less than a minute, once for this machine")
        watcher.progress(fraction)

    return capabilities(config.target, progress=tell)


def _is_fixed(task: Task, name: str) -> bool:
    """True for whole arrays; a loader may draw its samples anew each time, so only its length is compared."""
    return name in task.splits and task.splits[name].is_arrays


def tuning_identity(task: Task, config: SearchConfig) -> dict[str, Any]:
    """How candidates are trained. A deadline is that of one training alone."""
    settings = asdict(tune_settings(task, config))
    del settings["deadline"]
    return settings | config.fine_tuning.model_dump(include={"mode", "inherit_epochs"})


def space_identity(spec: SpaceSpec) -> dict[str, Any]:
    """What of a space changes the candidates; its description and recommended objectives do not."""
    return spec.model_dump(mode="json", exclude={"description", "objectives"})


def require_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what both identities name.

    Raises:
        RunFolderError: they differ; the message says in what.
    """
    changed = [_difference(name, before[name], now[name]) for name in now if name in before and before[name] != now[name]]
    changed += [
        f"{name} ({'there before, gone now' if name in before else 'new'})" for name in _data_names(before) ^ _data_names(now)
    ]
    if changed:
        raise _another_run(changed)


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(key for key in {**before, **now} if before.get(key) != now.get(key))
        return f"{name} (in {', '.join(keys)})"
    return f"{name} ({before} before, {now} now)"


def _data_names(identity: Mapping[str, Any]) -> set[str]:
    return {name for name in identity if name.endswith(" data")}


def _another_run(changed: list[str]) -> RunFolderError:
    return RunFolderError(
        "A resumed run has the same model, data, space, settings and target",
        f"another {'; another '.join(changed)}",
        "Choose another --out for a new run; trials, time, budget, objectives and allowed drop may change.",
    )


def _landmarks(bench: Workbench, space: SearchSpace, failed: list[str]) -> Landmarks:
    """Measured on untrained candidates: INT8 without pruning, and the most compressed points of the space.

    What could not be built is added to `failed`, in words.
    """
    int8 = bench.untrained_latency(bench.candidate(uniform_policy(bench.structure)), half_width=0.01).ms
    whole = {d.name: len(d.choices) - 1 for d in space.decisions if d.ends_whole}
    policies = [space.policy(point) for point in (space.level(1.0) | whole, space.level(1.0), space.level(2 / 3))]
    points = {Plan.of(policy).key: policy for policy in policies}
    fastest = min((_latency_ms(bench, policy, failed) for policy in points.values()), default=float("inf"))
    stick = measure([yardstick(bench.target)], bench.reference, bench.reference_ms)[0]
    return Landmarks(bench.reference_ms, int8, min(fastest, int8) if _holds_int8(bench, space) else fastest, stick.ratio)


def _holds_int8(bench: Workbench, space: SearchSpace) -> bool:
    return space.indices(uniform_policy(bench.structure)) is not None


def _latency_ms(bench: Workbench, policy: Policy, failed: list[str]) -> float:
    """Infinite for a candidate that cannot be built: its trial will be recorded as failed, and the search goes on."""
    try:
        return bench.untrained_latency(bench.candidate(policy)).ms
    except Exception as error:  # pruning and conversion of user models fail in any way
        failed.append(f"one of the most compressed candidates cannot be built: {type(error).__name__}: {error}")
        return float("inf")
