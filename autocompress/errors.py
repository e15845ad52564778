"""Every error that autocompress raises on purpose.

AutocompressError
├── UserError            something the user brought is wrong; the CLI ends with exit code 2
│   ├── TaskError        the task file, its model, data, loss or metric
│   ├── ConfigError      the YAML file, an option, a budget
│   ├── PolicyError      a bit-width, ratio or layer name in a policy
│   ├── SpaceError       a preset or search-space file
│   ├── TargetError      the device, its hints
│   ├── ModelError       a model file, or the shapes of its inputs
│   ├── RunFolderError   a run folder that is missing, foreign, changed or damaged
│   └── BundleError      an exported bundle that is missing, damaged, or of another model
├── StageError           one trial failed; it is recorded and the search goes on
│   ├── ConversionError  the model could not be turned into the IR that the policy asks for
│   ├── DivergedError    the loss became NaN or infinite
│   ├── HopelessError    after its first epoch a candidate had learned hardly anything
│   └── WorkerError      the process in which a trial ran has died, or raised an exception of a class that is not known here
├── OutOfTimeError       a time limit passed in the middle of a trial, which a resumed run goes on with
└── DiskFullError        the run folder's disk is full; the search stops with the best so far complete
"""

from __future__ import annotations


class AutocompressError(Exception):
    """Root of the tree."""


class UserError(AutocompressError):
    """Wrong input, said in one line: the rule, the value received, the remedy."""

    def __init__(self, rule: str, received: object = None, remedy: str = "") -> None:
        parts = [rule.rstrip(".")]
        if received is not None:
            parts.append(f"got {received}")
        line = "; ".join(parts) + "."
        super().__init__(f"{line} {remedy}".strip().replace("\n", " "))


class TaskError(UserError):
    """The task cannot be used."""


class ConfigError(UserError):
    """An option or the configuration file cannot be used."""


class PolicyError(UserError):
    """A policy is invalid, or asks for something that this version cannot execute."""


class SpaceError(UserError):
    """A search space is invalid for this model."""


class TargetError(UserError):
    """The target cannot be used."""


class ModelError(UserError):
    """A model file cannot be used."""


class RunFolderError(UserError):
    """A run folder cannot be used for what was asked."""


class BundleError(UserError):
    """A bundle is missing, damaged, or of another model."""


class StageError(AutocompressError):
    """A stage of one trial failed."""


class ConversionError(StageError):
    """The model could not be turned into the IR that the policy asks for."""


class DivergedError(StageError):
    """Fine-tuning ended in a loss that is not a number."""


class HopelessError(StageError):
    """Fine-tuning was ended early, because it led nowhere."""


class WorkerError(StageError):
    """The process in which a trial ran has died, or raised an exception of a class that is not known here."""


class OutOfTimeError(AutocompressError):
    """The time limit of a run passed while something was still at work."""


class DiskFullError(AutocompressError):
    """Nothing more can be written to the run folder."""
