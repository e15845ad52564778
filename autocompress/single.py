"""One policy without a search, through the same inner loop: a given one, or one that meets a target in one go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress import baselines
from autocompress.budget import parse_share
from autocompress.config import SearchConfig, validated
from autocompress.errors import AutocompressError, ConfigError
from autocompress.global_mode import GlobalMode
from autocompress.policy import Policy
from autocompress.policy_file import read_policy, resolve_policy
from autocompress.record import Plan, State
from autocompress.result import Choice
from autocompress.run import USER, Run
from autocompress.task import Task, load_task
from autocompress.watch import Watcher

NO_SPACE: dict[str, Any] = {}
MOST_PRUNED = 0.9
"""The largest ratio of a group: with fewer channels than a tenth hardly anything gets through."""
GLOBAL_SPACE: dict[str, Any] = {"pruning": [{"ratios": [0, MOST_PRUNED, 1]}]}
"""Which groups are pruned to meet a target, and how far at most; residual branches may go whole."""


def compress(
    task: Task | str | Path,
    policy: Policy | Mapping[str, Any] | str | Path | None = None,
    *,
    macs: str | None = None,
    latency: str | None = None,
    int8: bool = True,
    out: str | Path = "runs/compress",
    resume: bool = False,
    watcher: Watcher | None = None,
    **options: Any,
) -> Choice:
    """Apply one policy: compress, fine-tune, export, measure and score it, beside the original and INT8 after training.

    Args:
        task: a Task, or the path of a file that holds one.
        policy: a Policy, the path of a YAML or JSON file or a template's name (both may hold patterns), or the mapping itself.
            Instead of it a target may be given: then the least important channels of all groups go, per unit of what they save,
            until the target is met.
        macs: the share of the original's multiply-accumulates that may be left, for example "50%".
        latency: a latency budget, for example "0.25ms", "50%" (of the original) or "70% of int8". Untrained candidates are
            measured until one is within it.
        int8: with a target: quantize every layer as well.
        out: the run folder.
        resume: add the policy to the run in `out`, if there is one.
        watcher: told of progress.
        **options: any other field of `SearchConfig` but those of the space.

    Raises:
        UserError: something that was given cannot be used; nothing was changed.
        AutocompressError: a stage failed; the message says which and why.
    """
    if sum(given is not None for given in (policy, macs, latency)) != 1:
        raise ConfigError("Either a policy, or a MACs target, or a latency target is given", "none or several of them")
    space = NO_SPACE if policy is not None else GLOBAL_SPACE | ({"precision": [{"weights": [8]}]} if int8 else {})
    budget = {} if latency is None else {"budget": latency}
    config = validated(SearchConfig, {"out": str(out), **options, "space": space, **budget})
    share = None if macs is None else parse_share(macs)
    task = load_task(task) if isinstance(task, str | Path) else task
    run: Single
    if policy is None:
        run = InOneGo(task, config, watcher or Watcher(), share)
    else:
        run = Given(task, config, watcher or Watcher(), read_policy(policy))
    return run.run(resume)


class Single(Run):
    """A run of one policy."""

    def run(self, resume: bool) -> Choice:
        """The policy's trial, complete and measured."""
        with self.opened(resume):
            structure, precision = self.bench.structure, self.prepared.fingerprint.float_precision
            self.run_original(baselines.untrained_baselines(structure, precision))
            record = self.run_trial(Plan.of(self._policy()), USER)
            if record.state == State.FAILED:
                raise AutocompressError(f"The policy failed in {record.stage}: {record.error}")
            self.finish()
        return Choice(record, self.folder)

    def _policy(self) -> Policy:
        raise NotImplementedError


class Given(Single):
    """A policy that a user wrote."""

    def __init__(self, task: Task, config: SearchConfig, watcher: Watcher, policy: Mapping[str, Any]) -> None:
        super().__init__(task, config, watcher)
        self.written = policy

    def _policy(self) -> Policy:
        return self.policy

    def _refuse_what_cannot_work(self) -> None:
        """A policy for another model."""
        self.policy = resolve_policy(self.written, self.bench.structure)


class InOneGo(Single):
    """The policy that leaves a share of the multiply-accumulates, or, without one, keeps the latency budget."""

    def __init__(self, task: Task, config: SearchConfig, watcher: Watcher, share: float | None) -> None:
        super().__init__(task, config, watcher)
        self.share = share

    def _policy(self) -> Policy:
        if self.share is not None:
            return self.for_macs
        assert self.budget_ms is not None  # the target was given as the budget
        return self.mode.for_latency(self.budget_ms, self.folder)

    def _refuse_what_cannot_work(self) -> None:
        """A target that cannot be reached."""
        self.prepared.require_reachable(self.config)
        self.mode = GlobalMode(self.bench, self.space, self.prepared.fingerprint, self.watcher)
        if self.share is not None:
            self.for_macs = self.mode.for_macs(self.share)
