"""Terms measured while a run trains: in its files once each, off its clock, and nothing that training notices."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from neumann.cli.main import main
from neumann.errors import Interrupted
from neumann.optim import Neumann
from neumann.store import RunFolder, details, find
from neumann.store.archive import Archive, of_folder, packed
from neumann.store.files import read_json
from neumann.store.steps import TERMS, read_lines
from neumann.store.vouching import sealed
from neumann.training.mirror_rows import Recorded
from neumann.training.stopping import Stop
from neumann.training.terms import Found, StepTerms
from tests.support.quick_runs import Train, quick
from tests.training.test_accumulation import assert_equal, weights

SMALL = ("model=mlp", "+model.kwargs.width=4", "terms.lanczos_steps=4", "launch.threads=1")
OF = ("optimizer=neumann", "timing.burn_in=0.2", "timing.reset_period=0.5", *SMALL)


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return read_lines(folder.path, folder.result(), TERMS)


@pytest.mark.medium
def test_measuring_changes_no_result_and_is_off_the_clock(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, without = train(*OF, "study=without")
    measured, asleep = StepTerms.measured, 0.3

    def slowly(self: StepTerms, *words: Any, **named: Any) -> Found:
        time.sleep(asleep)
        return measured(self, *words, **named)

    monkeypatch.setattr(StepTerms, "measured", slowly)
    result, folder = train(*OF, "study=with", "terms.every=10")
    assert result["signature"] == plain["signature"]
    assert_equal(weights(folder), weights(without), buffers=True)
    assert all(torch.equal(weights(folder)[key], value) for key, value in weights(without).items())
    for one, other in zip(folder.read_measurements(), without.read_measurements(), strict=True):
        assert (one["train_loss"], one["validation"]) == (other["train_loss"], other["validation"])
        assert one["gradient_evaluations"] == other["gradient_evaluations"] == one["step"]
    found = lines(folder)
    assert [line["step"] for line in found] == [10, 20, 30]
    assert [line["examples"] for line in found] == [640, 1280, 1920]
    assert found[0]["epoch"] == pytest.approx(10 / 18)
    assert result["terms_seconds"] > 3 * asleep
    assert result["train_seconds"] < result["terms_seconds"]
    assert result["eval_seconds"] < result["terms_seconds"]
    assert "terms_seconds" not in plain
    assert "terms_digest" not in plain
    assert lines(without) == without.terms(plain) == []
    assert folder.terms(result) == found


@pytest.mark.medium
@pytest.mark.parametrize("step", [20, 25])
def test_a_run_that_goes_on_has_each_line_once_and_the_same(
    step: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a measured step, and between two."""
    words = (*OF, "terms.every=10", "+model.kwargs.drop_rate=0.2")
    _, whole = train(*words, "study=untouched")
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *given: Any) -> None:
        if given[-1] == step - 1:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
        original(self, *given)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted):
        train(*words)
    folder = find(quick(*words))
    assert [line["step"] for line in lines(folder)] == [10, 20]
    file = folder.path / TERMS.file
    file.write_text(file.read_text().replace('"step": 10', '"step": 11') + '{"step": 24}\n')  # edited meanwhile
    with pytest.warns(UserWarning, match=r"terms.jsonl is not what was logged until the checkpoint"):
        result, _ = train(*words)
    assert result["attempts"] == 2
    assert lines(folder) == lines(whole)
    assert (folder.path / TERMS.file).read_bytes() == (whole.path / TERMS.file).read_bytes()
    assert details.edited(folder) == []
    file.write_text(file.read_text().replace('"step": 10', '"step": 11'))
    assert details.edited(folder) == ["terms.jsonl is not what the run logged"]


@pytest.mark.medium
@pytest.mark.parametrize(
    "words", [("trainer.precision=bf16-mixed",), ("optimizer=two_loop_neumann",), ("batch.max_per_device=16",)]
)
def test_a_run_in_16_bits_of_an_inner_loop_or_of_micro_batches_is_measured(
    words: tuple[str, ...], train: Train
) -> None:
    _, folder = train(*OF, "trainer.max_epochs=1", "terms.every=18", "terms.newton=true", *words)
    (line,) = lines(folder)
    assert (line["step"], line["images"], line["optimizer_step"]) == (18, 64, 18)
    assert {"lambda_max", "noise_share", "transport_error", "newton_cosine_move"} <= line.keys()
    assert 0 < line["mu"] <= 1


@pytest.mark.medium
def test_the_distance_is_that_before_the_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    distances: list[float] = []
    step = Neumann.step

    def noted(self: Neumann, closure: Any = None) -> Any:
        distances.append(float(self.distance()))
        return step(self, closure)

    monkeypatch.setattr(Neumann, "step", noted)
    _, folder = train(*OF, "terms.every=5")
    assert {line["step"]: line["distance"] for line in lines(folder)} == {
        at: pytest.approx(distances[at - 1], rel=1e-6) for at in range(5, 36, 5)
    }


@pytest.mark.medium
def test_an_archive_keeps_them_and_an_edit_is_noticed(train: Train, tmp_path: Path) -> None:
    result, folder = train(*OF, "trainer.max_epochs=1", "terms.every=6")
    run = of_folder(folder, read_json(folder.signed), result)
    archive = Archive(tmp_path / "runs.jsonl.gz", {run.signature: run})
    archive.write()
    (there,) = Archive.read(archive.file).runs.values()
    assert there.terms(result) == lines(folder) != []
    record = there.record()
    record["terms"][0]["lambda_max"] = 1.0
    forged = sealed({key: value for key, value in record.items() if key != "digest"})
    archive.file.write_bytes(packed([forged]))
    again = Archive.read(archive.file)
    assert (again.runs, again.unread) == ({}, ("1 of its 1 runs is not used: not what was packed (line 1)",))


@pytest.mark.medium
def test_they_are_mirrored_and_a_run_without_them_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.max_epochs=1", "batch.size=64", "logger=none", *OF, f"output={tmp_path}")
    assert main(["train", *words]) == 0
    capsys.readouterr()
    assert main(["train", *words, "terms.every=6"]) == 0  # the result stands
    assert "has no terms.jsonl" in " ".join(capsys.readouterr().err.split())
    assert main(["train", *words, "terms.every=6", "study=again"]) == 0
    (folder,) = (tmp_path / "again").iterdir()
    rows = [row for row in Recorded.read(folder).rows if "terms/lambda_max" in row]
    assert [row["step"] for row in rows] == [6, 12, 18]
    last = json.loads((folder / TERMS.file).read_text().splitlines()[-1])
    assert rows[-1]["terms/transport_error"] == last["transport_error"]
    assert not any("terms/step" in row or "terms/transport_along" in row for row in rows)
    capsys.readouterr()
    assert main(["runs", "show", str(folder)]) == 0
    assert "λ_max" in capsys.readouterr().out
