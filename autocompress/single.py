"""One given policy, without a search, through the same inner loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress import baselines
from autocompress.config import SearchConfig, validated
from autocompress.errors import AutocompressError
from autocompress.policy import Policy
from autocompress.policy_file import read_policy, resolve_policy
from autocompress.record import Plan, State
from autocompress.result import Choice
from autocompress.run import USER, Run
from autocompress.task import Task, load_task
from autocompress.watch import Watcher

NO_SPACE: dict[str, Any] = {}


def compress(
    task: Task | str | Path,
    policy: Policy | Mapping[str, Any] | str | Path,
    *,
    out: str | Path = "runs/compress",
    resume: bool = False,
    watcher: Watcher | None = None,
    **options: Any,
) -> Choice:
    """Apply one policy: compress, fine-tune, export, measure and score it, beside the original and INT8 after training.

    Args:
        task: a Task, or the path of a file that holds one.
        policy: a Policy, the path of a YAML or JSON file or a template's name (both may hold patterns), or the mapping itself.
        out: the run folder.
        resume: add the policy to the run in `out`, if there is one.
        watcher: told of progress.
        **options: any other field of `SearchConfig` but those of the space.

    Raises:
        UserError: something that was given cannot be used; nothing was changed.
        AutocompressError: a stage failed; the message says which and why.
    """
    config = validated(SearchConfig, {"out": str(out), "space": NO_SPACE, **options})
    task = load_task(task) if isinstance(task, str | Path) else task
    return Single(task, config, watcher or Watcher(), read_policy(policy)).run(resume)


class Single(Run):
    """A run of one policy."""

    def __init__(self, task: Task, config: SearchConfig, watcher: Watcher, policy: Mapping[str, Any]) -> None:
        super().__init__(task, config, watcher)
        self.written = policy

    def run(self, resume: bool) -> Choice:
        """The policy's trial, complete and measured."""
        with self.opened(resume):
            structure, precision = self.bench.structure, self.prepared.fingerprint.float_precision
            self.run_original(baselines.untrained_baselines(structure, precision))
            record = self.run_trial(Plan.of(self.policy), USER)
            if record.state == State.FAILED:
                raise AutocompressError(f"The policy failed in {record.stage}: {record.error}")
            self.finish()
        return Choice(record, self.folder)

    def _refuse_what_cannot_work(self) -> None:
        """A policy for another model."""
        self.policy = resolve_policy(self.written, self.bench.structure)
