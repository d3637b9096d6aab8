"""Tests of `neumann runs`: list, show, watch, clean and resume, and the harmlessness of a foreign run folder."""

from __future__ import annotations

import functools
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from neumann.cli import runs as command
from neumann.cli.main import main as cli
from neumann.config import RunSpec, load_spec, make_spec
from neumann.errors import UserError, printable
from neumann.store import RunFolder, confusion, listing, per_image, removal
from neumann.store.details import edited
from neumann.store.files import read_json, write_json
from neumann.store.index import NAME
from neumann.store.listing import Filters, Row, list_runs, pick
from neumann.store.vouching import sealed, with_curve
from tests.support.launching import wait_for

SCORES = {"held": {"loss": 0.5, "error": 0.25, "n": 300}, "base": {"loss": 0.4, "error": 0.125, "n": 300}}


@functools.cache  # a third of a second each
def spec_of(*overrides: str) -> RunSpec:
    return make_spec(["trainer.max_epochs=2", "logger=none", *overrides])


def put(*overrides: str, status: str = "finished", step: int = 74) -> RunFolder:
    """Write what a run leaves in ./runs, without training it."""
    spec = spec_of(*overrides)
    folder = RunFolder(spec.folder)
    folder.path.mkdir(parents=True)
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(spec.as_dict())))
    write_json(folder.signed, spec.signed())
    write_json(folder.provenance, {"attempts": [{"choices": spec.choices}]})
    folder.append_measurement({"step": step, "validation": SCORES, "train_loss": 0.7, "lr": 0.1})
    folder.set_status(status, attempt=1, step=step, message="it broke" if status == "failed" else None)
    if status in ("finished", "diverged"):
        result = {"status": status, "signature": spec.signature, "step": step, "validation": SCORES, "test": SCORES}
        folder.write_result(result)
    return folder


def never(spec: RunSpec) -> int:
    raise AssertionError("nothing may be trained")


def said(*words: str, code: int = 0) -> str:
    """Run `neumann runs` and return what it printed."""
    out = io.StringIO()
    assert command.main(words, Console(file=out, width=200), train=never) == code
    return out.getvalue()


def names(*words: str, code: int = 0) -> list[str]:
    return [line.split()[1] for line in said(*words, code=code).splitlines()[1:]]


@pytest.fixture
def four() -> list[RunFolder]:
    folders = [
        put("optimizer=sgd", "seed=0"),
        put("optimizer=sgd", "optimizer.lr=0.3", "seed=1", status="failed", step=37),
        put("optimizer=neumann", "study=other", "name=mine"),
        put("optimizer=neumann", "seed=4", status="interrupted", step=37),
    ]
    for age, folder in zip((400, 300, 200, 100), folders, strict=True):
        for file in folder.path.iterdir():
            os.utime(file, (time.time() - age, time.time() - age))
    return folders


@pytest.mark.medium
def test_a_list_says_what_matters_newest_last(four: list[RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("  ") for line in said().splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert lines[0] == [
        "study",
        "name",
        "status",
        "step",
        "validation",
        "test",
        "seed",
        "age",
        "differs in",
        "signature",
    ]
    signatures = [folder.path.name[-12:] for folder in four]
    assert lines[1] == ["default", "digits-small_cnn-sgd-s0", "finished", "74/74", "12.50 %", "12.50 %", "0", "7 min", "lr=0.1", signatures[0]]  # fmt: skip
    assert lines[2] == [
        "default",
        "digits-small_cnn-sgd-s1",
        "failed",
        "37/74",
        "12.50 %",
        "1",
        "5 min",
        "lr=0.3",
        signatures[1],
    ]
    assert lines[3][:3] == ["other", "mine", "finished"]
    assert lines[4][1:4] == ["digits-small_cnn-neumann-s4", "interrupted", "37/74"]
    assert cli(["runs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["signature"] for row in rows] == signatures
    assert rows[1] == {
        "folder": str(four[1].path), "study": "default", "name": "digits-small_cnn-sgd-s1", "signature": signatures[1],
        "status": "failed", "message": "it broke", "step": 37, "total": 74, "validation": 0.125, "test": None, "seed": 1,
        "attempt": 1, "time": pytest.approx(time.time() - 300, abs=30),
        "differs": {"optimizer.lr": 0.3},
    }  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("width", [80, 60, 100, 40])
def test_a_narrow_terminal_keeps_errors_and_signatures_whole(width: int) -> None:
    rates = (0.1, 0.3, 1.0)
    long = "image_folder-a_rather_long_model_name-sgd-s0"
    folders = [put("optimizer=sgd", f"optimizer.lr={rate}", "batch.size=64", "study=rates") for rate in rates]
    folders += [put("optimizer=sgd", f"optimizer.lr={rate}", f"name={long}", "study=rates") for rate in rates]
    out = io.StringIO()
    terminal = Console(file=out, width=width, force_terminal=True, color_system=None)
    assert command.main([], terminal, train=never) == 0
    lines = [line for line in out.getvalue().splitlines() if "finished" in line]
    assert len(lines) == len(folders)
    signatures = {folder.path.name[-12:] for folder in folders}
    if width == 40:  # a few lines for each run
        assert {line.split()[1] for line in out.getvalue().splitlines() if "signature " in line} == signatures
        assert out.getvalue().count("12.50 %") == 2 * len(folders)
        assert out.getvalue().count(long) == 3
        return
    assert max(map(len, out.getvalue().splitlines())) <= width
    assert {line[-12:] for line in lines} == signatures
    for line in lines:
        assert line.count("12.50 %") == 2
    for rate in ("lr=0.1", "lr=0.3", "lr=1.0"):
        assert out.getvalue().count(rate) == 2


@pytest.mark.medium
def test_filters_name_studies_statuses_names_and_settings(four: list[RunFolder]) -> None:
    everything = ["digits-small_cnn-sgd-s0", "digits-small_cnn-sgd-s1", "mine", "digits-small_cnn-neumann-s4"]
    assert names() == everything
    assert names("--study", "oth*") == ["mine"]
    assert names("--status", "failed,interrupted") == [everything[1], everything[3]]
    assert names("*-sgd-*") == everything[:2]
    assert names("*-sgd-*", "mine") == everything[:3]
    assert names(four[3].path.name) == everything[3:]
    assert names("--where", "optimizer.lr=0.1") == [everything[0], *everything[2:]]
    assert names("--where", "optimizer.lr=3e-1") == everything[1:2]
    assert names("--where", "optimizer._target_=*Neumann", "--where", "seed=4") == everything[3:]
    assert names("--where", "logger.kind=none", "--where", "optimizer.momentum=[0.5,0.9]") == everything[2:]
    assert names("--where", "optimizer.min_distance=null") == everything[2:]
    assert names("--where", "optimizer.min_distance=null", "--where", "seed=0") == ["mine"]
    shutil.copytree("runs", "elsewhere")
    shutil.rmtree("runs/default")
    assert names("elsewhere") == names("output=elsewhere") == names("output='elsewhere'") == everything
    assert names("elsewhere/default") == [everything[0], everything[1], everything[3]]
    assert said("--study", "nothing", code=1) == "no run in runs fits\n"
    assert said("shwo", code=1) == "no run in runs fits; did you mean neumann runs show?\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["output=nowhere"], "there is no results folder nowhere: name one with output=FOLDER"),
        (["--status", "done"], "--status done is not a status: choose from diverged, failed, finished"),
        (["--status", "finnished"], "did you mean 'finished'"),
        (["--where", "optimizer.lrr=1"], "no run has such a key: did you mean 'optimizer.lr'?"),
        (["--where", "optimizer=1"], "optimizer is a section: did you mean 'optimizer."),
        (["--where", "seed"], "--where seed: write KEY=VALUE, such as optimizer.lr=0.1"),
        (["optimizer.lr=1"], "cannot read 'optimizer.lr=1': a value is looked for with --where optimizer.lr=1"),
        (["--jsno"], "neumann runs takes no --jsno: did you mean '--json'?"),
        (["show"], "neumann runs show takes one run"),
        (["show", "digits-small_cnn-sgd-s7"], "did you mean 'digits-small_cnn-sgd-s"),
        (["show", "0000000"], "there is no run 0000000 in runs: "),
        (["clean", "--status", "finished"], "clean removes no finished run: did you mean 'failed'?"),
        (["clean", "--status", "running"], "clean removes no running run"),
        (["resume", "mine", "--turst"], "did you mean '--trust'?"),
        (["runs", "also"], "one results folder at a time"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_sentence(words: list[str], sentence: str, four: list[RunFolder], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    Path("also").mkdir()
    assert cli(["runs", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


def test_a_name_with_marks_of_globs_or_an_equals_sign_is_found_by_itself(four: list[RunFolder]) -> None:
    odd = ("größe=日本", "a[b]=(c)", "it's #~ x")
    folders = [put("optimizer=sgd", f'name="{name}"', f"seed={20 + i}") for i, name in enumerate(odd)]
    for name, folder in zip(odd, folders, strict=True):
        assert pick(Path("runs"), name) == folder.path
        for words in ([name], ["--where", f"name={name}"]):
            assert folder.path.name[-12:] in said(*words)
        assert name in said("show", name)
    with pytest.raises(UserError, match=r"there is no run 日 in runs: (did you mean 'größe=日本'|choose from)"):
        pick(Path("runs"), "日")
    with pytest.raises(UserError, match=r"cannot read 'optimizer\.lr=1': a value is looked for with --where"):
        command.main(["größe=日本", "optimizer.lr=1"], Console(), train=never)


def test_one_run_is_picked_by_signature_name_or_path(four: list[RunFolder]) -> None:
    Path("a=b").mkdir()
    lies = Path("a=b", four[0].path.name)
    lies.symlink_to(four[0].path.resolve())
    assert four[0].path.name[-12:] in said("show", str(lies))
    output, folder = Path("runs"), four[0].path
    for wanted in (folder.name, folder.name[-12:], folder.name[-12:-6], "digits-small_cnn-sgd-s0", str(folder), str(folder.resolve())):  # fmt: skip
        assert pick(output, wanted).resolve() == folder.resolve()
    put("optimizer=sgd", "seed=0", "optimizer.lr=0.2")
    with pytest.raises(UserError, match="digits-small_cnn-sgd-s0 is 2 runs in runs: name one by its signature, "):
        pick(output, "digits-small_cnn-sgd-s0")


def test_runs_of_two_studies_with_one_signature_are_told_apart_by_their_paths(four: list[RunFolder]) -> None:
    folder = four[0].path
    other = Path("runs") / "elsewhere" / folder.name
    shutil.copytree(folder, other)
    with pytest.raises(UserError, match="is 2 runs in runs: name one by its path, ") as caught:
        pick(Path("runs"), folder.name[-12:])
    for path in str(caught.value).partition("its path, ")[2].split(", "):
        assert pick(Path("runs"), path) == Path(path)


@pytest.mark.medium
def test_a_shown_run_says_what_differs_from_the_default_and_how_it_ended(four: list[RunFolder]) -> None:
    four[1].error.write_text("Traceback\n  somewhere\nRuntimeError: it broke\n")
    (four[1].path / "output.log").write_text("".join(f"line {i}\n" for i in range(99)))
    text = said("show", four[1].path.name[-12:])
    for line in (
        "status       failed: it broke",
        "steps        37/74",
        "optimizer.lr ",
        "0.3  (default 0.1)",
        "trainer.max_epochs       2.0  (default 20.0)",
        "validation error, base  12.50 %, loss 0.4 (n = 300)",
        "RuntimeError: it broke",
        "line 98",
    ):
        assert line in text
    assert "derived." not in text
    assert "line 80\n" not in text
    default = make_spec()
    folder = RunFolder(default.folder)
    folder.path.mkdir()
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(default.as_dict())))
    assert "the default configuration" in said("show", default.signature)
    folder.config.unlink()
    assert "no comparison with the default: " in said("show", default.signature)


@pytest.mark.medium
def test_files_that_are_not_what_the_run_wrote_are_named(
    four: list[RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run = four[0]
    show = functools.partial(said, "show", run.path.name[-12:])
    result = run.result()
    assert result is not None
    run.measurements.write_text("")
    for step in (37, 74):
        run.append_measurement({"step": step, "validation": SCORES, "train_loss": 0.7, "lr": 0.1})
    run.write_result(sealed(with_curve(result, run.read_measurements())))
    assert "edited" not in show()
    whole, config = run.measurements.read_text(), run.config.read_text()
    run.measurements.write_text(whole.splitlines(keepends=True)[0])
    assert "  edited       measurements.jsonl is not what the run measured\n" in show()
    capsys.readouterr()
    assert cli(["runs", "show", "--json", run.path.name]) == 0
    assert json.loads(capsys.readouterr().out)["edited"] == ["measurements.jsonl is not what the run measured"]
    run.measurements.write_text(whole)
    assert "optimizer:" in config
    for old, new, told in (
        ("  lr: 0.1\n", "  lr: 0.3\n", "it says optimizer.lr=0.3, which was 0.1\n"),
        ("\nseed: 0\n", "\nseed: 7\nhorizon: 2\n", "it says seed=7, which was 0 and 1 more\n"),
        ("max_per_device: null", "max_per_device: 8", None),  # which cannot change a result
    ):
        assert config.count(old) == 1, old
        run.config.write_text(config.replace(old, new))
        text = show()
        if told is None:
            assert "edited" not in text
        else:
            assert f"  edited       config.yaml is not what the run was signed with: {told}" in text
    run.config.write_text(config)
    (run.path / "steps.jsonl").write_text('{"step": 1}\n')
    run.write_result(sealed({**result, "steps_digest": "0"}))
    assert "edited       steps.jsonl is not what the run logged\n" in show()


def test_the_index_answers_what_has_not_changed_and_only_that(four: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    output = Path("runs")
    reads: list[str] = []
    real = listing._read

    def count(folder: Path, stamp: Any) -> tuple[Row, bool]:
        reads.append(folder.name)
        return real(folder, stamp)

    monkeypatch.setattr(listing, "_read", count)
    first = list_runs(output, Filters())
    assert len(reads) == 4
    before = (output / NAME).stat().st_mtime_ns
    assert list_runs(output, Filters()) == first
    assert len(reads) == 4
    assert (output / NAME).stat().st_mtime_ns == before  # nothing new, nothing written
    assert [row.seed for row in list_runs(output, Filters(where=[("optimizer.lr", "0.3")]))] == [1]
    four[1].set_status("interrupted", step=38)
    again = {row.folder: row for row in list_runs(output, Filters())}
    assert reads[4:] == [four[1].path.name]
    assert again[str(four[1].path)].status == "interrupted"
    (four[0].path / "result.json").write_text("{")
    assert {row.folder: row.status for row in list_runs(output, Filters())}[str(four[0].path)] == "pending"
    shutil.rmtree(four[2].path)
    assert len(list_runs(output, Filters())) == 3
    assert str(four[2].path.name) not in (output / NAME).read_text()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1, "runs": 3}', '{"format": 1, "runs": {"/default/x": 1}}', "entries"])  # fmt: skip
def test_a_damaged_index_is_built_again(damage: str, four: list[RunFolder]) -> None:
    output = Path("runs")
    good = list_runs(output, Filters())
    index = output / NAME
    if damage == "entries":
        entries = read_json(index)
        for entry in entries["runs"].values():
            entry["row"].pop("status")
        index.write_text(json.dumps(entries))
    else:
        index.write_text(damage)
    assert list_runs(output, Filters()) == good
    assert list_runs(output, Filters()) == good


def test_a_folder_that_cannot_be_written_is_listed_all_the_same(four: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def refuse(file: Any, mode: str = "r", **more: Any) -> Any:
        if mode != "rb":
            raise OSError(30, "Read-only file system")
        return open(file, mode, **more)

    monkeypatch.setattr("neumann.store.files.open", refuse, raising=False)
    assert len(list_runs(Path("runs"), Filters())) == 4
    assert not (Path("runs") / NAME).exists()


def test_a_list_of_a_folder_that_holds_no_results_leaves_nothing_there(four: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    Path("volumes/data/cache-0123456789ab").mkdir(parents=True)  # such names are not ours alone
    Path("volumes/data/cache-0123456789ab/status.json").write_text('{"status": "failed"}')
    assert len(list_runs(Path("volumes"), Filters())) == 1
    assert not Path("volumes", NAME).exists()
    with monkeypatch.context() as root:
        root.setattr("os.geteuid", lambda: Path("runs").stat().st_uid + 1)
        assert len(list_runs(Path("runs"), Filters())) == 4
        assert not Path("runs", NAME).exists()  # another user's
    assert len(list_runs(Path("runs"), Filters())) == 4
    assert len(read_json(Path("runs", NAME))["runs"]) == 4


@pytest.mark.parametrize("damage", ["[", "", "a: *b\n", "3"])
def test_one_damaged_configuration_does_not_end_a_filtered_list(damage: str, four: list[RunFolder]) -> None:
    four[1].config.write_text(damage)
    with pytest.warns(UserWarning, match="config.yaml .* counts as one without that key"):
        assert len(names("--where", "logger.kind=none")) == 3
    with pytest.warns(UserWarning, match="config.yaml"):
        assert names("--where", "logger.kind=nothing", code=1) == []


def test_files_of_the_test_that_were_edited_are_named(four: list[RunFolder]) -> None:
    folder, right = four[0], np.arange(300) >= 75
    answers, about_answers = per_image.pack({"test.held": right, "test.base": right})
    counts, about_counts = confusion.pack(np.array([[0, 0, 225], [0, 1, 75]]), "base")
    scores = {point: {"loss": 0.5, "error": 0.25, "wrong": 75, "n": 300} for point in ("held", "base")}
    about = {per_image.KEY: about_answers, confusion.KEY: about_counts, "test": scores}
    folder.write_result(sealed({**(folder.result() or {}), **about}))
    (folder.path / per_image.FILE).write_bytes(answers)
    (folder.path / confusion.FILE).write_bytes(counts)
    assert edited(folder) == []
    (folder.path / per_image.FILE).write_bytes(bytes([answers[0] ^ 1]) + answers[1:])
    (folder.path / confusion.FILE).write_bytes(counts.replace(b"225", b"235"))
    assert edited(folder) == [
        f"{name} is missing or not what the run wrote" for name in (per_image.FILE, confusion.FILE)
    ]


@pytest.mark.parametrize("damage", ["fifo", "loop", "cut"])
def test_a_list_says_of_which_run_no_result_can_be_read(damage: str, four: list[RunFolder]) -> None:
    assert "missing or damaged" not in said()
    path = four[0].path / "result.json"
    whole = path.read_bytes()
    path.unlink()
    if damage == "fifo":
        os.mkfifo(path)
    elif damage == "loop":
        path.symlink_to(path.name)
    else:
        path.write_bytes(whole[:-5])
    (told,) = [line for line in said().splitlines() if "missing or damaged" in line]
    assert told == f"{four[0].path.name}: its result.json is missing or damaged"


def test_a_run_that_lives_and_one_that_does_not(four: list[RunFolder]) -> None:
    folder = four[3]
    with folder.claim():
        folder.set_status("running", attempt=2)
        assert names("--status", "running") == ["digits-small_cnn-neumann-s4"]
    assert names("--status", "running", code=1) == []
    row = {row.folder: row for row in list_runs(Path("runs"), Filters())}[str(folder.path)]
    assert (row.status, row.message) == ("interrupted", "it ended without writing its status: it was given back")
    with folder.claim():  # the files are as before, and still no index answers for a run whose process decides
        assert names("--status", "running") == ["digits-small_cnn-neumann-s4"]


def test_clean_asks_and_removes_what_failed_and_nothing_else(four: list[RunFolder], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert cli(["runs", "clean"]) == 2
    assert "there is no terminal to answer on: add --yes" in capsys.readouterr().err
    assert four[1].path.exists()
    assert "removed 1 of 1" in said("clean", "--yes")
    assert [folder.path.exists() for folder in four] == [True, False, True, True]
    assert said("clean", "--yes") == "no run in runs is failed\n"
    assert "removed 1 of 1" in said("clean", "--yes", "--status", "failed,interrupted")
    assert [folder.path.exists() for folder in four] == [True, False, True, False]
    assert not list(Path("runs").rglob(".removed-*"))


def test_where_nothing_fits_the_exit_code_is_what_the_help_says(four: list[RunFolder]) -> None:
    nothing = ("--where", "seed=999")
    said(*nothing, code=1)
    said("watch", "--until-done", *nothing, code=1)
    said("clean", "--yes", *nothing, code=0)
    assert all(folder.path.exists() for folder in four)
    help_text = " ".join(command.HELP.split())
    assert "with 1 where no run fits the filters of the list or of watch --until-done" in help_text
    assert "clean exits with 0 where there is nothing to remove" in help_text


@pytest.mark.parametrize("answer", ["y", "n"])
def test_clean_asks_on_a_terminal(answer: str, four: list[RunFolder]) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "neumann", "runs", "clean"], stdin=theirs, stdout=subprocess.PIPE, text=True
    )
    os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert "remove 1 folder(s), with their checkpoints? (y/N)" in out
    assert process.returncode == (0 if answer == "y" else 1)
    assert four[1].path.exists() == (answer == "n")


def test_clean_keeps_what_is_held_finished_or_a_link(four: list[RunFolder], tmp_path: Path) -> None:
    real = list_runs(Path("runs"), Filters(statuses=["failed"]))
    with four[1].claim():
        text = said("clean", "--yes", code=1)
    assert "is being trained right now" in text
    assert "removed 0 of 1" in text
    four[1].path.rename(tmp_path / "real")
    four[1].path.symlink_to(tmp_path / "real")
    assert "it is a link" in said("clean", "--yes", code=1)
    four[1].path.unlink()
    (tmp_path / "real").rename(four[1].path)
    four[1].write_result({"status": "finished"})  # between the list and the removal
    assert removal.remove(Path(real[0].folder), ["failed"]) == "it is finished by now"
    assert (four[1].path / "result.json").exists()


@pytest.mark.medium
def test_watch_prints_a_line_per_change_and_ends(four: list[RunFolder]) -> None:
    folder, out = four[3], io.StringIO()
    claimed, over = threading.Event(), threading.Event()

    def train() -> None:
        with folder.claim():
            folder.set_status("running", attempt=2)
            claimed.set()
            wait_for(lambda: "37/74" in out.getvalue())
            folder.append_measurement({"step": 55, "validation": SCORES})
            wait_for(lambda: "55/74" in out.getvalue())
            folder.append_measurement({"step": 74, "validation": SCORES})
            folder.write_result({"status": "finished", "step": 74, "validation": SCORES})
        over.set()

    thread = threading.Thread(target=train)
    thread.start()
    claimed.wait(10)
    words = ["watch", "--until-done", "*neumann-s4"]
    assert command.main(words, Console(file=out, width=300), train=never) == 0
    thread.join()
    lines = [line.split("  ")[2:] for line in out.getvalue().splitlines()]
    assert lines == [
        [folder.path.name, "running", "37/74", "validation error 12.50 %"],
        [folder.path.name, "running", "55/74", "validation error 12.50 %"],
        [folder.path.name, "finished", "74/74", "validation error 12.50 %"],
    ]


def test_watch_on_a_terminal_is_a_table_and_ctrl_c_ends_it(four: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    out = io.StringIO()

    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", ctrl_c)
    console = Console(file=out, width=200, height=6, force_terminal=True)
    assert command.main(["watch"], console, train=never) == 0
    assert "mine" in out.getvalue()
    assert "sgd-s0" not in out.getvalue()  # four do not fit
    assert "2 finished, 1 failed, 1 interrupted; Ctrl-C ends this, not the runs" in out.getvalue()


def test_resume_trains_what_the_folder_says_where_it_lies(four: list[RunFolder], tmp_path: Path) -> None:
    asked: list[RunSpec] = []

    def train(spec: RunSpec) -> int:
        asked.append(spec)
        return 0

    moved = tmp_path / "copied" / "from-elsewhere" / four[3].path.name
    shutil.copytree(four[3].path, moved)
    for words in (["resume", four[3].path.name[-12:]], ["resume", str(moved)]):
        assert command.main(words, Console(file=io.StringIO()), train=train) == 0
    assert [spec.signature for spec in asked] == [four[3].path.name[-12:]] * 2
    assert [spec.folder.resolve() for spec in asked] == [four[3].path.resolve(), moved]
    assert asked[0].as_dict()["optimizer"] == make_spec(["trainer.max_epochs=2", "optimizer=neumann", "seed=4"]).as_dict()["optimizer"]  # fmt: skip


@pytest.mark.parametrize("own", [[], ["launch.threads=1", "logger=wandb", "logger.project=mine"]])
def test_where_a_run_trains_and_who_is_told_are_not_the_folders_to_say(own: list[str], four: list[RunFolder]) -> None:
    """A foreign config.yaml once had the cluster execute its `launch.setup`, and sent its run to its own project."""
    theirs = make_spec(
        ["optimizer=sgd", "launch=slurm", "launch.setup=[touch executed]", "logger.mode=online"]
    ).as_dict()
    folder = four[3]
    config = OmegaConf.to_container(OmegaConf.load(folder.config))
    assert isinstance(config, dict)
    config |= {"launch": theirs["launch"], "logger": {**theirs["logger"], "project": "theirs", "tags": ["theirs"]}}
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    asked: list[RunSpec] = []
    words = ["resume", folder.path.name, *own]
    assert command.main(words, Console(file=io.StringIO()), train=lambda spec: asked.append(spec) or 0) == 0
    expected = make_spec(own).config
    (spec,) = asked
    assert (spec.config.launch, spec.config.logger) == (expected.launch, expected.logger)
    assert spec.signature == folder.path.name[-12:]


def test_a_resumed_run_without_a_logger_stays_without_one(four: list[RunFolder]) -> None:
    asked: list[RunSpec] = []
    folder = four[3]
    assert OmegaConf.load(folder.config).logger.kind == "none"
    for words in ([], ["logger=wandb"]):
        command.main(
            ["resume", folder.path.name, *words],
            Console(file=io.StringIO()),
            train=lambda spec: asked.append(spec) or 0,
        )
    assert [spec.config.logger.kind for spec in asked] == ["none", "wandb"]


YAML_BOMB = "!!python/object/apply:os.system ['touch executed']"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: f"{YAML_BOMB}\n", "damaged or not plain data"),
        (lambda text: text + f"more: {YAML_BOMB}\n", "damaged or not plain data"),
        (lambda text: text.replace("name: null", "name: ${oc.env:HOME}"), "name=${oc.env:HOME}: the record of a run has no"),
        (lambda text: text.replace("_target_: neumann.optim.Neumann", "_target_: os.system"), "would run code that is neither ours nor"),
        (lambda text: text.replace("_target_: neumann.schedules.cosine", "_target_: neumann.training.run.traceback.print_exc"), "is not a public name of neumann"),
        (lambda text: text.replace("_target_: neumann.optim.Neumann", "_target_: torch.optim.optimizer.functools.partial"), "--trust"),
        (lambda text: text.replace("lr: 0.1", "lr: 0.2"), "now gives run"),
        (lambda text: text[:300], ""),
        (lambda text: "", ""),
        (lambda text: "[1, 2]", ""),
        (lambda text: "a: " * 3, ""),
        (lambda text: "\x00\x1b]0;owned\x07", ""),
        (lambda text: "x: 1\n" * 400_000, "larger than"),
    ],
)  # fmt: skip
def test_a_foreign_folder_executes_nothing(change: Any, sentence: str, four: list[RunFolder], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    folder = four[3]
    folder.config.write_text(change(folder.config.read_text()))
    assert cli(["runs"]) == 0
    assert cli(["runs", "--where", "logger.kind=none", "*neumann-s4"]) in (0, 1, 2)
    assert cli(["runs", "show", folder.path.name]) == 0
    shown = capsys.readouterr().out
    assert os.environ["HOME"] not in shown
    assert "\x1b]" not in shown
    assert cli(["runs", "resume", folder.path.name]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "\x1b" not in err
    assert not Path("executed").exists()


@pytest.mark.parametrize("target", ["os.system", "torch.optim.optimizer.functools.partial", "torch.optim.sgd.SGD"])  # fmt: skip
def test_a_target_that_leads_elsewhere_needs_trust_though_its_signature_is_right(target: str) -> None:
    folder = Path("conf/optimizer")
    folder.mkdir(parents=True)
    (folder / "theirs.yaml").write_text(f"_target_: {target}\nlr: 0.1\n")
    record = make_spec(["optimizer=theirs"], ["conf"]).as_record()
    with pytest.raises(UserError, match=r"would run code that is neither ours nor .* --trust"):
        load_spec(record)
    assert load_spec(record, trust=True).signature == record["signature"]


def test_trust_lets_a_target_pass(four: list[RunFolder]) -> None:
    folder = four[3]
    text = folder.config.read_text().replace("_target_: neumann.optim.Neumann", "_target_: their_code.Optimizer")
    folder.config.write_text(text)
    with pytest.raises(UserError, match="now gives run"):  # no longer for its target, but for its signature
        command.main(["resume", folder.path.name, "--trust"], Console(file=io.StringIO()), train=never)


HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/] \u202e\x9b31m\r\n"


@pytest.mark.medium
def test_nothing_of_theirs_steers_a_terminal(four: list[RunFolder]) -> None:
    folder = four[1]
    for place in (folder.path / "output.log", folder.error):
        place.write_text(HOSTILE * 3)
    folder.set_status("failed", message=HOSTILE)
    shutil.copytree(folder.path, Path("runs/default") / f"{HOSTILE.replace('/', '')}-{'a' * 12}")
    shutil.copytree(folder.path, Path("runs") / HOSTILE.replace("/", "") / f"x-{'b' * 12}")
    for words in ([], ["show", "a" * 12], ["show", "b" * 12], ["watch", "--until-done"], ["clean", "--yes"]):
        for terminal in (False, True):
            out = io.StringIO()
            console = Console(file=out, width=200, force_terminal=terminal, color_system=None)
            command.main(words, console, train=never)
            text = (
                out.getvalue()
                .replace("\x1b[?25l", "")
                .replace("\x1b[?25h", "")
                .replace("\x1b[2K", "")
                .replace("\x1b[1A", "")
            )
            assert not any(c in text.replace("\r\x1b", "") for c in ("\x1b", "\x07", "\x9b", "\u202e", "owned\x07")), (
                words
            )
            if words != ["watch", "--until-done"] and not (words[:1] == ["clean"] and terminal):
                assert "[bold red]x[" in text
    assert printable("a\x1b\u202e\n\tb") == "a\\x1b\\u202e\\n\\tb"
    assert printable("a\n\tü€", lines=True) == "a\n\tü€"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", '{"status": "finished", "validation": "x", "test": [1], "step": {}}'),
        ("result.json", '{"status": "finished", "validation": {"held": {"error": "low"}}, "step": 3}'),
        ("measurements.jsonl", '{"step": 3, "validation": {"held": []}}\n{"step": "x"}\n[]\n'),
        ("measurements.jsonl", '{"step": 3, "validation": null, "epoch": NaN, "lr": {"a": 1}}\n'),
        ("signed.json", '{"config": {"derived": 3, "seed": "x"}}'),
        ("signed.json", "[" * 100_000),
        ("provenance.json", '{"attempts": []}'),
        ("status.json", '{"status": "running", "attempt": "x", "step": [], "message": 7}'),
        (".claim.1", "held\n{}"),
    ],
)  # fmt: skip
def test_files_of_another_shape_are_read_as_not_there(name: str, content: str, four: list[RunFolder]) -> None:
    (four[3].path / name).write_text(content)
    assert len(names()) == 4
    assert four[3].path.name in said("show", four[3].path.name)
    assert names("--where", "optimizer.lr=0.1")


@pytest.mark.medium
def test_listing_and_showing_import_no_torch(four: list[RunFolder]) -> None:
    code = f"import sys; from neumann.cli.main import main; main(['runs']); print('hydra' in sys.modules); main(['runs', 'show', '{four[0].path.name}']); print([m for m in ('torch', 'wandb', 'pandas') if m in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[5] == "False"  # a list is answered without what composes configurations
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.medium
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a link to nothing"])
def test_what_is_no_file_is_neither_waited_for_nor_read(kind: str, four: list[RunFolder]) -> None:
    folder = four[0].path
    for name in ("result.json", "status.json", "signed.json", "config.yaml", "provenance.json", "measurements.jsonl"):
        (folder / name).unlink(missing_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    for name in ("result.json", "status.json", "config.yaml", "provenance.json", "measurements.jsonl", "error.txt"):
        path = folder / name
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        elif kind == "a folder":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
    assert len(names()) == 4
    assert folder.name in said("show", str(folder))


def test_a_path_that_is_not_there_is_said(four: list[RunFolder]) -> None:
    with pytest.raises(UserError, match="there is no folder no/where"):
        said("no/where")
    with pytest.raises(UserError, match=r"--status 'failed,,' has an empty part: choose from pending"):
        said("--status", "failed,,")
