"""What is exported: the IR and all that someone needs who has nothing else.

model.xml model.bin   the IR
policy.json           what was done to the original
contract.json         inputs, outputs, what is expected to be done to the inputs
promise.json          accuracy, latency, size, and the target on which they were measured
samples.npz           a few inputs
expected.npz          the outputs for them, on that target
infer.py              ten lines that run it with openvino and numpy alone
SHA256SUMS            of all of these
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.data import Batch, rebatched
from autocompress.device import Target
from autocompress.errors import BundleError
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
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BundleError("A bundle is written into a new or empty folder", str(path), "Choose another --out.")
    path.mkdir(parents=True, exist_ok=True)
    for name in ("model.xml", "model.bin"):
        shutil.copyfile(folder.trial(record.number) / name, path / name)
    shutil.copyfile(folder.file("samples.npz"), path / "samples.npz")
    run = folder.read_json("run.json")
    target = Target.model_validate(run["fingerprint"]["target"])
    target = target.at(record.plan.precision)
    _write_contract(path, target, run["preprocessing"])
    _write_json(path / "policy.json", record.plan.policy)
    _write_json(path / "promise.json", promise_of(record, run))
    (path / "infer.py").write_text(INFER.format(device=target.device, hints=hints_of(target)))
    sums = (f"{_sha256(file)}  {file.name}" for file in sorted(path.iterdir()))
    (path / CHECKSUMS).write_text("\n".join(sums) + "\n")


def check_integrity(path: Path) -> None:
    """Compare every file of a bundle with its checksum.

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
    unlisted = set(FILES) - set(expected)
    if unlisted:
        raise BundleError(
            f"{CHECKSUMS} lists every file of a bundle", f"{path} without {', '.join(sorted(unlisted))}", "Export it again."
        )
    for name in FILES:
        file, checksum = path / name, expected[name]
        if not file.is_file() or _sha256(file) != checksum:
            state = "changed since the export" if file.is_file() else "missing"
            raise BundleError("Every file of a bundle matches its checksum", f"{file}, which is {state}", "Export it again.")


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
        "fingerprint": run["fingerprint"],
    }


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
