from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import autocompress as ac
from autocompress.config import CompressionConfig, FineTuning, Recorded, load_config, validated
from autocompress.device import Fingerprint
from autocompress.errors import ConfigError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RECORDED = Recorded(
    metric="accuracy",
    direction="maximize",
    fingerprint=Fingerprint(
        device_name="Some CPU", capabilities=("FP32", "INT8"), default_precision="bf16", openvino="2026.4", target=ac.Target()
    ),
    versions={"numpy": "2.3"},
)
EVERYTHING: dict[str, Any] = {
    "task": "tâsk.py:small",
    "out": "runs/mine",
    "max_size": "80kB",
    "strategy": "workflow",
    "sampler": "nsga2",
    "start_from": ["runs/before"],
    "space": "mixed-precision",
    "budget": "70% of int8",
    "max_accuracy_drop": 0.01,
    "objectives": ["accuracy", "latency", "compressed_size"],
    "max_trials": 12,
    "max_time": "8m",
    "keep_inert": True,
    "keep": "all",
    "gate_slack": 0.2,
    "isolate": False,
    "target": {
        "device": "GPU",
        "threads": 2,
        "batch": 4,
        "precision": "f32",
        "performance_hint": "LATENCY",
        "streams": 1,
        "pinning": True,
        "shapes": {"image": (1, 3, 8, 8)},
        "dynamic": True,
    },
    "fine_tuning": {
        "mode": "shared",
        "epochs": 2,
        "inherit_epochs": 1,
        "final_epochs": 4,
        "learning_rate": 1e-3,
        "distillation": 0.5,
        "feature_distillation": 10.0,
        "binarization": "dorefa",
        "arithmetic": "fastest",
        "stop_hopeless": True,
        "pruning_schedule": "linear",
    },
    "criterion": "l1",
    "storage": "fast",
    "calibration_samples": 32,
    "seed": 7,
}


def write(folder: Path, data: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_every_key_of_the_file_arrives(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, EVERYTHING), {})
    assert config.model_dump(exclude={"recorded"}) == EVERYTHING
    assert set(EVERYTHING) | {"recorded"} == set(ac.SearchConfig.model_fields)
    assert set(EVERYTHING["target"]) == set(ac.Target.model_fields)
    assert set(EVERYTHING["fine_tuning"]) == set(FineTuning.model_fields)


def test_the_parsed_forms_of_what_was_written(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, EVERYTHING), {})
    assert config.latency_budget is not None
    assert config.latency_budget.resolve_ms(10, 4) == pytest.approx(2.8)
    assert config.accuracy_drop is not None
    assert config.accuracy_drop.value == 0.01
    assert config.time_limit_s == 480
    assert config.max_bytes == 80_000


def test_without_a_file_there_are_no_limits() -> None:
    config = load_config(None, {})
    assert (config.latency_budget, config.accuracy_drop, config.time_limit_s) == (None, None, None)


def test_a_drop_of_zero_is_a_limit() -> None:
    drop = load_config(None, {"max_accuracy_drop": 0}).accuracy_drop
    assert drop is not None
    assert drop.value == 0


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_every_shipped_configuration_can_be_read(path: Path) -> None:
    assert load_config(path, {}).task is not None


def test_the_demo_has_a_configuration() -> None:
    assert (EXPERIMENTS / "mnist_resnet8" / "config.yaml").is_file()


def test_the_resolved_configuration_loads_again_to_the_same(tmp_path: Path) -> None:
    config = ac.SearchConfig(**EVERYTHING, recorded=RECORDED)
    assert load_config(write(tmp_path, config.to_yaml()), {}) == config


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "task": st.text(),
            "out": st.text(),
            "budget": st.sampled_from(["50%", "0.25ms", "0.5x of int8"]),
            "max_accuracy_drop": st.sampled_from([0, 0.01, "1%", "0.5"]),
            "max_time": st.sampled_from(["90", 90, 1.5, "8m"]),
            "gate_slack": st.floats(0, 10),
            "isolate": st.booleans(),
            "seed": st.integers(0, 2**16),
            "fine_tuning": st.fixed_dictionaries(
                {}, optional={"learning_rate": st.floats(1e-9, 10), "epochs": st.integers(1, 9)}
            ),
            "space": st.just({"pruning": [{"groups": "re:a.*", "ratios": [0, 0.5]}], "precision": [{"weights": ["float", 8]}]}),
        },
    )
)
def test_any_configuration_survives_its_yaml(data: dict[str, Any]) -> None:
    config = validated(ac.SearchConfig, data)
    assert validated(ac.SearchConfig, yaml.safe_load(config.to_yaml())) == config


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    overrides = {"budget": "50%", "target.threads": 3, "fine_tuning.epochs": 9, "seed": 0, "objectives": ["accuracy", "latency"]}
    config = load_config(write(tmp_path, EVERYTHING), overrides)
    assert (config.budget, config.seed, config.objectives) == ("50%", 0, ["accuracy", "latency"])
    assert (config.target.threads, config.target.device) == (3, "GPU")
    assert (config.fine_tuning.epochs, config.fine_tuning.distillation) == (9, 0.5)


def test_options_that_were_not_given_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, EVERYTHING)
    assert load_config(path, dict.fromkeys(["budget", "seed", "target.threads"])) == load_config(path, {})


def test_the_command_line_makes_the_sections_that_the_file_lacks(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, {"seed": 1}), {"fine_tuning.epochs": 9}).fine_tuning.epochs == 9
    assert load_config(None, {"target.threads": 3}).target.threads == 3


@pytest.mark.parametrize("section", ["", "3", "[]"], ids=["empty", "number", "list"])
def test_a_section_that_is_no_mapping_is_refused_by_name(tmp_path: Path, section: str) -> None:
    with pytest.raises(ConfigError, match="fine_tuning"):
        load_config(write(tmp_path, f"fine_tuning: {section}"), {"fine_tuning.epochs": 9})


def test_an_unknown_key_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown key 'buget'.*Known keys: .*budget"):
        load_config(write(tmp_path, {"buget": "50%"}), {})


@pytest.mark.parametrize(
    ("section", "key", "known"), [("fine_tuning", "epoch", "epochs, learning_rate"), ("target", "thread", "device, threads")]
)
def test_an_unknown_key_of_a_section_is_answered_with_those_of_the_section(section: str, key: str, known: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown key '{section}.{key}'.*Known keys: {known}"):
        validated(ac.SearchConfig, {section: {key: 1}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", 3),
        ("out", ["a"]),
        ("space", 3),
        ("objectives", ["latency", "accuracy"]),
        ("objectives", ["accuracy", "latency", "size", "size"]),
        ("objectives", ["accuracy", "latency", "beauty"]),
        ("objectives", []),
        ("max_trials", 0),
        ("max_trials", "many"),
        ("max_trials", 1.5),
        ("keep", "none"),
        ("gate_slack", -0.1),
        ("gate_slack", float("nan")),
        ("criterion", "l3"),
        ("storage", "small"),
        ("calibration_samples", 0),
        ("seed", "first"),
        ("seed", -1),
        ("seed", 2**32),
        ("target", "CPU"),
        ("target.threads", 0),
        ("target.batch", -1),
        ("target.precision", "int4"),
        ("target.performance_hint", "FASTEST"),
        ("fine_tuning.epochs", 0),
        ("fine_tuning.learning_rate", 0),
        ("fine_tuning.learning_rate", float("nan")),
        ("fine_tuning.distillation", 1.1),
    ],
)
def test_a_bad_value_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}\b.*got ") as caught:
        load_config(None, {key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("budget", 0.25, "latency budget"),
        ("budget", "", "latency budget"),
        ("budget", "-50%", "latency budget"),
        ("max_time", "soon", "time"),
        ("max_time", 0, "time"),
        ("max_time", True, "time"),
        ("max_accuracy_drop", "little", "accuracy drop"),
        ("max_accuracy_drop", -0.01, "accuracy drop"),
        ("max_accuracy_drop", float("nan"), "accuracy drop"),
        ("max_accuracy_drop", [0.01], "accuracy drop"),
    ],
)
def test_a_limit_that_does_not_parse_is_refused_with_the_form_to_write(key: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{words} .*got .*Write "):
        load_config(None, {key: value})


@pytest.mark.parametrize(
    "text",
    ["task: !!python/object/apply:os.getcwd []", "!!python/name:os.system", "task: !!python/tuple [a]"],
    ids=lambda t: t[:20],
)
def test_a_file_cannot_run_code(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="configuration file is YAML"):
        load_config(write(tmp_path, text), {})


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\ttask: x", "task: \x00"])
def test_a_file_that_is_not_yaml_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"configuration file is YAML; got .*config\.yaml") as caught:
        load_config(write(tmp_path, text), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "just words", "3"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="mapping of keys"):
        load_config(write(tmp_path, text), {})


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can be read; got .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml", {})


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError):
        load_config(path, {})


def test_options_given_in_python_are_checked_as_well() -> None:
    with pytest.raises(ConfigError, match="latency budget"):
        ac.SearchConfig(budget="fast")
    assert ac.SearchConfig(budget="50%").target == CompressionConfig().target == ac.Target()


def test_throughput_is_measured_at_full_load() -> None:
    config = load_config(None, {"objectives": ["accuracy", "throughput", "size"], "target.threads": 2})
    assert config.target == ac.Target(threads=2, performance_hint="THROUGHPUT")
    assert not load_config(None, {"objectives": ["accuracy", "latency"]}).target.is_for_throughput


@pytest.mark.parametrize("objectives", [["accuracy", "size"], ["accuracy", "latency", "throughput"], ["throughput", "accuracy"]])
def test_one_speed_is_an_objective(objectives: list[str]) -> None:
    with pytest.raises(ConfigError, match="objectives"):
        load_config(None, {"objectives": objectives})
