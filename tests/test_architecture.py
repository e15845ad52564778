"""Imports run one way, heavy packages stay where they belong, and the public surface is what it was."""

import ast
import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import autocompress as ac

PACKAGE = Path(ac.__file__).parent
HEAVY = ["torch", "tensorflow", "keras", "openvino", "nncf", "optuna", "pandas", "matplotlib", "scipy"]

# From the ground to the top. A package stands for all of its modules that are not named themselves.
LAYERS = [
    ["errors", "structure", "device"],
    ["policy", "grids", "data", "metrics"],
    ["capabilities", "decision"],
    ["record", "budget", "task"],
    ["config", "run_folder", "watch"],
    ["front", "inert", "timekeeping"],
    ["space"],
    ["policy_file"],
    ["baselines", "strategy", "target"],
    ["frameworks"],
    ["history"],
    ["deploy", "prepared", "shared"],
    ["report", "result", "bundle", "trial"],
    ["shipping"],
    ["setup", "verification", "restore", "hardware"],
    ["finals", "global_mode", "foresight", "sharing"],
    ["sampling"],
    ["run", "torch", "keras"],
    ["console", "timed_run"],
    ["single", "workflow"],
    ["outer_loop"],
    ["dry_run", "analysis"],
    ["cli"],
    ["__main__"],
]

# Package → the modules that may import it, wherever in the module the import stands.
CONFINED = {
    "torch": ["frameworks.torch", "frameworks.keras.resting"],  # one of the backends of Keras
    "safetensors": ["frameworks.torch", "frameworks.keras", "frameworks.weights_file"],
    "keras": ["frameworks.keras"],
    "tensorflow": ["frameworks.keras"],
    "openvino": [
        "target",
        "frameworks.torch.convert",
        "frameworks.torch.teacher",
        "frameworks.keras.convert",
        "frameworks.keras.recurrent",
        "frameworks.keras.backends",
        "trial",
        "deploy",
    ],
    "nncf": ["target.calibration"],
    "optuna": ["strategy"],
    "scipy": ["target.meter", "frameworks.classes", "sharing", "strategy"],
    "filelock": ["run_folder"],
    "yaml": ["config"],
    "pandas": ["report", "console"],
    "matplotlib": ["report"],
    "jinja2": ["report.page"],
    "rich": ["console", "cli", "report", "target.calibration"],
    "typer": ["cli"],
}
PUBLIC = ["LayerPolicy", "Policy", "Result", "SearchConfig", "Target", "Task"]
PUBLIC += ["bench", "compress", "explain", "load", "probe", "search", "verify"]


def name_of(path: Path) -> str:
    """`frameworks/torch/prune.py` → "frameworks.torch.prune"; a package's own file → the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(node: ast.AST, inside_functions: bool) -> Iterator[str]:
    """Full names of what is imported when the module runs; `inside_functions`: also what is imported later."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not is_for_types_only(child) and (inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(child, inside_functions)


def is_within(module: str, places: list[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def layer_of(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if is_within(module, layer))


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports when it is imported itself."""
    found = {name.removeprefix("autocompress.") for name in imports(MODULES[module], False) if name.startswith("autocompress.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found} & MODULES.keys()


def packages_behind(module: str) -> set[str]:
    """The packages that are imported when a module is, by itself and by what it imports."""
    seen, waiting = set(), {module}
    while waiting:
        seen |= waiting
        waiting = {name for found in waiting for name in own_imports(found)} - seen
    return {name.partition(".")[0] for found in seen for name in imports(MODULES[found], False)}


def importers(package: str) -> list[str]:
    return [name for name, tree in MODULES.items() if any(is_within(found, [package]) for found in imports(tree, True))]


def python(*arguments: str) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


def test_every_module_has_its_layer() -> None:
    assert [name for name in MODULES if not any(is_within(name, layer) for layer in LAYERS)] == []
    assert [name for layer in LAYERS for name in layer if name not in MODULES] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_one_above_it(module: str) -> None:
    assert [name for name in own_imports(module) if layer_of(name) > layer_of(module)] == []


def test_no_two_modules_import_each_other() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    while leaves := [module for module, found in graph.items() if not found & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert graph == {}


@pytest.mark.parametrize("package", CONFINED)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    assert [module for module in importers(package) if not is_within(module, CONFINED[package])] == []


def test_the_walk_sees_the_imports_it_is_to_forbid() -> None:
    assert "frameworks.torch.prune" in importers("torch")
    assert "target.calibration" in importers("nncf")  # inside a function
    assert "frameworks.torch.framework" not in own_imports("frameworks.base")  # inside a function
    assert "target.precision" not in own_imports("frameworks.base")  # for types only
    assert {"errors", "policy", "structure"} <= own_imports("frameworks.base")
    assert {"openvino", "optuna", "pandas", "numpy"} <= packages_behind("outer_loop")


@pytest.mark.parametrize(
    "module", ["report.page", "report.plots", "report.tables", "outer_loop", "verification", "frameworks.base"]
)
def test_neither_a_framework_nor_nncf_is_needed_before_there_is_a_model(module: str) -> None:
    assert not packages_behind(module) & {"torch", "torch_pruning", "safetensors", "tensorflow", "keras", "nncf"}


@pytest.mark.parametrize("module", ["result", "report.page", "report.plots", "report.tables"])
def test_a_run_is_looked_at_without_openvino_and_optuna(module: str) -> None:
    assert not packages_behind(module) & {"openvino", "optuna"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("autocompress", [*HEAVY, "numpy", "pydantic"]),
        ("autocompress.cli", [*HEAVY, "numpy", "pydantic"]),
        ("autocompress.config, autocompress.space, autocompress.task, autocompress.result", HEAVY),
    ],
)
def test_an_import_stays_light(modules: str, absent: list[str]) -> None:
    code = f"import sys, {modules}; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    assert python("-c", code, *absent).split() == []


def test_help_comes_within_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert "search" in python("-m", "autocompress", "--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_the_public_surface_is_frozen() -> None:
    assert sorted(ac.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(ac))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    assert callable(getattr(ac, name))
    assert getattr(ac, name).__doc__


def test_no_module_takes_the_place_of_a_public_name() -> None:
    for module in ("outer_loop", "single", "verification", "policy", "task", "result", "config", "device"):
        importlib.import_module(f"autocompress.{module}")
    assert all(callable(getattr(ac, name)) for name in PUBLIC)
    assert not set(PUBLIC) & set(MODULES)


def test_the_module_for_training_scripts_comes_when_it_is_used() -> None:
    code = "import sys, autocompress as ac; print('torch' in sys.modules, *ac.torch.__all__, 'torch' in dir(ac))"
    assert python("-c", code).split() == ["False", "export", "prepare", "True"]
    assert "torch" not in ac.__all__  # a star import must not hide the framework


def test_a_task_of_one_framework_does_not_import_the_other() -> None:
    code = (
        "import sys, torch; from autocompress.frameworks.base import framework_of; framework_of(torch.nn.Linear(1, 1)); "
        "print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    )
    assert python("-c", code).split() == ["False", "False"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'serach'"):
        _ = ac.serach  # type: ignore[attr-defined]
