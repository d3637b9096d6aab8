"""The watched page: rendered again as runs end, reloaded by the browser, and the ordinary page once it is over."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neumann.cli.main import main
from neumann.studies import watch
from neumann.studies.plan import PlannedRun, load_study
from tests.support.fake_results import study as fake_study
from tests.support.study_folders import STUDY, finish, write_study

pytestmark = pytest.mark.medium
PAGE = Path("runs/mine/report-full/report.html")
REFRESH = '<meta http-equiv="refresh" content="10">'


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from neumann.studies.report.figures import draw

    drawn: dict[str, Any] = {}

    def once(_: object) -> dict[str, Any]:
        if not drawn:
            drawn.update(draw(fake_study()))
        return drawn

    monkeypatch.setattr("neumann.studies.report.figures.draw", once)


@pytest.fixture
def runs() -> list[PlannedRun]:
    content = copy.deepcopy(STUDY) | {"design": "grid", "seeds": {"evaluation": [0, 1]}}
    content["rows"] = {key: content["rows"][key] for key in ("sgd", "neumann")}
    content["space"] = {"optimizer.lr": [0.1]}
    del content["paper"]
    write_study(content)
    return load_study("mine").tuning()


def sleeping(monkeypatch: pytest.MonkeyPatch, steps: Iterator[Callable[[], object]]) -> list[float]:
    """Let each pause of the watch do the next of ``steps``; return how long the pauses were."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        next(steps)()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    return pauses


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_the_page_reloads_itself_until_the_study_is_finished(
    runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def some() -> None:
        seen.append(PAGE.read_text())
        finish(runs[0], 0.2)

    def nothing() -> None:
        seen.append(PAGE.read_text())
        PAGE.write_text("untouched")

    def rest() -> None:
        seen.append(PAGE.read_text())
        for run in runs[1:]:
            finish(run, 0.2)

    pauses = sleeping(monkeypatch, iter([some, nothing, rest]))
    assert main(["report", "mine", "--watch"]) == 0
    assert REFRESH in seen[0]
    assert "This study is not finished" in seen[0]
    assert REFRESH in seen[1]
    assert seen[1] != seen[0]
    assert seen[2] == "untouched"  # nothing has changed since
    assert REFRESH not in PAGE.read_text()
    assert "This study is not finished" not in PAGE.read_text()
    assert min(pauses) >= watch.EVERY_S
    out = capsys.readouterr().out
    assert "4 of the 4 runs" in out
    assert "3 of the 4 runs" in out
    before = PAGE.stat().st_mtime_ns
    assert main(["report", "mine"]) == 0
    assert PAGE.stat().st_mtime_ns == before  # it was stamped


@pytest.mark.parametrize("stop", [interrupt, terminate])
def test_a_stop_leaves_the_ordinary_page_of_what_is_there(
    stop: Callable[[], None], runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(runs[0], 0.2)
    assert main(["report", "mine"]) == 0
    ordinary = PAGE.read_bytes()
    sleeping(monkeypatch, iter([stop]))
    assert main(["report", "mine", "--watch"]) == 0
    assert PAGE.read_bytes() == ordinary


def test_a_page_that_reloads_itself_is_not_taken_for_the_report(
    runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException): ...

    def kill() -> None:
        raise Killed

    assert main(["report", "mine"]) == 0
    ordinary = PAGE.read_bytes()
    sleeping(monkeypatch, iter([kill]))
    with pytest.raises(Killed):
        main(["report", "mine", "--watch"])
    assert REFRESH in PAGE.read_text()
    assert main(["report", "mine"]) == 0
    assert PAGE.read_bytes() == ordinary


def test_a_watched_report_is_not_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "mine", "--watch", "--publish"]) == 2
    assert "give one of the two" in capsys.readouterr().err
