"""One YAML file defines a run. Everything that the command line says can stand in it; the command line wins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autocompress.budget import Budget, Drop, parse_duration, parse_size
from autocompress.device import Fingerprint, Target
from autocompress.errors import ConfigError

Objective = Literal["accuracy", "latency", "throughput", "size", "compressed_size"]
Sampler = Literal["autocompress", "mutation", "tpe", "nsga2", "random"]
Criterion = Literal["l1", "l2", "geometric_median", "bn_scale", "lamp", "taylor", "hessian", "random"]
Storage = Literal["compact", "fast"]

WORKFLOW_DROP = "1%"
"""The accuracy that a workflow may lose where nothing else is said, relative to the original's."""


def _trade_off(value: list[str]) -> list[str]:
    speeds = {"latency", "throughput"}
    if value[:1] != ["accuracy"] or not speeds & set(value[1:2]) or speeds & set(value[2:]) or len(set(value)) != len(value):
        raise ValueError("objectives start with accuracy, latency (or throughput); size or compressed_size may follow, each once")
    return value


Objectives = Annotated[list[Objective], AfterValidator(_trade_off)]
ModelType = TypeVar("ModelType", bound=BaseModel)


class FineTuning(BaseModel):
    """How candidates are fine-tuned.

    Attributes:
        epochs, learning_rate, distillation: override the task's own; None leaves them.
        feature_distillation: weight of the distance between a candidate's attention maps and the original's, beside the loss.
        binarization: weights of 1 bit have one scale per output channel ("xnor", XNOR-Net) or per layer ("dorefa", DoReFa-Net).
        arithmetic: "fastest" times a few steps in float32 and in bfloat16, and on a GPU with channels last, and takes float32
            where no other is clearly faster. Trainings of less than 100 steps stay in float32.
        pruning_schedule: "one_shot" removes the channels before the training; "linear" and "exponential" let them fall silent one
            after the other in the first third of the epochs (of two epochs and more), and remove them then.
        stop_hopeless: end a candidate that after its first epoch is hardly better than a model that ignores its input.
        mode: of a search. "each" tunes every candidate by itself; "shared" trains once for all, and candidates inherit the
            weights; "auto" shares where that pays and is found not to cost accuracy, and says what was decided and why.
        inherit_epochs: of a candidate's own training after it has inherited.
        final_epochs: of the models of the front, once all candidates are tried. None: the same as `epochs` for models that
            inherit, and up to ten times as many where a time limit leaves time for it: what will be delivered first, then
            what is foretold to gain most. 0: none.
    """

    model_config = ConfigDict(extra="forbid")

    epochs: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    distillation: float | None = Field(None, ge=0, le=1)
    feature_distillation: float = Field(0.0, ge=0)
    binarization: Literal["xnor", "dorefa"] = "xnor"
    arithmetic: Literal["f32", "fastest"] = "f32"
    stop_hopeless: bool = False
    pruning_schedule: Literal["one_shot", "linear", "exponential"] = "one_shot"
    mode: Literal["auto", "shared", "each"] = "auto"
    inherit_epochs: int = Field(0, ge=0)
    final_epochs: int | None = Field(None, ge=0)


class CompressionConfig(BaseModel):
    """How one policy is applied and measured: what a search and a single `compress` have in common.

    Attributes:
        target: where the model will run.
        fine_tuning: overrides of the task's settings.
        criterion: how the channels of a group are ranked.
        storage: "compact" stores 2-, 3- and 4-bit weights in 2 or 4 bits where the layer keeps its integer kernel, "fast" in 8.
        calibration_samples: samples from which INT8 ranges are taken.
        seed: of shuffling and sampling.
    """

    model_config = ConfigDict(extra="forbid")

    target: Target = Target()
    fine_tuning: FineTuning = FineTuning()
    criterion: Criterion = "l2"
    storage: Storage = "compact"
    calibration_samples: int = Field(300, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)


class Recorded(BaseModel):
    """What a run adds to its own config.yaml. Ignored when the file is read again."""

    metric: str
    direction: str
    fingerprint: Fingerprint
    versions: dict[str, str]


class SearchConfig(CompressionConfig):
    """A whole search.

    Attributes:
        task: `path/to/task.py` or `path/to/task.py:name`.
        out: the run folder.
        space: a preset's name, a YAML file, or the mapping itself.
        budget: latency budget, for example 0.25ms, 50%, "70% of int8". None: no budget.
        max_accuracy_drop: models that lose more are not chosen as best; 0.01 is absolute, "1%" relative. None: no limit.
        max_size: of the deployed model, for example 80kB or 1.5MB; larger ones are not chosen as best. None: no limit.
        strategy: "search" lets a sampler propose candidates; "workflow" takes the steps that are recommended for OpenVINO, INT8
            after training, INT8 fine-tuned, pruning and INT8 fine-tuned, each only if the one before misses the allowed accuracy
            drop (1 % where none is given) or the budget.
        sampler: who proposes candidates in a search. "autocompress" knows what a policy costs before it is tried, and learns what
            accuracy it will have; "mutation" changes members of the front; "tpe", "nsga2" and "random" are Optuna's own.
        start_from: policy files, templates, or folders of runs whose fronts are tried first.
        objectives: what the front trades off. None: what the space recommends.
        max_trials: candidates to score. Over-budget ones end after a second or two and are not counted.
        max_time: when to stop, the final measurement included.
        keep: which trials keep their models on disk.
        keep_inert: search also what buys nothing on the target according to the probe.
        gate_slack: an untrained candidate may exceed the budget by this fraction before it is given up.
        isolate: make and train the candidates of a Keras model in a worker process that is replaced now and then, since a process
            grows with every model. The worker loads the task from its file. PyTorch models do not need it.
    """

    task: str | None = None
    out: str = "runs/search"
    max_size: str | int | None = None
    strategy: Literal["search", "workflow"] = "search"
    sampler: Sampler = "autocompress"
    start_from: list[str] = []
    space: str | dict[str, Any] = "int8-prune"
    budget: str | None = None
    max_accuracy_drop: str | float | None = None
    objectives: Objectives | None = None
    max_trials: int | None = Field(None, ge=1)
    max_time: str | None = None
    keep: Literal["front", "all"] = "front"
    keep_inert: bool = False
    gate_slack: float = Field(0.1, ge=0)
    isolate: bool = True
    recorded: Recorded | None = None

    @field_validator("budget", "max_time", "max_accuracy_drop", "max_size", mode="before")
    @classmethod
    def _parses(cls, value: Any, info: Any) -> Any:
        if value is not None:
            parsers: dict[str, Any] = {"max_time": parse_duration, "max_accuracy_drop": Drop.parse, "max_size": parse_size}
            parsers.get(info.field_name, lambda text: Budget.parse(str(text)))(value)
        return str(value) if info.field_name != "max_accuracy_drop" and value is not None else value

    @model_validator(mode="after")
    def _throughput_needs_full_load(self) -> Self:
        """Throughput is measured as the time per request at full load, which is what the target's hint asks for."""
        if "throughput" in (self.objectives or []) and not self.target.is_for_throughput:
            self.target = self.target.model_copy(update={"performance_hint": "THROUGHPUT"})
        return self

    @model_validator(mode="after")
    def _workflow_needs_a_drop(self) -> Self:
        """Without an allowed drop no step of a workflow could miss it."""
        if self.strategy == "workflow" and self.max_accuracy_drop is None:
            self.max_accuracy_drop = WORKFLOW_DROP
        return self

    @property
    def latency_budget(self) -> Budget | None:
        """The budget, parsed."""
        return Budget.parse(self.budget) if self.budget else None

    @property
    def accuracy_drop(self) -> Drop | None:
        """The allowed drop, parsed."""
        return None if self.max_accuracy_drop is None else Drop.parse(self.max_accuracy_drop)

    @property
    def max_bytes(self) -> int | None:
        """The largest size, in bytes."""
        return None if self.max_size is None else parse_size(self.max_size)

    @property
    def time_limit_s(self) -> float | None:
        """Seconds that the search may take."""
        return parse_duration(self.max_time) if self.max_time else None

    def to_yaml(self) -> str:
        """The resolved configuration."""
        return str(yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True))


def load_config(path: Path | None, overrides: dict[str, Any]) -> SearchConfig:
    """The configuration of a YAML file with the command line's values (those that are not None) on top.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is out of range.
    """
    data = read_yaml_mapping(path, "configuration") if path else {}
    for dotted, value in overrides.items():
        if value is None:
            continue
        place = data
        *parents, last = dotted.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"'{parent}' of the configuration is a mapping", repr(place))
        place[last] = value
    return validated(SearchConfig, data)


def validated(model: type[ModelType], data: dict[str, Any]) -> ModelType:
    """`model` built from `data`, with pydantic's complaint as one clear line.

    Raises:
        ConfigError: a key is unknown or a value is out of range.
    """
    try:
        return model.model_validate(data)
    except ConfigError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"Unknown key '{place}'", None, f"Known keys: {', '.join(_known_keys(model, first['loc']))}."
            ) from error
        raise ConfigError(f"{place}: {first['msg'].removeprefix('Value error, ')}", repr(first["input"])) from error


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the mapping that holds the place of an error."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)


def read_yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that holds a mapping, read safely.

    Raises:
        ConfigError: it is missing, not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"A {what} file can be read", f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"A {what} file is YAML", f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"A {what} file is a mapping of keys", f"{path} with a {type(data).__name__}")
    return data
