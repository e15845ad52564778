"""The probe: real small graphs on this machine, read back; what is kept and what is asked again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import probed
import pytest

from autocompress.capabilities import Capabilities
from autocompress.device import Target
from autocompress.policy import FLOAT
from autocompress.target import probe as module
from autocompress.target.probe import _is_step, _two_of_four, capabilities
from autocompress.target.probe import probe as real_probe
from autocompress.target.runtime import fingerprint

pytestmark = pytest.mark.timing

TARGET = Target()


@pytest.fixture(scope="module")
def found() -> Capabilities:
    """Two forms, hardly timed: what is read back does not depend on the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FORMS", ("convolution", "linear"))
        patch.setattr(module, "STEP_WIDTHS", (56, 60, 64))
        for name in ("KERNEL_SECONDS", "STEP_SECONDS", "SPARSITY_SECONDS", "REFERENCE_SECONDS"):
            patch.setattr(module, name, 0.0)
        told: list[float] = []
        result = real_probe(TARGET, fingerprint(TARGET), lambda part, words: told.append(part))
        assert told[0] == 0
        assert told == sorted(told)
        return result


def test_every_scheme_has_a_row_with_its_kernel(found: Capabilities) -> None:
    rows = {(fact.form, fact.scheme): fact for fact in found.kernels}
    assert len(rows) == len(found.kernels) == 12 * 2 + 1
    assert all(fact.kernel != "unknown" and fact.speedup_low <= fact.speedup <= fact.speedup_high for fact in found.kernels)
    assert not rows["convolution", "FP32"].integer
    assert rows["convolution", "FP32"].kernel.endswith("f32")
    assert rows["convolution", "i8"].integer
    assert rows["convolution", "i4 → i8 → f32"].integer
    assert rows["linear", "i8"].integer
    assert "64→64" in rows["convolution", "i8"].graph


def test_the_default_precision_is_what_runs_where_nothing_is_asked(found: Capabilities) -> None:
    default = next(f for f in found.kernels if f.scheme == "default precision" and f.form == "convolution")
    assert default.kernel.endswith(found.float_precision)
    assert default.speedup_default == 1


def test_seven_bits_are_exact_and_a_binary_kernel_is_right(found: Capabilities) -> None:
    assert found.numerics.weights_7 < 1e-3
    assert found.numerics.binary_zero_one is None or found.numerics.binary_zero_one < 1e-3


def test_steps_and_zeros_are_there_for_int8_and_float(found: Capabilities) -> None:
    assert {(fact.form, fact.precision) for fact in found.steps} == {
        (form, precision) for form in ("convolution", "linear") for precision in ("int8", found.float_precision)
    }
    assert {(fact.pattern, fact.level) for fact in found.sparsity} == {
        *(("unstructured", level) for level in module.LEVELS),
        ("2:4", 0.5),
    }


def test_what_was_found_survives_json(found: Capabilities) -> None:
    assert Capabilities.model_validate_json(found.model_dump_json()) == found


@pytest.fixture
def probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """The targets that are probed, in an empty cache."""
    asked: list[Target] = []

    def fake(target: Target, found: object, progress: object) -> Capabilities:
        asked.append(target)
        return probed.capabilities(fingerprint(target))

    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "probe", fake)
    return asked


def test_a_target_is_probed_once(probes: list[Target]) -> None:
    assert capabilities(TARGET) == capabilities(TARGET)
    assert len(probes) == 1
    capabilities(TARGET, refresh=True)
    assert len(probes) == 2


def test_another_target_is_probed_anew_but_not_another_request(probes: list[Target]) -> None:
    capabilities(TARGET)
    capabilities(TARGET.model_copy(update={"batch": 8, "shapes": {"0": (8, 3)}, "dynamic": True}))
    assert len(probes) == 1
    capabilities(Target(precision="f32"))
    assert probes[1].precision == "f32"


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_damaged_cache_is_probed_anew(content: str, probes: list[Target], tmp_path: Path) -> None:
    capabilities(TARGET)
    (path,) = tmp_path.glob("probe-*.json")
    path.write_text(content)
    capabilities(TARGET)
    assert len(probes) == 2


# Times of layers C → C relative to the widest, where channels are filled up to a multiple of a step: (width / 64)² of the
# width that is really computed.
@pytest.mark.parametrize("real", [1, 4, 8, 16, 32])
def test_the_step_of_a_staircase_is_found(real: int) -> None:
    ratios = {width: (-(-width // real) * real / 64) ** 2 for width in module.STEP_WIDTHS}
    steps = [step for step in module.STEPS if _is_step(step, ratios, "convolution")]
    assert max(steps, default=1) == real


def test_two_of_four_input_channels_are_zero() -> None:
    codes = _two_of_four(np.ones((8, 8, 3, 3), np.int8))
    assert (codes.reshape(8, 2, 4, 9) == 0).sum(2).tolist() == np.full((8, 2, 9), 2).tolist()


def test_the_schemes_are_those_that_a_policy_can_ask_for() -> None:
    assert {scheme.weights for scheme in module.SCHEMES} == {FLOAT, 8, 4, 2}
