"""Runs are chosen by paths, globs, folders, names, signatures and archives; each once, and what chooses none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from neumann.errors import UserError
from neumann.store.selection import select

RUNS = ("a-s0-000000000001", "a-s1-000000000002", "b-s0-0123456789ab")
OUTPUT = Path("runs")


@pytest.fixture(autouse=True)
def runs() -> None:
    for name in RUNS:
        (OUTPUT / "mine" / name).mkdir(parents=True)
    (OUTPUT / "other" / "a-s0-000000000003").mkdir(parents=True)
    (OUTPUT / "mine" / "report-full").mkdir()
    (OUTPUT / "mine" / "notes.txt").write_text("")


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["runs/mine"], RUNS),
        (["runs/mine/"], RUNS),
        (["mine"], RUNS),
        (["runs/mine/*"], RUNS),
        (["runs/mine/b-*", "runs/mine/b-s0-0123456789ab"], RUNS[2:]),
        (["b-s0"], RUNS[2:]),
        (["0123"], RUNS[2:]),
        (["a-s1*"], RUNS[1:2]),
        (["runs/*/a-s0*"], ("a-s0-000000000001", "a-s0-000000000003")),
        (["runs"], (*RUNS, "a-s0-000000000003")),
        (["runs/*"], (*RUNS, "a-s0-000000000003")),
    ],
)
def test_patterns(patterns: list[str], names: tuple[str, ...]) -> None:
    chosen = select(patterns, OUTPUT)
    assert [path.name for path in chosen.folders] == list(names)
    assert chosen.archives == ()
    assert list(chosen.patterns) == patterns


def test_what_a_shell_expands_holds_folders_without_runs() -> None:
    expanded = sorted(str(path) for path in (OUTPUT / "mine").iterdir())
    chosen = select(expanded, OUTPUT)
    assert [path.name for path in chosen.folders] == list(RUNS)
    assert [Path(pattern).name for pattern in chosen.patterns] == list(RUNS)


def test_a_link_is_not_another_run() -> None:
    (OUTPUT / "linked").symlink_to("mine")
    (OUTPUT / "mine" / "c-s0-00000000000c").symlink_to("c-s0-00000000000c")  # to itself
    assert len(select(["runs"], OUTPUT).folders) == 4
    assert len(select(["runs/*/a-s1*"], OUTPUT).folders) == 1


def test_an_archive_by_its_path_or_its_folder() -> None:
    file = Path("experiments/x/results/full/runs.jsonl.gz")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    for pattern in (str(file), str(file.parent), "experiments/*/results/*"):
        assert select([pattern], OUTPUT).archives == (file,)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("runs/nothing", "no folder fits runs/nothing"),
        ("runs/x*/y", r"no folder fits runs/x\*/y"),
        ("min", "no run in runs fits min: did you mean 'mine'?"),
        ("9999", "no run in runs fits 9999"),
        ("runs/mine/report-full", "there is no run in runs/mine/report-full"),
        ("runs/mine/notes.txt", "there is no run in runs/mine/notes.txt"),
        ("", "a pattern of --runs is empty"),
        ("s3://bucket/runs", "is an address"),
    ],
)
def test_what_chooses_nothing_is_one_sentence(pattern: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        select([pattern], OUTPUT)
