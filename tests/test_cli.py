"""The command line: what is wrong with an input is one line and exit code 2, and an existing run stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import searches
import yaml

BITS = {"precision": [{"layers": "*", "weights": ["float", 8, 4], "activations": [8]}]}


def one_line(outcome: searches.Outcome, *words: str) -> None:
    """The whole of stderr is one clear line, whatever was printed before it."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert "\\[" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.fixture(scope="module")
def existing(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing in this module may change."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("existing") / "run", symlinks=True))


@pytest.fixture(scope="module")
def linear_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task with one layer."""
    path = tmp_path_factory.mktemp("linear") / "linear_task.py"
    return searches.write_task(path, "def make_task():\n    return models.search_task(models.linear(), 100, name='linear')")


@pytest.fixture(scope="module")
def bits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "bits.yaml"
    path.write_text(yaml.safe_dump(BITS))
    return path


def refused(existing: Path, *arguments: object) -> searches.Outcome:
    """Resume the existing run with these arguments; it has to be left alone."""
    before = searches.picture(existing)
    outcome = searches.cli("search", *arguments, "--out", existing, "--resume")
    assert searches.picture(existing) == before
    return outcome


# Task files

TASK_FILES = {
    "import of nothing": ("import nothing_there", "nothing_there"),
    "syntax error": ("task = (", "SyntaxError"),
    "error while it runs": ("1 / 0", "ZeroDivisionError"),
    "exit": ("sys.exit(3)", "SystemExit"),
    "no task": ("x = 1", "task or make_task"),
    "no task at all": ("task = 3", "a int"),
    "function that fails": ("def make_task():\n    raise KeyError('lost [data]')", "lost [data]"),
    "function that makes nothing": ("def make_task():\n    pass", "NoneType"),
    "unknown metric": ("task = models.search_task(metric='f1')", "f1"),
    "metric without direction": ("task = models.search_task(metric=max)", "direction"),
    "no epochs": ("task = models.search_task(epochs=0)", "epochs"),
    "not a model": ("task = models.search_task(dict())", "torch.nn.Module"),
    "empty arrays": ("task = models.search_task(valid=(models.torch.zeros(0, 1, 8, 8), models.torch.zeros(0)))", "valid data"),
    "empty loader": ("task = models.search_task(valid=models.torch.utils.data.DataLoader([]))", "valid data"),
    "unequal lengths": ("task = models.search_task(train=(models.torch.zeros(3, 1, 8, 8), models.torch.zeros(5)))", "[3, 5]"),
    "generator": ("task = models.search_task(train=(b for b in []))", "generator"),
}


@pytest.mark.parametrize("case", TASK_FILES)
def test_a_task_file_that_cannot_be_used(case: str, existing: Path, tmp_path: Path) -> None:
    body, word = TASK_FILES[case]
    path = searches.write_task(tmp_path / "bad_task.py", body)
    one_line(refused(existing, path), word)


UNFIT = {
    "no training data": ("train=models.torch.utils.data.DataLoader([])", "train data"),
    "data that does not fit": ("train=models.diabetes()['train']", "RuntimeError"),
    "no layer": ("models.nn.Flatten()", "at least one convolution or linear layer"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_and_data_that_do_not_fit_each_other(case: str, tmp_path: Path) -> None:
    options, word = UNFIT[case]
    path = searches.write_task(tmp_path / "unfit_task.py", f"task = models.search_task({options})")
    one_line(searches.cli("search", path, "--out", tmp_path / "run"), word)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_task_file_that_is_missing(existing: Path) -> None:
    one_line(refused(existing, "nowhere/task.py"), "nowhere/task.py", "PATH.py")


def test_a_name_that_the_task_file_does_not_define(existing: Path, task_file: Path) -> None:
    one_line(refused(existing, f"{task_file}:other"), "other")


def test_no_task_at_all(tmp_path: Path) -> None:
    one_line(searches.cli("search", "--out", tmp_path / "run"), "needs a task")
    assert list(tmp_path.iterdir()) == []


# Options

OPTIONS = {
    "a word": (("--budget", "fast"), "'fast'"),
    "an empty budget": (("--budget", ""), "budget"),
    "a negative budget": (("--budget=-5ms",), "-5ms"),
    "a budget of zero": (("--budget", "0ms"), "positive"),
    "zero percent": (("--budget", "0%"), "positive"),
    "another unit": (("--budget", "5 parsecs"), "parsecs"),
    "a budget that nothing keeps": (("--budget", "0.00001ms"), "The fastest takes"),
    "an unknown preset": (("--space", "int9"), "int8-prune, mixed-precision, sparse"),
    "an unknown time": (("--time", "soon"), "soon"),
    "a negative drop": (("--max-accuracy-drop=-0.1",), "-0.1"),
    "a drop that is a word": (("--max-accuracy-drop", "little"), "little"),
    "unknown objectives": (("--objectives", "accuracy,beauty"), "objectives"),
    "objectives without latency": (("--objectives", "accuracy,size"), "objectives start with accuracy, latency"),
    "what to keep": (("--keep", "some"), "keep"),
    "no trials": (("--trials", "0"), "max_trials"),
    "no threads": (("--threads", "0"), "threads"),
    "no epochs": (("--epochs", "0"), "epochs"),
    "a number that is a word": (("--trials", "many"), "many"),
    "an option that does not exist": (("--speed", "9"), "--speed"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_used(case: str, existing: Path, task_file: Path) -> None:
    arguments, word = OPTIONS[case]
    one_line(refused(existing, task_file, *arguments), word)


def test_a_budget_below_the_fastest_in_a_new_folder_writes_no_run(linear_file: Path, tmp_path: Path, steady_meter: None) -> None:
    outcome = searches.cli("search", linear_file, "--budget", "0.1%", "--out", tmp_path / "run")
    one_line(outcome, "0.1%", "The fastest takes", "Raise the budget or widen the space")
    assert not (tmp_path / "run" / "run.json").exists()
    assert searches.cli("report", tmp_path / "run").code == 2


def test_an_unknown_command() -> None:
    one_line(searches.cli("compres"), "compres")


# Configuration and search-space files

CONFIGS = {
    "unknown key": ("budgett: 50%", "budgett"),
    "unknown inner key": ("target: {cores: 4}", "target.cores"),
    "not YAML": ("budget: [", "YAML"),
    "a list": ("[1, 2]", "mapping"),
    "wrong type": ("max_trials: many", "many"),
    "unknown device": ("target: {device: TPU}", "CPU"),
    "unknown precision": ("target: {precision: f8}", "precision"),
    "code": ("task: !!python/object/apply:os.getcwd []", "YAML"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_cannot_be_used(case: str, existing: Path, task_file: Path, tmp_path: Path) -> None:
    body, word = CONFIGS[case]
    (tmp_path / "config.yaml").write_text(body)
    one_line(refused(existing, task_file, "--config", tmp_path / "config.yaml"), word)


def test_a_configuration_that_is_missing(existing: Path, task_file: Path) -> None:
    one_line(refused(existing, task_file, "--config", "nowhere.yaml"), "nowhere.yaml")


SPACES = {
    "unknown key": ("prunning: []", "prunning"),
    "unknown key of a rule": ("pruning: [{groups: '*', ratio: [0.5]}]", "ratio"),
    "layer pattern without a match": ("precision: [{layers: 'head.*', weights: [8]}]", "head.*"),
    "group pattern without a match": ("pruning: [{groups: 'head', ratios: [0.5]}]", "stem"),
    "exclude without a match": ("precision: [{layers: '*', exclude: nowhere, weights: [8]}]", "nowhere"),
    "bad regular expression": ("precision: [{layers: 're:[', weights: [8]}]", "re:["),
    "5 bits": ("precision: [{layers: '*', weights: [5]}]", "5"),
    "9 bits": ("precision: [{layers: '*', weights: [8], activations: [9]}]", "9"),
    "a ratio above one": ("pruning: [{groups: '*', ratios: [0.5, 1.5]}]", "[0, 1]"),
    "a negative ratio": ("pruning: [{groups: '*', ratios: [-0.5]}]", "[0, 1]"),
    "a sparsity of one": ("sparsity: [{layers: '*', levels: [1]}]", "[0, 1)"),
    "no ratios": ("pruning: [{groups: '*', ratios: []}]", "ratios"),
    "not YAML": ("pruning: {", "YAML"),
}


@pytest.mark.parametrize("case", SPACES)
def test_a_search_space_that_cannot_be_used(case: str, existing: Path, task_file: Path, tmp_path: Path) -> None:
    body, word = SPACES[case]
    (tmp_path / "space.yaml").write_text(body)
    one_line(refused(existing, task_file, "--space", tmp_path / "space.yaml"), word)


# Run folders


def test_a_folder_with_a_run_is_not_overwritten(existing: Path, task_file: Path, linear_file: Path) -> None:
    before = searches.picture(existing)
    for file in (task_file, linear_file):
        one_line(searches.cli("search", file, "--out", existing), "digits", "--resume", "another --out")
    assert searches.picture(existing) == before


CHANGES = {
    "another task": ("task = models.search_task(models.build('conv'), 100, metric='mse')", (), "model"),
    "another model": ("task = models.search_task(models.build('resnet'))", (), "model"),
    "other validation data": ("task = models.search_task(valid=models.digits()['test'])", (), "valid data"),
    "no test data": ("task = models.search_task(test=None)", (), "test data"),
    "more training data": ("task = models.search_task(train=models.digits()['train'])", (), "train samples"),
    "another metric": ("task = models.search_task(metric='mae')", (), "metric"),
    "another space": ("task = models.search_task()", ("--space", "int8"), "space"),
    "another number of threads": ("task = models.search_task()", ("--threads", "2"), "threads"),
    "another seed": ("task = models.search_task()", ("--seed", "1"), "seed"),
    "other epochs": ("task = models.search_task()", ("--epochs", "2"), "epochs"),
    "other epochs of the task": ("task = models.search_task(epochs=2)", (), "epochs"),
    "another learning rate of the task": ("task = models.search_task(learning_rate=1e-3)", (), "learning_rate"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_run_is_resumed_with_the_same_definition_only(case: str, run_copy: Path, tmp_path: Path) -> None:
    body, options, word = CHANGES[case]
    path = searches.write_task(tmp_path / "digits_task.py", body)
    one_line(refused(run_copy, path, *options), "resumed run", word, "Choose another --out")


def test_foreign_files_are_left_alone(linear_file: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    one_line(searches.cli("search", linear_file, "--out", tmp_path), "thesis.txt")
    one_line(searches.cli("search", linear_file, "--out", tmp_path / "thesis.txt"), "thesis.txt")
    assert searches.picture(tmp_path).keys() == {"thesis.txt"}


DAMAGE = {
    "study.db": (b"no database", "study.db"),
    "run.json": (b"{", "run.json"),
    "trials/0002/record.json": (b"{}", "record.json"),
    "config.yaml": (b"budget: [", "config.yaml"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_named_and_left_alone(name: str, run_copy: Path, task_file: Path) -> None:
    content, word = DAMAGE[name]
    (run_copy / name).write_bytes(content)
    before = searches.picture(run_copy)
    one_line(searches.cli("search", task_file, "--out", run_copy, "--resume", "--budget", "4x"), word)
    assert searches.picture(run_copy) == before


def test_a_damaged_study_is_made_again_once_it_is_removed(run_copy: Path, task_file: Path) -> None:
    (run_copy / "study.db").unlink()
    outcome = searches.cli("search", task_file, "--out", run_copy, "--resume")
    assert outcome.code == 0, outcome.err
    assert (run_copy / "study.db").is_file()


@pytest.mark.parametrize("command", ["plot", "report"])
def test_looking_at_what_is_not_a_run(command: str, tmp_path: Path) -> None:
    one_line(searches.cli(command, tmp_path / "nowhere"), "run.json")


@pytest.mark.parametrize(
    ("options", "word"),
    [(("--trial", "99"), "99"), (("--best", "--fastest"), "One of"), (("--max-accuracy-drop", "none"), "none")],
)
def test_an_export_that_is_not_possible(options: tuple[str, ...], word: str, existing: Path, tmp_path: Path) -> None:
    before = searches.picture(existing)
    one_line(searches.cli("export", existing, *options, "--out", tmp_path / "bundle"), word)
    assert searches.picture(existing) == before
    assert not (tmp_path / "bundle").exists()


def test_exporting_from_what_is_not_a_run(tmp_path: Path) -> None:
    one_line(searches.cli("export", tmp_path, "--best", "--out", tmp_path / "bundle"), "run.json")


def test_verifying_what_is_not_a_bundle(existing: Path) -> None:
    one_line(searches.cli("verify", existing), "SHA256SUMS")


def test_a_metric_that_returns_nan(tmp_path: Path, steady_meter: None) -> None:
    body = "def strange(predictions, targets):\n    return float('nan')\n"
    body += "task = models.search_task(models.linear(), 50, metric=strange, direction='maximize')"
    path = searches.write_task(tmp_path / "nan_task.py", body)
    one_line(searches.cli("search", path, "--out", tmp_path / "run"), "metric strange", "nan")
    path.write_text(path.read_text().replace("float('nan')", "0.5"))
    mended = searches.cli("search", path, "--out", tmp_path / "run", "--resume", "--space", "int8", "--trials", "1")
    assert mended.code == 0, mended.err


POLICIES = {
    "unknown layer": ('{"layers": {"nowhere": {"weights": 8}}}', "'nowhere'"),
    "unknown group": ('{"pruning": {"nowhere": 0.5}}', "'nowhere'"),
    "frozen group": ('{"pruning": {"1": 0.5}}', "output"),
    "5 bits": ('{"layers": {"1": {"weights": 5}}}', "5"),
    "ratio": ('{"pruning": {"1": 1.5}}', "[0, 1]"),
    "unknown key": ('{"layer": {}}', "['layer']"),
    "pattern of nothing": ('{"layers": {"conv*": {"weights": 8}}}', "It has: 1"),
    "not YAML": ("{", "YAML"),
}


@pytest.mark.parametrize("case", POLICIES)
def test_a_policy_that_cannot_be_used(case: str, linear_file: Path, tmp_path: Path, steady_meter: None) -> None:
    body, word = POLICIES[case]
    (tmp_path / "policy.json").write_text(body)
    outcome = searches.cli("compress", linear_file, "--policy", tmp_path / "policy.json", "--out", tmp_path / "run")
    one_line(outcome, word)


# What works


def test_a_dry_run_describes_the_search_and_writes_nothing(task_file: Path, tmp_path: Path) -> None:
    options = ("--dry-run", "--budget", "3x", "--trials", "5", "--time", "10m", "--out", tmp_path / "run")
    outcome = searches.cli("search", task_file, *options)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    for words in ("7 layers, 4 prunable groups", "4 decisions", "Budget:", "fastest candidate", "Estimated", "5 candidates"):
        assert words in outcome.out
    assert "fc is not pruned: its channels are the model's output" in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", ["epochs=1", "epochs=2", "batch_size=25", "fine_tune=lambda model, teacher, epochs: None"])
def test_a_dry_run_estimates_however_short_the_training_is(options: str, tmp_path: Path, steady_meter: None) -> None:
    path = searches.write_task(tmp_path / "short_task.py", f"task = models.search_task(models.linear(), 50, {options})")
    outcome = searches.cli("search", path, "--space", "int8", "--dry-run", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "s a candidate" in outcome.out


def test_a_dry_run_refuses_what_a_search_refuses(task_file: Path, tmp_path: Path) -> None:
    one_line(searches.cli("search", task_file, "--dry-run", "--space", "int9", "--out", tmp_path / "run"), "int9")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def searched(linear_file: Path, bits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, searches.Outcome]:
    """A search of three policies, its output as JSON."""
    out = tmp_path_factory.mktemp("searched") / "run"
    with pytest.MonkeyPatch.context() as patch:
        searches.steady_meter(patch)
        return out, searches.cli("search", linear_file, "--space", bits_file, "--trials", "2", "--out", out, "--json")


def test_json_is_all_that_is_printed(searched: tuple[Path, searches.Outcome]) -> None:
    out, outcome = searched
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    front = pd.read_csv(out / "front.csv")
    assert [row["trial"] for row in printed["front"]] == list(front["trial"])
    assert printed["out"] == str(out)
    assert printed["budget_ms"] is None


def test_the_resolved_configuration_runs_again_elsewhere(
    searched: tuple[Path, searches.Outcome], tmp_path: Path, steady_meter: None
) -> None:
    out, _ = searched
    outcome = searches.cli("search", "--config", out / "config.yaml", "--out", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    first, second = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (out, tmp_path / "again"))
    assert first | {"out": str(tmp_path / "again")} == second
    assert [r.policy for r in searches.records(out)] == [r.policy for r in searches.records(tmp_path / "again")]


def test_a_run_goes_on_with_nothing_but_its_folder(
    searched: tuple[Path, searches.Outcome], tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(searched[0], tmp_path / "run", symlinks=True))
    monkeypatch.chdir(tmp_path)
    before = len(searches.candidates(out))
    outcome = searches.cli("search", "--resume", "--out", "run", "--trials", "3")
    assert outcome.code == 0, outcome.err
    assert len(searches.candidates(out)) == before
    assert "Nothing new is left" in outcome.out


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, bits_file: Path, steady_meter: None) -> None:
    body = "def stop(model, *, teacher, epochs):\n    raise KeyboardInterrupt\n"
    path = searches.write_task(tmp_path / "stop_task.py", body + "task = models.search_task(models.linear(), 50, fine_tune=stop)")
    outcome = searches.cli("search", path, "--space", bits_file, "--trials", "2", "--out", tmp_path / "run")
    assert outcome.code == 130
    assert f"--resume --out {tmp_path / 'run'}" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_full_disk_is_one_line_and_exit_code_1(
    linear_file: Path, tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("autocompress.run_folder.shutil.disk_usage", lambda path: usage._replace(free=10))
    outcome = searches.cli("search", linear_file, "--space", "int8", "--out", tmp_path / "run")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert "full" in outcome.err


def test_the_table_fits_a_terminal(run_copy: Path, task_file: Path) -> None:
    outcome = searches.cli("search", task_file, "--out", run_copy, "--resume")
    assert outcome.code == 0, outcome.err
    table = outcome.out[outcome.out.index("The measured front") :]
    assert "accuracy" in table
    assert all(len(line) <= 80 for line in table.splitlines() if "│" not in line and "/" not in line)
    assert "…" not in table


@pytest.mark.parametrize("policy", ["layers: {'*': {weights: 8, activations: 8}, 'type:Linear': {weights: 4}}", "mixed"])
def test_a_policy_of_patterns_from_the_command_line(policy: str, linear_file: Path, tmp_path: Path, steady_meter: None) -> None:
    if policy.startswith("layers"):
        (tmp_path / "hand.yaml").write_text(policy)
        policy = str(tmp_path / "hand.yaml")
    outcome = searches.cli("compress", linear_file, "--policy", policy, "--out", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["plan"]["policy"] == {"pruning": {}, "layers": {"1": {"weights": 4, "activations": 8}}}


def test_one_policy_from_the_command_line(linear_file: Path, tmp_path: Path, steady_meter: None) -> None:
    (tmp_path / "policy.yaml").write_text("layers: {'1': {weights: 4, activations: 8}}")
    outcome = searches.cli(
        "compress", linear_file, "--policy", tmp_path / "policy.yaml", "--out", tmp_path / "run", "--json", "--epochs", "2"
    )
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["plan"]["policy"]["layers"]["1"]["weights"] == 4
    assert (tmp_path / "run" / "trials" / f"{record['number']:04d}" / "model.xml").is_file()


def test_plots_and_reports_are_written_where_they_are_asked_for(run_copy: Path, tmp_path: Path) -> None:
    outcome = searches.cli("plot", run_copy, "--out", tmp_path / "front.svg")
    assert outcome.out.strip() == str(tmp_path / "front.svg")
    assert "<svg" in (tmp_path / "front.svg").read_text()
    (run_copy / "report.html").unlink()
    assert searches.cli("report", run_copy).out.strip() == str(run_copy / "report.html")
    assert (run_copy / "report.html").stat().st_size > 1000


# The same in processes of their own


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    process = searches.start_cli("search", "nowhere.py", "--out", tmp_path / "run")
    out, err = process.communicate(timeout=60)
    one_line(searches.Outcome(process.returncode, out, err), "nowhere.py")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_in_a_process_of_its_own_is_silent_on_stderr(linear_file: Path, tmp_path: Path) -> None:
    process = searches.start_cli("search", linear_file, "--space", "int8", "--dry-run", "--out", tmp_path / "run")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert err == ""
    assert "1 layers, 0 prunable groups" in out
