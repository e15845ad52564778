"""The truth about the target, as functions: what it can do, why a model is not faster, how models compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autocompress.capabilities import Capabilities
from autocompress.device import Target
from autocompress.target.compare import Compared, compare
from autocompress.target.explain import Explanation
from autocompress.target.explain import explain as explain_model
from autocompress.target.load import load_model
from autocompress.target.meter import HALF_WIDTH
from autocompress.target.probe import capabilities

Progress = Callable[[float, str], None]


def probe(target: Target | None = None, *, refresh: bool = False, progress: Progress | None = None) -> Capabilities:
    """Find out which choices are real on a target. Takes less than a minute, once for a machine.

    Args:
        target: by default the CPU with one thread.
        refresh: probe again, even if the target is known.
        progress: called with the finished fraction and what is being probed.

    Raises:
        TargetError: the device does not exist or does not do what a hint asks.
    """
    return capabilities(target or Target(), refresh=refresh, progress=progress or (lambda fraction, words: None))


def explain(path: str | Path, target: Target | None = None, *, progress: Progress | None = None) -> Explanation:
    """Say what ran in which precision, where the time goes, and why a model is not faster.

    Args:
        path: an IR, an ONNX file, or the folder of a bundle.
        target: where it runs; it is probed first, if it never was.
        progress: of the probing.

    Raises:
        ModelError, TargetError: the model or the target cannot be used.
    """
    where = target or Target()
    model = load_model(path, where)
    return explain_model(model, where, probe(where, progress=progress))


def bench(models: Sequence[str | Path], target: Target | None = None, half_width: float = HALF_WIDTH) -> list[Compared]:
    """Compare models side by side; see `Compared`.

    Args:
        models: IR or ONNX files or bundles. The first is what the others are compared with.
        target: where they run.
        half_width: relative precision of the ratios that is asked for.

    Raises:
        ConfigError, ModelError, TargetError: no model, or one or the target cannot be used.
    """
    return compare(models, target or Target(), half_width)
