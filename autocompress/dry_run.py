"""What a search would do and how long it would take, estimated from one candidate that is not fine-tuned."""

from __future__ import annotations

import contextlib
import time

from autocompress import baselines
from autocompress.config import SearchConfig
from autocompress.frameworks.base import Candidate
from autocompress.setup import Prepared, prepare
from autocompress.task import Task
from autocompress.timed_run import trial_limit
from autocompress.trial import Workbench
from autocompress.workflow import STEPS

PROBE_FRACTION = 0.1
"""Part of an epoch's steps that is run to time them."""


class _Enough(Exception):  # noqa: N818 — not an error
    """Raised from the progress callback to end the timing run."""


def dry_run(task: Task, config: SearchConfig) -> str:
    """A description for people. Every time in it is an estimate.

    Raises:
        UserError: what a search would refuse.
    """
    prepared = prepare(task, config)
    with contextlib.closing(prepared.bench.framework):
        return _estimated(prepared, config)


def _estimated(prepared: Prepared, config: SearchConfig) -> str:
    bench, space = prepared.bench, prepared.space
    budget_ms = prepared.budget_ms(config)
    prepared.require_reachable(config)
    start = time.perf_counter()
    middle = bench.candidate(space.policy(space.level(0.5)))
    bench.untrained_latency(middle)
    fixed = 2 * (time.perf_counter() - start)
    settings = bench.tune_settings
    per_epoch = 0.0 if bench.task.fine_tune else _epoch_seconds(bench, middle, settings.epochs)
    per_trial = fixed + settings.epochs * per_epoch
    is_workflow = config.strategy == "workflow"
    uniform = 0 if is_workflow else len(baselines.uniform_baselines(bench.structure, space.steps))
    before = uniform * per_trial + 3 * fixed
    structure, fingerprint = bench.structure, prepared.fingerprint
    rest = f"{settings.epochs} epochs of {per_epoch:.1f} s, {fixed:.0f} s for the rest"
    lines = [
        f"Model: {len(structure.layers)} layers, {len(structure.groups)} prunable groups, {len(structure.frozen)} frozen",
        f"Space: {len(space.decisions)} decisions, {float(space.size):.3g} policies",
        *(f"  {d.name}: {', '.join(_choice(c) for c in d.choices)}" for d in space.decisions),
        *(f"  {note}" for note in space.notes),
        f"Objectives: {', '.join(config.objectives or space.spec.objectives)}",
        prepared.landmarks.in_words(fingerprint.float_precision),
        f"Budget: {'none' if budget_ms is None else f'{budget_ms:.4g} ms'}",
        f"Estimated: {per_trial:.0f} s a candidate ({rest}), {before:.0f} s for the baselines",
    ]
    if config.time_limit_s is not None:
        fit = max(0, int((config.time_limit_s - before) / per_trial))
        lines.append(f"Estimated: {fit} candidates fit into {config.max_time}, half of them where the front is trained again")
    trials = trial_limit(config)
    if is_workflow:
        lines.append(f"Estimated: a workflow fine-tunes at most {STEPS} candidates, {STEPS * per_trial / 60:.1f} minutes")
    elif trials is not None:
        lines.append(f"Estimated: {trials} candidates take {(before + trials * per_trial) / 60:.0f} minutes")
    if bench.task.fine_tune is not None:
        lines.append("The task's own fine_tune is not part of these times")
    return "\n".join(lines)


def _epoch_seconds(bench: Workbench, candidate: Candidate, epochs: int) -> float:
    """Seconds of an epoch, from the first steps of a fine-tuning that is then thrown away."""
    marks: list[tuple[float, float]] = []

    def watch(fraction: float) -> None:
        marks.append((fraction, time.perf_counter()))
        if fraction >= PROBE_FRACTION / epochs and len(marks) > 1:
            raise _Enough

    start = (0.0, time.perf_counter())
    with contextlib.suppress(_Enough):
        bench.framework.fine_tune(bench.task, candidate, bench.tune_settings, watch)
    first = marks[0] if len(marks) > 1 else start  # the first step warms up
    if marks[-1][0] == first[0]:  # training is a single step
        first = start
    return (marks[-1][1] - first[1]) / (marks[-1][0] - first[0]) / epochs


def _choice(choice: object) -> str:
    return "/".join(map(str, choice)) if isinstance(choice, tuple) else f"{choice:g}"
