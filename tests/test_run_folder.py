import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from records import make_record

from autocompress.errors import DiskFullError, RunFolderError
from autocompress.policy import Policy
from autocompress.record import Plan, State
from autocompress.run_folder import RunFolder

PLAN = Plan.of(Policy({"stem": 0.5}))
OTHER_PLAN = Plan.of(Policy({"stem": 0.75}))
HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.write_json("run.json", {"name": "mine"})
    return run


@pytest.fixture
def break_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let every text be written half, then fail with an errno."""

    def half(path: Path, text: str, *_: object, **__: object) -> int:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError(code, "injected")

    def start(number: int) -> None:
        nonlocal code
        code = number
        monkeypatch.setattr(Path, "write_text", half)

    code = 0
    return start


@pytest.fixture
def other_process(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder.file(".lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def bundle(text: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        (path / "model.xml").write_text(text)
        (path / "promise.json").write_text(text)

    return build


def best(run: RunFolder) -> list[str]:
    """The files of the best bundle, read through the link."""
    return [run.file("best").joinpath(name).read_text() for name in ("model.xml", "promise.json")]


def hidden(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.path.glob(".*") if path.name != ".lock")


def test_a_folder_holds_a_run_once_there_is_a_trial(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "deep" / "run")
    run.create()
    run.write_json("run.json", {})
    assert (run.exists, run.records()) == (False, [])
    run.open_trial(PLAN, "seed")
    assert run.exists
    assert RunFolder(run.path).exists


def test_a_discarded_trial_runs_again(folder: RunFolder) -> None:
    record = folder.open_trial(PLAN, "baseline:original")
    folder.save(record.model_copy(update={"state": State.FAILED}))
    folder.discard(record)
    assert RunFolder(folder.path).records() == []
    assert folder.open_trial(PLAN, "baseline:original").state == State.RUNNING


def test_an_existing_run_can_be_opened_again(folder: RunFolder) -> None:
    folder.open_trial(PLAN, "seed")
    again = RunFolder(folder.path)
    again.create()
    assert len(again.records()) == 1


def test_what_a_killed_start_left_behind_is_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.12345678").touch()
    RunFolder(tmp_path).create()


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(RunFolderError, match=r"empty folder; got .* with thesis\.tex\. Choose another --out"):
        RunFolder(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("words")
    with pytest.raises(RunFolderError, match="with a file"):
        RunFolder(file).create()
    with pytest.raises(RunFolderError, match="can be written"):
        RunFolder(file / "below").create()
    assert file.read_text() == "words"


def test_text_and_json_come_back(folder: RunFolder) -> None:
    folder.write_text("trials/0003/policy.json", '{"a": 1}')
    assert folder.read_json("trials/0003/policy.json") == {"a": 1}
    folder.write_json("run.json", {"name": "größer"})
    assert folder.read_json("run.json") == {"name": "größer"}


def test_nothing_but_the_file_is_left_by_writing(folder: RunFolder) -> None:
    folder.write_text("trials.csv", "a")
    folder.write_text("trials.csv", "b")
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.json", "trials", "trials.csv"]


def test_writing_that_fails_leaves_the_old_file(folder: RunFolder, break_writing: Callable[[int], None]) -> None:
    folder.write_text("trials.csv", "old and complete")
    break_writing(errno.EIO)
    with pytest.raises(OSError, match="injected"):
        folder.write_text("trials.csv", "new and longer than the old one")
    assert folder.file("trials.csv").read_text() == "old and complete"
    assert hidden(folder) == []


def test_the_new_file_takes_the_place_of_the_old_one_in_one_step(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "injected")

    folder.write_text("trials.csv", "old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="injected"):
        folder.write_text("trials.csv", "new")
    assert folder.file("trials.csv").read_text() == "old"
    assert hidden(folder) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_a_full_disk_is_said_and_leaves_the_old_record(
    folder: RunFolder, break_writing: Callable[[int], None], code: int
) -> None:
    record = folder.open_trial(PLAN, "seed")
    break_writing(code)
    with pytest.raises(DiskFullError, match=r"disk of .*run is full.*resume"):
        folder.save(record.model_copy(update={"state": State.COMPLETE}))
    assert [kept.state for kept in RunFolder(folder.path).records()] == [State.RUNNING]


def test_too_little_space_is_said_before_the_work(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.require_space()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    folder.require_space(1000)
    with pytest.raises(DiskFullError):
        folder.require_space()


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"], ids=["missing", "empty", "cut", "binary"])
def test_json_that_cannot_be_read_is_refused(folder: RunFolder, content: bytes | None) -> None:
    if content is not None:
        folder.file("landmarks.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"readable landmarks\.json"):
        folder.read_json("landmarks.json")


def test_records_come_back_in_order(folder: RunFolder) -> None:
    records = [make_record(number, policy=Policy({"stem": (number + 1) / 16})) for number in (2, 0, 11, 1)]
    for record in records:
        folder.save(record)
    again = RunFolder(folder.path).records()
    assert again == sorted(records, key=lambda record: record.number)


def test_a_saved_record_is_seen_at_once(folder: RunFolder) -> None:
    record = folder.open_trial(PLAN, "seed")
    folder.save(record.model_copy(update={"state": State.FAILED, "error": "ValueError: no"}))
    assert [kept.state for kept in folder.records()] == [State.FAILED]


def test_a_plan_has_one_trial(folder: RunFolder) -> None:
    first = folder.open_trial(PLAN, "seed")
    assert folder.open_trial(OTHER_PLAN, "sampler").number == 1
    assert folder.open_trial(PLAN, "sampler") == first
    assert RunFolder(folder.path).open_trial(PLAN, "sampler") == first
    assert folder.read_json("trials/0000/policy.json") == PLAN.policy


def test_the_number_of_a_new_trial_is_never_taken(folder: RunFolder) -> None:
    for number in (9999, 10000):
        folder.save(make_record(number, policy=Policy({"head": number / 20000})))
    assert RunFolder(folder.path).open_trial(PLAN, "sampler").number == 10001


@pytest.mark.parametrize("content", ["", "{", "{}", '{"number": "x"}', "\0"], ids=["empty", "cut", "hollow", "wrong", "zeros"])
def test_a_damaged_record_is_refused_with_the_remedy(folder: RunFolder, content: str) -> None:
    folder.open_trial(PLAN, "seed")
    folder.write_text("trials/0000/record.json", content)
    with pytest.raises(RunFolderError, match=r"record\.json is readable; got .*0000/record\.json.*Remove that trial's folder"):
        RunFolder(folder.path).records()


def test_a_trial_without_a_record_is_started_anew(folder: RunFolder) -> None:
    folder.write_json("trials/0000/policy.json", {})
    assert folder.open_trial(PLAN, "seed").number == 0


def test_another_process_that_holds_the_folder_is_respected(folder: RunFolder, other_process: subprocess.Popen[str]) -> None:
    with pytest.raises(RunFolderError, match=r"One search at a time.*another process holds"), folder.locked():
        pass
    other_process.kill()
    other_process.wait()
    with folder.locked():
        folder.write_text("trials.csv", "mine")


def test_the_folder_is_free_again_after_an_error(folder: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), folder.locked():
        raise ZeroDivisionError
    with RunFolder(folder.path).locked():
        folder.write_text("trials.csv", "mine")


def test_only_the_models_of_other_trials_are_dropped(folder: RunFolder) -> None:
    files = ["model.bin", "model.xml", "policy.json", "record.json", "weights.safetensors"]
    for number in range(3):
        for name in files:
            folder.write_text(f"trials/{number:04d}/{name}", "")
    folder.write_text("trials/notes/model.xml", "mine")
    folder.drop_models({1})
    left = {number: sorted(path.name for path in folder.trial(number).iterdir()) for number in range(3)}
    assert left == {0: ["policy.json", "record.json"], 1: files, 2: ["policy.json", "record.json"]}
    assert [folder.has_model(number) for number in range(3)] == [False, True, False]
    assert folder.file("trials/notes/model.xml").is_file()


def test_the_best_is_replaced_whole_and_the_old_one_removed(folder: RunFolder) -> None:
    for number, text in enumerate(["first", "second", "third"]):
        folder.replace_best(number, bundle(text))
        assert best(folder) == [text, text]
    assert [name[:11] for name in hidden(folder)] == [".best-0002-"]


def test_while_the_next_best_is_built_the_link_leads_to_the_old_one(folder: RunFolder) -> None:
    folder.replace_best(0, bundle("first"))
    seen = []

    def build(path: Path) -> None:
        bundle("second")(path)
        seen.append(best(folder))

    folder.replace_best(1, build)
    assert seen == [["first", "first"]]
    assert best(folder) == ["second", "second"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("bad"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "full"), DiskFullError),
    ],
    ids=["error", "interrupt", "disk full"],
)
@pytest.mark.parametrize("before", [["first"], []], ids=["after one", "at first"])
def test_a_build_that_fails_changes_nothing(
    folder: RunFolder, before: list[str], error: BaseException, raised: type[BaseException]
) -> None:
    for text in before:
        folder.replace_best(0, bundle(text))
    listing = hidden(folder)

    def build(path: Path) -> None:
        bundle("half")(path)
        raise error

    with pytest.raises(raised):
        folder.replace_best(1, build)
    assert hidden(folder) == listing
    assert [best(folder)] == [["first", "first"]] if before else not folder.file("best").exists()


def test_what_a_killed_replacement_left_behind_is_swept_up(folder: RunFolder) -> None:
    folder.file(".best-0000-killed").mkdir()
    folder.file(".best-link-killed").symlink_to(".best-0000-killed")
    folder.replace_best(1, bundle("new"))
    assert best(folder) == ["new", "new"]
    assert [name[:11] for name in hidden(folder)] == [".best-0001-"]


def test_a_run_that_was_copied_without_links_gets_its_best_as_well(folder: RunFolder, tmp_path: Path) -> None:
    folder.replace_best(0, bundle("first"))
    shutil.copytree(folder.path, tmp_path / "copy", symlinks=False)
    copy = RunFolder(tmp_path / "copy")
    copy.replace_best(1, bundle("second"))
    assert best(copy) == ["second", "second"]
