"""What is exported: the IR and all that someone needs who has nothing else.

model.xml model.bin   the IR
policy.json           what was done to the original
contract.json         inputs, outputs, what is expected to be done to the inputs
promise.json          accuracy, latency, size, and the target on which they were measured
samples.npz           a few inputs
expected.npz          the outputs for them, on that target
history.json          what the model was made from, and how; with
weights.safetensors   it gives back the trainable module: autocompress.load(BUNDLE, ORIGINAL)
infer.py              ten lines that run it with openvino and numpy alone
SHA256SUMS            of all of these
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.data import Batch, Inputs, Split, rebatched
from autocompress.device import Fingerprint, Target
from autocompress.errors import BundleError
from autocompress.history import History
from autocompress.record import TrialRecord
from autocompress.run_folder import RunFolder
from autocompress.target.evaluate import predict
from autocompress.target.runtime import compile_model, hints_of

CHECKSUMS = "SHA256SUMS"
INFER = '''"""Run the model: python infer.py INPUT.npy [INPUT.npy ...]; without arguments, on the stored samples."""
import json
import sys
from pathlib import Path

import numpy as np
import openvino as ov

here = Path(__file__).parent
model = ov.Core().compile_model(here / "model.xml", "{device}", {hints})
names = [entry["sample"] for entry in json.loads((here / "contract.json").read_text())["inputs"]]
inputs = [np.load(name) for name in sys.argv[1:]] or [np.load(here / "samples.npz")[name] for name in names]
batch = model.inputs[0].shape[0]  # samples that do not fill a batch are left out
for start in range(0, len(inputs[0]) - batch + 1, batch):
    print(*(np.array2string(output, precision=4) for output in model([i[start : start + batch] for i in inputs]).values()))
'''
FILES = (
    "contract.json",
    "expected.npz",
    "infer.py",
    "model.bin",
    "model.xml",
    "policy.json",
    "promise.json",
    "samples.npz",
)
SAVED = ("history.json", "weights.safetensors")
"""Trials of versions before these have none."""
MEASURED = (
    *("trial", "metric", "accuracy_valid", "accuracy_test", "budget_ms", "speedup"),
    *("latency_ms", "latency_low_ms", "latency_high_ms", "latency_yardsticks"),
)
"""What a promise holds that only a trial finds out."""
SAMPLES, SAMPLE_BYTES = 32, 4_000_000
"""Inputs kept for a bundle's self-test."""


def write_bundle(folder: RunFolder, record: TrialRecord, path: Path) -> None:
    """Write a trial of a run as a bundle into a new or empty folder.

    Raises:
        BundleError: the folder is not empty, or the trial's model is not on disk.
    """
    if not folder.has_model(record.number):
        raise BundleError(
            "An exported trial's model is on disk",
            f"trial {record.number} without one",
            "Only models near the front are kept; search with --keep all.",
        )
    require_new(path)
    trial, run = folder.trial(record.number), folder.read_json("run.json")
    path.mkdir(parents=True, exist_ok=True)
    for name in ("model.xml", "model.bin"):
        shutil.copyfile(trial / name, path / name)
    shutil.copyfile(folder.file("samples.npz"), path / "samples.npz")
    removed = folder.removed(record.number)
    if removed is not None and (trial / "weights.safetensors").is_file():
        shutil.copyfile(trial / "weights.safetensors", path / "weights.safetensors")
        History(**folder.read_json("original.json"), policy=record.plan.policy, removed=removed).write(path / "history.json")
    target = Target.model_validate(run["fingerprint"]["target"]).at(record.plan.precision)
    complete_bundle(path, target, record.plan.policy, promise_of(record, run), run["preprocessing"])


def require_new(path: Path) -> None:
    """Check that a bundle can be written.

    Raises:
        BundleError: the folder is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BundleError("A bundle is written into a new or empty folder", str(path), "Choose another --out.")


def complete_bundle(
    path: Path, target: Target, policy: dict[str, Any], promise: dict[str, Any], preprocessing: dict[str, Any] | None
) -> None:
    """Write what follows from the IR and the samples that lie in a bundle's folder, and the checksums of all of it."""
    _write_contract(path, target, preprocessing)
    _write_json(path / "policy.json", policy)
    _write_json(path / "promise.json", promise)
    (path / "infer.py").write_text(INFER.format(device=target.device, hints=hints_of(target)))
    sums = (f"{_sha256(file)}  {file.name}" for file in sorted(path.iterdir()))
    (path / CHECKSUMS).write_text("\n".join(sums) + "\n")


def bundled_samples(split: Split) -> dict[str, NDArray[Any]]:
    """The first inputs of a split, by name; positional ones are called "0", "1" and so on."""
    samples = [_named(sample) for sample in split.take(SAMPLES)]
    size = sum(array.nbytes for array in samples[0].values())
    samples = samples[: max(1, SAMPLE_BYTES // max(1, size))]
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def check_integrity(path: Path, needed: tuple[str, ...] = FILES) -> None:
    """Compare every file of a bundle with its checksum.

    Args:
        path: the bundle.
        needed: the files that it has to hold.

    Raises:
        BundleError: it is not a bundle, or a file is missing or changed.
    """
    try:
        lines = (path / CHECKSUMS).read_text().splitlines()
        expected = {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise BundleError(
            f"A bundle is a folder with {CHECKSUMS}",
            f"{path}: {error}",
            "Export it with: autocompress export RUN --best --out DIR.",
        ) from error
    unlisted = set(needed) - set(expected)
    if unlisted:
        raise BundleError(
            f"{CHECKSUMS} lists every file of a bundle", f"{path} without {', '.join(sorted(unlisted))}", "Export it again."
        )
    for name in set(FILES + SAVED) & set(expected):
        file, checksum = path / name, expected[name]
        if not file.is_file() or _sha256(file) != checksum:
            state = "changed since the export" if file.is_file() else "missing"
            raise BundleError("Every file of a bundle matches its checksum", f"{file}, which is {state}", "Export it again.")


def read_promise(path: Path) -> tuple[dict[str, Any], Fingerprint]:
    """What a bundle promises, and the target on which that was measured.

    Raises:
        BundleError: promise.json is damaged.
    """
    try:
        promise = json.loads((path / "promise.json").read_text())
        return promise, Fingerprint.model_validate(promise["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError("A bundle's promise.json is readable", str(error).splitlines()[0], "Export it again.") from error


def model_inputs(path: Path) -> list[NDArray[Any]]:
    """The stored sample inputs of a bundle, in the order of the model's inputs."""
    names = [entry["sample"] for entry in json.loads((path / "contract.json").read_text())["inputs"]]
    with np.load(path / "samples.npz") as samples:
        return [samples[name] for name in names]


def _write_contract(path: Path, target: Target, preprocessing: dict[str, Any] | None) -> None:
    """contract.json, and the outputs for the samples, computed from the IR that is shipped."""
    compiled = compile_model(path / "model.xml", target)
    with np.load(path / "samples.npz") as stored:
        names = (
            list(stored) if all(name.isdigit() for name in stored) else [_sample_name(port, stored) for port in compiled.inputs]
        )
        samples = [stored[name] for name in names]
    ports = [
        {"name": port.get_any_name(), "shape": list(port.shape), "type": port.element_type.to_string(), "sample": name}
        for port, name in zip(compiled.inputs, names, strict=True)
    ]
    outputs = [{"shape": list(port.shape), "type": port.element_type.to_string()} for port in compiled.outputs]
    _write_json(path / "contract.json", {"inputs": ports, "outputs": outputs, "preprocessing": preprocessing})
    np.savez(path / "expected.npz", *sample_outputs(compiled, samples))


def sample_outputs(compiled: Any, samples: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The model's outputs for sample inputs, at its own batch size."""
    found = predict(compiled, rebatched(iter([Batch(tuple(samples), None)]), int(compiled.inputs[0].shape[0])))
    return list(found) if isinstance(found, tuple) else [found]


def _named(inputs: Inputs) -> dict[str, NDArray[Any]]:
    return inputs if isinstance(inputs, dict) else {str(i): array for i, array in enumerate(inputs)}


def _sample_name(port: Any, stored: Any) -> str:
    return str(next(name for name in port.get_names() if name in stored))


def promise_of(record: TrialRecord, run: dict[str, Any]) -> dict[str, Any]:
    """What promise.json says of a complete trial."""
    latency = record.latency
    assert latency is not None  # complete trials are measured
    return {
        "task": run["name"],
        "trial": record.number,
        "metric": run["identity"]["metric"],
        "accuracy_valid": record.accuracy_valid,
        "accuracy_test": record.accuracy_test,
        "latency_ms": latency.ms,
        "latency_low_ms": latency.low_ms,
        "latency_high_ms": latency.high_ms,
        "latency_yardsticks": latency.ratio / run["landmarks"]["yardstick_ratio"],
        "speedup": 1 / latency.ratio,
        "budget_ms": run["budget_ms"],
        "size_bytes": record.size_bytes,
        "int8_share": record.int8_share,
        "precision": record.plan.precision,
        "notes": record.notes,
        "fingerprint": run["fingerprint"],
    }


def unmeasured_promise(
    task: str, path: Path, found: Fingerprint, is_integer: Mapping[str, bool], notes: list[str]
) -> dict[str, Any]:
    """What promise.json says of a model that no trial has measured.

    Args:
        task: its name.
        path: the bundle's folder, with the IR in it.
        found: the target's fingerprint.
        is_integer: each layer that the policy quantizes → whether it runs in INT8.
        notes: what could not be done as asked.
    """
    return dict.fromkeys(MEASURED) | {
        "task": task,
        "size_bytes": sum((path / name).stat().st_size for name in ("model.xml", "model.bin")),
        "int8_share": sum(is_integer.values()) / len(is_integer) if is_integer else None,
        "precision": found.target.precision,
        "notes": notes,
        "fingerprint": found.model_dump(mode="json"),
    }


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
