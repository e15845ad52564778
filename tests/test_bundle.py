"""Bundles: what is in them, that they run alone, and that a broken promise or a changed file is noticed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import openvino as ov
import pytest
import searches

import autocompress as ac
from autocompress.errors import BundleError
from autocompress.record import State

FILES = {
    *("model.xml", "model.bin", "policy.json", "contract.json", "promise.json"),
    *("samples.npz", "expected.npz", "infer.py", "SHA256SUMS"),
    *("history.json", "weights.safetensors"),
}


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "best"
    assert searches.cli("export", finished, "--best", "--out", path).code == 0
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latency may be half as long again: these models take some microseconds, and the machine has other work."""
    monkeypatch.setattr("autocompress.verification.LATENCY_TOLERANCE", 0.5)


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and its checksum, as someone would who means to deceive."""
    (bundle / name).write_bytes(content)
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    sums = {line.split("  ", 1)[1]: line.split("  ", 1)[0] for line in lines}
    sums[name] = hashlib.sha256(content).hexdigest()
    (bundle / "SHA256SUMS").write_text("".join(f"{checksum}  {file}\n" for file, checksum in sums.items()))


def promise(bundle: Path, **changes: Any) -> None:
    data = json.loads((bundle / "promise.json").read_text())
    rewrite(bundle, "promise.json", json.dumps(data | changes).encode())


def promised(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "promise.json").read_text()))


def test_a_bundle_holds_all_that_is_needed(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    contract = json.loads((exported / "contract.json").read_text())
    assert [port["shape"] for port in contract["inputs"]] == [[1, 1, 8, 8]]
    assert [port["shape"] for port in contract["outputs"]] == [[1, 10]]
    assert promised(exported)["task"] == "digits"
    assert promised(exported)["fingerprint"]["device_name"]


def test_the_checksums_are_those_of_sha256sum(exported: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=exported, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": OK") == len(FILES) - 1


def test_the_bundled_samples_are_validation_inputs(exported: Path) -> None:
    with np.load(exported / "samples.npz") as samples:
        np.testing.assert_array_equal(samples["0"], models.digits()["valid"][0][: len(samples["0"])].numpy())


def run_alone(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """infer.py in a process that can import neither this product nor a training framework."""
    block = "import sys, runpy\nfor name in ('autocompress', 'torch', 'nncf', 'optuna'): sys.modules[name] = None\n"
    code = block + f"sys.argv = ['infer.py', *{[str(a) for a in arguments]!r}]\nrunpy.run_path({str(bundle / 'infer.py')!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/", timeout=60)


def printed(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.replace("[", " ").replace("]", " ").split()])


def test_infer_runs_with_openvino_and_numpy_alone(exported: Path) -> None:
    done = run_alone(exported)
    assert done.returncode == 0, done.stderr
    with np.load(exported / "expected.npz") as expected:
        values = expected["arr_0"]
    np.testing.assert_allclose(printed(done.stdout).reshape(values.shape), values, atol=2e-3, rtol=1e-3)


def test_infer_takes_an_input_of_ones_own(exported: Path, tmp_path: Path) -> None:
    images = models.digits()["test"][0][:3].numpy()
    np.save(tmp_path / "images.npy", images)
    done = run_alone(exported, tmp_path / "images.npy")
    compiled = ov.Core().compile_model(exported / "model.xml", "CPU")
    expected = np.concatenate([next(iter(compiled([image[None]]).values())) for image in images])
    np.testing.assert_allclose(printed(done.stdout).reshape(3, 10), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("option", ["--best", "--fastest", "--trial"])
def test_each_way_of_choosing_exports_its_model(option: str, finished: Path, tmp_path: Path) -> None:
    result = ac.Result(finished)
    complete = result.trials[(result.trials["state"] == "COMPLETE") & result.trials["within_budget"].eq(True)]
    original = result.trials.set_index("source").loc["baseline:original", "accuracy_valid"]
    kept = complete[complete["accuracy_valid"] >= original - 0.5 - 1e-9]  # the search's own --max-accuracy-drop
    wanted = {
        "--best": kept.sort_values(["accuracy_valid", "latency_ms"], ascending=[False, True])["trial"].iloc[0],
        "--fastest": kept.sort_values("latency_ms")["trial"].iloc[0],
        "--trial": 2,
    }[option]
    arguments = [option, "2"] if option == "--trial" else [option]
    outcome = searches.cli("export", finished, *arguments, "--out", tmp_path / "bundle", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["trial"] == promised(tmp_path / "bundle")["trial"] == wanted
    record = ac.Result(finished).trial(int(wanted)).record
    assert promised(tmp_path / "bundle")["accuracy_test"] == record.accuracy_test
    assert json.loads((tmp_path / "bundle" / "policy.json").read_text()) == record.plan.policy


def test_an_export_with_a_smaller_drop_is_more_accurate(finished: Path, tmp_path: Path) -> None:
    searches.cli("export", finished, "--fastest", "--max-accuracy-drop", "0", "--out", tmp_path / "bundle")
    original = next(r for r in searches.records(finished) if r.source == "baseline:original")
    assert promised(tmp_path / "bundle")["accuracy_valid"] >= original.accuracy_valid


def test_what_is_exported_in_python_is_the_same(exported: Path, finished: Path, tmp_path: Path) -> None:
    assert ac.Result(finished).best().export(tmp_path / "bundle") == tmp_path / "bundle"
    assert searches.picture(tmp_path / "bundle") == searches.picture(exported)


def test_a_kept_promise_is_exit_code_0(exported: Path, task_file: Path, patient: None) -> None:
    outcome = searches.cli("verify", exported, "--task", task_file)
    assert outcome.code == 0, outcome.out
    assert outcome.out.count("kept") == 4
    for name in ("outputs", "latency", "valid accuracy", "test accuracy"):
        assert name in outcome.out


def test_verification_as_json(exported: Path, patient: None) -> None:
    checks = json.loads(searches.cli("verify", exported, "--json").out)
    assert [check["kept"] for check in checks] == [True, True]
    assert all(set(check) == {"name", "promised", "found", "kept"} for check in checks)


@pytest.mark.parametrize("name", sorted(FILES - {"SHA256SUMS"}))
def test_a_changed_file_is_noticed(name: str, bundle: Path) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes() + b" ")
    with pytest.raises(BundleError, match=rf"{name}, which is changed"):
        ac.verify(bundle)
    outcome = searches.cli("verify", bundle)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")


@pytest.mark.parametrize("name", ["model.bin", "promise.json"])
def test_a_missing_file_is_noticed(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}, which is missing"):
        ac.verify(bundle)


@pytest.mark.parametrize("content", [b"", b"no checksums here", b"\xff\xfe"])
def test_damaged_checksums_are_noticed(content: bytes, bundle: Path) -> None:
    (bundle / "SHA256SUMS").write_bytes(content)
    with pytest.raises(BundleError, match="SHA256SUMS"):
        ac.verify(bundle)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"fingerprint": 3}'])
def test_a_promise_that_cannot_be_read_is_a_damaged_bundle(content: bytes, bundle: Path) -> None:
    rewrite(bundle, "promise.json", content)
    with pytest.raises(BundleError, match=r"promise\.json"):
        ac.verify(bundle)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"SHA256SUMS.*autocompress export"):
        ac.verify(tmp_path)


def test_a_latency_that_is_not_reached_is_exit_code_1(bundle: Path, patient: None) -> None:
    promise(bundle, latency_yardsticks=promised(bundle)["latency_yardsticks"] / 5)
    outcome = searches.cli("verify", bundle)
    assert outcome.code == 1
    assert outcome.out.count("broken") == 1
    assert "latency" in next(line for line in outcome.out.splitlines() if "broken" in line)


def test_an_accuracy_that_is_not_reached_is_exit_code_1(bundle: Path, task_file: Path, patient: None) -> None:
    promise(bundle, accuracy_test=promised(bundle)["accuracy_test"] + 0.01)
    outcome = searches.cli("verify", bundle, "--task", task_file, "--json")
    assert outcome.code == 1
    broken = [check["name"] for check in json.loads(outcome.out) if not check["kept"]]
    assert broken == ["test accuracy"]


def test_other_outputs_are_exit_code_1(bundle: Path, patient: None, tmp_path: Path) -> None:
    with np.load(bundle / "expected.npz") as stored:
        np.savez(tmp_path / "other.npz", stored["arr_0"] + 0.1 * stored["arr_0"].std())
    rewrite(bundle, "expected.npz", (tmp_path / "other.npz").read_bytes())
    checks = ac.verify(bundle)
    assert [check.kept for check in checks] == [False, True]


def test_another_machine_is_held_to_the_budget_only(bundle: Path) -> None:
    fingerprint = promised(bundle)["fingerprint"] | {"device_name": "Another CPU"}
    promise(bundle, fingerprint=fingerprint, latency_yardsticks=1e-9, budget_ms=1e6)
    checks = ac.verify(bundle)
    assert all(check.kept for check in checks)
    assert "another target" in checks[1].promised
    assert "Another CPU" in checks[1].promised
    promise(bundle, budget_ms=1e-6)
    assert [check.kept for check in ac.verify(bundle)] == [True, False]


def test_named_inputs_keep_their_names_in_the_bundle(tmp_path: Path, steady_meter: None) -> None:
    """The data name the lower half first, the model the upper one: neither order may swap the halves."""
    parts = {}
    for name, arrays in models.digits().items():
        inputs, classes = models.halves(tuple(array[:40] for array in arrays), named=True)
        parts[name] = {"lower": inputs["lower"], "upper": inputs["upper"]}, classes
    task = ac.Task(models.seeded(models.TwoInputs), **parts, epochs=1)
    choice = ac.compress(
        task, ac.Policy({}, {"fc": ac.LayerPolicy(8, 8)}), out=tmp_path / "run", calibration_samples=5, keep="all"
    )
    bundle = choice.export(tmp_path / "bundle")
    contract = json.loads((bundle / "contract.json").read_text())
    assert [(port["name"], port["sample"]) for port in contract["inputs"]] == [("upper", "upper"), ("lower", "lower")]
    with np.load(bundle / "expected.npz") as expected:
        values = expected["arr_0"]
    np.testing.assert_allclose(printed(run_alone(bundle).stdout).reshape(values.shape), values, atol=2e-3, rtol=1e-2)


def test_a_model_that_was_not_kept_cannot_be_exported(run_copy: Path, tmp_path: Path) -> None:
    number = next(record.number for record in searches.records(run_copy) if record.state == State.COMPLETE)
    (run_copy / "trials" / f"{number:04d}" / "model.xml").unlink()
    outcome = searches.cli("export", run_copy, "--trial", number, "--out", tmp_path / "bundle")
    assert outcome.code == 2
    assert "--keep all" in outcome.err


def test_a_bundle_goes_into_an_empty_folder_only(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="new or empty folder"):
        ac.Result(finished).best().export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
