"""Tests of a study's collection: validation chooses, the test of evaluation runs answers, nothing else is read."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from neumann.config import making_specs
from neumann.data import facts
from neumann.errors import UserError
from neumann.store import find
from neumann.store.provenance import provenance
from neumann.studies.analysis import _data_of, analyse, edge
from neumann.studies.collect import collect
from neumann.studies.conditions import ONE_VALUE
from neumann.studies.plan import EVALUATION, TUNING, Study, load_study
from neumann.studies.report.table_md import markdown_table
from neumann.studies.report.tables import settings_text
from neumann.studies.results import StudyResults, TuningTrial, chosen
from neumann.studies.study_run import StudyRun, read_again, runs_of, scores
from tests.support.study_folders import STUDY, diverge, finish, write_study

pytestmark = pytest.mark.medium

RATES = (0.1, 0.3, 1.0)


def tuned(study: Study, errors: dict[float, float], **keywords: float) -> None:
    """Finish every tuning run, its validation error given by its rate."""
    for planned in study.tuning():
        if planned.row != "averaged":  # shares the runs of sgd
            finish(planned, errors[planned.setting["optimizer.lr"]], **keywords)


def evaluated(study: Study, row: str, rate: float, tests: list[float]) -> None:
    for planned, test in zip(study.evaluation(row, {"optimizer.lr": rate}), tests, strict=True):
        finish(planned, 0.02, test=test)


def results_of(study: Study) -> StudyResults:
    return analyse(collect(study))


@pytest.fixture
def study() -> Study:
    write_study()
    return load_study("mine")


@pytest.fixture
def complete(study: Study) -> Study:
    tuned(study, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02})
    evaluated(study, "sgd", 0.3, [0.04, 0.03, 0.05])
    evaluated(study, "neumann", 0.3, [0.03, 0.03, 0.02])
    return study


def test_an_empty_study_is_collected_too(study: Study) -> None:
    results = results_of(study)
    assert results.incomplete is not None
    assert "18 of the 18 runs" in results.incomplete  # two rows of three share their runs: 2 × 3 rates × 3 seeds
    assert [(row.setting, row.error) for row in results.rows] == [(None, None)] * 3
    assert "Not answered yet" in results.answer
    assert results.headline.endswith("(incomplete)")


def test_each_phase_is_trained_before_it_is_read_and_the_choice_lies_between(study: Study) -> None:
    seen = []

    def train(study: Study, runs: Sequence[StudyRun], trials: Mapping[str, Sequence[TuningTrial]]) -> None:
        seen.append(({run.planned.role for run in runs}, {row: chosen(its) for row, its in trials.items()}))
        assert not any(run.over for run in runs)
        for run in runs:
            finish(run.planned, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02}[run.planned.setting["optimizer.lr"]])

    results = analyse(collect(study, train))
    assert seen == [({TUNING}, {}), ({EVALUATION}, {key: {"optimizer.lr": 0.3} for key in study.config.rows})]
    assert results.incomplete is None
    assert results.row("neumann").errors == {0: 0.01, 1: 0.01, 2: 0.01}


def test_the_lowest_mean_validation_error_chooses(complete: Study) -> None:
    results = results_of(complete)
    assert results.incomplete is None
    row = results.row("sgd")
    assert row.setting == {"optimizer.lr": 0.3}
    assert [trial.chosen for trial in row.trials] == [False, True, False]
    assert [trial.mean for trial in row.trials] == pytest.approx([0.03, 0.01, 0.02])
    assert row.edge is None
    assert row.errors == {0: 0.04, 1: 0.03, 2: 0.05}
    assert row.error is not None
    assert row.error.mean == pytest.approx(0.04)
    assert row.at == "held"
    assert results.row("neumann").at == "base"
    assert results.row("averaged").at == "average"
    assert set(results.row("neumann").points) == {"held", "base", "average"}


def test_the_paired_difference_is_row_minus_reference(complete: Study) -> None:
    results = results_of(complete)
    primary = results.comparisons[0]
    assert (primary.row, primary.against, primary.primary) == ("neumann", "sgd", True)
    assert primary.paired is not None
    assert primary.paired.mean == pytest.approx((-0.01 + 0.0 - 0.03) / 3)
    assert primary.adjusted is None  # it stands alone
    others = results.comparisons[1:]
    assert [(c.row, c.paired is None, c.adjusted is None) for c in others] == [("averaged", False, False)]
    assert results.row("neumann").reference == primary
    assert "n = 3 paired seeds" in results.answer
    assert "−1.33 percentage points" in results.headline
    assert results.row("sgd").paper == 24.3
    assert results.row("averaged").paper is None


def test_equal_errors_are_told_apart_by_the_validation_loss(study: Study) -> None:
    losses = {0.1: 0.3, 0.3: 0.2, 1.0: 0.1}
    for planned in study.tuning():
        if planned.row != "averaged":
            finish(planned, 0.02, loss=losses[planned.setting["optimizer.lr"]])
    row = results_of(study).row("sgd")
    assert row.setting == {"optimizer.lr": 1.0}
    assert row.edge == "optimizer.lr=1 is the largest of 3 tried"


def test_rows_that_differ_in_the_point_share_runs_and_are_tuned_apart(study: Study) -> None:
    at_average = {0.1: 0.01, 0.3: 0.02, 1.0: 0.03}
    at_held = {0.1: 0.03, 0.3: 0.02, 1.0: 0.01}
    for planned in study.tuning():
        if planned.row != "averaged":
            rate = planned.setting["optimizer.lr"]
            finish(planned, at_held[rate], average=at_average[rate])
    results = results_of(study)
    assert results.row("sgd").setting == {"optimizer.lr": 1.0}
    assert results.row("averaged").setting == {"optimizer.lr": 0.1}
    tuning = [run for run in results.runs if run.role == "tuning"]
    assert len(tuning) == 18
    assert {run.rows for run in tuning} == {("sgd", "averaged"), ("neumann",)}


def test_nothing_is_chosen_before_every_tuning_run_is_over(study: Study) -> None:
    for planned in study.tuning()[:-1]:
        if planned.row != "averaged":
            finish(planned, 0.02)
    results = results_of(study)
    assert results.row("sgd").setting is not None
    assert results.row("neumann").setting is None
    assert results.row("neumann").trials[-1].missing == (102,)
    assert results.incomplete is not None
    assert "no setting is chosen yet for Neumann" in results.incomplete


def test_a_setting_that_diverged_on_one_seed_is_never_chosen(study: Study) -> None:
    for planned in study.tuning():
        if planned.row == "averaged":
            continue
        if planned.setting["optimizer.lr"] == 0.3 and planned.seed == 101:
            diverge(planned)
        else:
            finish(planned, {0.1: 0.03, 0.3: 0.001, 1.0: 0.02}[planned.setting["optimizer.lr"]])
    row = results_of(study).row("sgd")
    assert row.setting == {"optimizer.lr": 1.0}
    assert row.trials[1].errors == {100: 0.001, 101: None, 102: 0.001}
    assert row.trials[1].mean is None


def test_a_row_whose_every_setting_diverged_says_so(study: Study) -> None:
    for planned in study.tuning():
        if planned.row == "neumann":
            diverge(planned)
        elif planned.row == "sgd":
            finish(planned, 0.02)
    results = results_of(study)
    assert results.row("neumann").setting is None
    assert "Every setting of Neumann diverged" in results.answer
    assert "not answered" in results.headline
    for planned in study.evaluation("sgd", {"optimizer.lr": 0.1}):
        finish(planned, 0.02)
    assert results_of(study).incomplete is None  # nothing is left to train: divergence is the result


def test_diverged_evaluation_runs_are_counted_and_not_averaged(study: Study) -> None:
    tuned(study, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02})
    evaluated(study, "sgd", 0.3, [0.04, 0.03, 0.05])
    first, *others = study.evaluation("neumann", {"optimizer.lr": 0.3})
    diverge(first)
    for planned in others:
        finish(planned, 0.02, test=0.02)
    results = results_of(study)
    row = results.row("neumann")
    assert row.diverged == (0,)
    assert row.errors == {1: 0.02, 2: 0.02}
    assert row.error is not None
    assert row.error.n == 2
    primary = results.comparisons[0]
    assert primary.paired is not None
    assert (primary.paired.diverged_a, primary.paired.diverged_b, primary.paired.only_b) == ((0,), (), ())
    assert (primary.paired.n, primary.paired.wins, primary.paired.losses) == (2, 2, 1)
    assert "of 3 evaluation seeds 1 diverged in Neumann and 0 in SGD" in results.answer
    assert "n = 2 of 3 (1 diverged in Neumann)" in results.headline
    assert results.incomplete is None
    assert row.curve is not None
    assert row.curve.n == (2, 2)
    assert [math.isfinite(loss) for loss in row.curve.loss] == [True, True]


def eight(diverged: int, at: str = "neumann") -> Study:
    """Return a study of eight evaluation seeds, of which the first ones of row ``at`` diverged; its others err less."""
    write_study(STUDY | {"seeds": {"tuning": [100, 101, 102], "evaluation": list(range(8))}})
    study = load_study("mine")
    tuned(study, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02})
    evaluated(study, "sgd", 0.3, [0.5 + seed / 1000 for seed in range(8)])
    for i, planned in enumerate(study.evaluation(at, {"optimizer.lr": 0.3})):
        if i < diverged:
            diverge(planned)
        else:
            finish(planned, 0.02, test=0.02)
    return study


def test_a_row_that_diverged_is_not_better_for_the_few_seeds_that_it_finished() -> None:
    results = results_of(eight(5))
    primary = results.comparisons[0]
    assert primary.paired is not None
    assert primary.verdict is not None
    assert primary.paired.p == pytest.approx(2 * (1 + 8 + 28 + 56) / 2**8)  # the sign test's: 3 wins, 5 losses
    assert primary.verdict.answer == "undecided"
    assert "undecided" in results.headline
    assert "n = 3 of 8 (5 diverged in Neumann)" in results.headline
    assert "nothing of the others" in results.answer


def test_a_row_whose_every_evaluation_run_diverged_is_worse() -> None:
    results = results_of(eight(8))
    primary = results.comparisons[0]
    assert primary.paired is not None
    assert primary.verdict is not None
    assert (primary.paired.n, primary.paired.mean, primary.verdict.answer) == (0, None, "worse")
    assert "Neumann is worse than SGD: of 8 evaluation seeds 8 diverged in Neumann and 0 in SGD" in results.answer
    assert "yet" not in results.answer
    assert results.headline == "mine (full): worse, size undecided, test error, n = 0 of 8 (8 diverged in Neumann)"


def everything(results: StudyResults) -> str:
    return repr(results)


def test_test_values_of_tuning_runs_change_nothing_and_cannot_be_read(complete: Study) -> None:
    before = everything(results_of(complete))
    tuning = collect(complete).tuning
    for run in tuning:
        path = run.folder.path / "result.json"
        result = json.loads(path.read_text())
        for point in result["test"].values():
            point["error"] = 0.987654
        path.write_text(json.dumps(result))
    after = everything(results_of(complete))
    assert after == before
    assert "0.987654" not in after
    with pytest.raises(PermissionError, match="tuning run"):
        scores(tuning[0], "test", "eval")
    assert scores(tuning[0], "validation", "eval") is not None


def test_results_that_were_swapped_between_runs_are_refused(complete: Study) -> None:
    runs = [run for run in collect(complete).evaluation if run.planned.seed == complete.evaluation_seeds[0]]
    one, other = (run.folder.path / "result.json" for run in (runs[0], runs[-1]))
    assert one != other
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    with pytest.raises(UserError, match=r"result.json is that of the run [0-9a-f]{12}: move it away"):
        collect(complete)


def test_a_failed_run_is_listed_with_its_message(study: Study) -> None:
    planned = study.tuning()[0]
    folder = finish(planned, 0.02)
    (folder.path / "result.json").unlink()
    folder.set_status("failed", message="it broke")
    entry = next(run for run in results_of(study).runs if run.folder == str(folder.path))
    assert (entry.status, entry.message) == ("failed", "it broke")
    assert entry.test is None


def test_the_provenance_of_all_runs_is_told_and_a_mixture_shows(complete: Study) -> None:
    first, second = collect(complete).tuning[:2]
    record = {**provenance(), "git": {"commit": "c" * 40, "diff_sha256": "d" * 16}, "device": "cpu"}
    other = copy.deepcopy(record) | {"packages": {**record["packages"], "torch": "1.0"}}
    for run, attempt in ((first, record), (second, other)):
        run.folder.provenance.write_text(json.dumps({"attempts": [{}, attempt]}))
    results = results_of(complete)
    told = results.provenance
    assert set(ONE_VALUE) <= set(told)  # what the page warns of where it is mixed
    assert tuple(told["commit"]) == (f"{'c' * 12} with uncommitted changes {'d' * 16}",)
    assert told["torch"] == {record["packages"]["torch"]: ("SGD", "SGD, averaged"), "1.0": ("SGD", "SGD, averaged")}
    assert tuple(told["device"]) == ("cpu",)
    assert told["without a record"] == {"22 of 24 runs": ("SGD", "SGD, averaged", "Neumann")}
    assert results.row("sgd").mixed == ("torch",)  # by what an earlier version's record says of packages
    assert results.row("neumann").mixed == ()


@pytest.mark.medium
def test_rows_that_were_not_trained_alike_are_named_in_the_answer(complete: Study) -> None:
    record = {"packages": provenance()["packages"], "device": "cpu"}
    for run in (*collect(complete).tuning, *collect(complete).evaluation):
        device = "an H100" if run.planned.row == "neumann" else "cpu"
        run.folder.provenance.write_text(json.dumps({"attempts": [record | {"device": device}]}))
    results = results_of(complete)
    assert results.provenance["device"] == {"cpu": ("SGD", "SGD, averaged"), "an H100": ("Neumann",)}
    assert "The runs of Neumann and SGD differ in the device too" in results.answer
    assert "‡ Neumann: its runs and those of SGD differ in the device." in markdown_table(results)
    assert [c.unlike for c in results.comparisons] == [("device",), ()]
    assert all(row.mixed == () for row in results.rows)
    for run in (*collect(complete).tuning, *collect(complete).evaluation):
        code = {"neumann": "n" * 12} | ({"mine.py": "m" * 12} if run.planned.row == "neumann" else {})
        run.folder.provenance.write_text(json.dumps({"attempts": [record | {"code": code}]}))
    assert [c.unlike for c in results_of(complete).comparisons] == [(), ()]  # an optimizer's own code is compared


def test_a_changed_default_or_seed_finds_no_stale_run(complete: Study) -> None:
    content = copy.deepcopy(STUDY)
    content["overrides"] = [*STUDY["overrides"], "recipe.label_smoothing=0.1"]
    write_study(content)
    assert [row.setting for row in results_of(load_study("mine")).rows] == [None] * 3
    content = copy.deepcopy(STUDY)
    content["seeds"]["evaluation"] = [7, 8, 9]
    write_study(content)
    row = results_of(load_study("mine")).row("sgd")
    assert row.setting is not None
    assert row.errors == {}
    write_study()
    assert results_of(load_study("mine")).incomplete is None


def test_a_point_that_no_run_recorded_is_one_sentence(study: Study) -> None:
    content = copy.deepcopy(STUDY)
    content["rows"]["sgd"]["point"] = "base"
    write_study(content)
    one = load_study("mine")
    with pytest.raises(UserError, match=r"rows\.sgd\.point=base: its optimizer has no base point"):
        results_of(one)  # before anything trains
    content = copy.deepcopy(STUDY)
    content["overrides"].remove("recipe.weight_average=0.99")
    write_study(content)
    with pytest.raises(UserError, match=r"rows\.averaged\.point=average: its optimizer keeps no average"):
        results_of(load_study("mine"))
    content["rows"]["averaged"]["overrides"] = ["optimizer=neumann"]  # which has one of its own
    write_study(content)
    assert results_of(load_study("mine")).row("averaged").at is None
    content = copy.deepcopy(STUDY)
    content["rows"]["sgd"] = {"label": "LARS", "overrides": ["optimizer=lars"], "point": "base"}  # not known beforehand
    write_study(content)
    one = load_study("mine")
    tuned(one, dict.fromkeys(RATES, 0.02))
    with pytest.raises(
        UserError, match=r"rows\.sgd: its runs have the evaluation points held, average and none called 'base'"
    ):
        results_of(one)


def test_the_edge_is_named_for_numbers_only_and_for_a_real_choice(complete: Study) -> None:
    assert edge(collect(complete).trials["sgd"]) is None
    content = copy.deepcopy(STUDY)
    content["space"] = {"optimizer.lr": [0.3]}
    write_study(content)
    one = load_study("mine")
    assert edge(collect(one).trials["sgd"]) == "0.3 is the only setting tried, so the row is not tuned"
    results = results_of(one)
    assert results.row("sgd").edge
    assert "Nothing was tuned for Neumann and SGD: one setting was tried" in results.answer.replace(
        "SGD and Neumann", "Neumann and SGD"
    )


def test_a_report_names_schedule_batch_and_decay_and_not_what_cannot_change_a_result() -> None:
    content = copy.deepcopy(STUDY)
    content["rows"]["sgd"]["overrides"] += ["optimizer.weight_decay=0.001"]
    write_study(content)
    results = results_of(load_study("mine", extra=["launch.threads=1", "logger=none"]))
    assert not any("launch" in word or "logger" in word for word in results.recipe)
    said = settings_text(results)
    assert "Schedule: cosine (ramp_steps 1)." in said
    assert "Batch size: 64." in said
    assert "Weight decay: 0.001 for SGD; 0 for SGD, averaged, Neumann." in said
    assert "Batch size: 64" in markdown_table(results)
    assert "Precision: 32-true." in said
    assert "smoothing" not in said  # the same for every row
    content["rows"]["sgd"]["overrides"] += ["trainer.precision=bf16-mixed", "recipe.label_smoothing=0.1"]
    write_study(content)
    said = settings_text(results_of(load_study("mine")))
    assert "Precision: bf16-mixed for SGD; 32-true for SGD, averaged, Neumann." in said
    assert "recipe.label_smoothing: 0.1 for SGD; 0 for SGD, averaged, Neumann." in said
    assert "timing" not in said


def test_evaluation_runs_are_found_whatever_they_are_called(complete: Study) -> None:
    run = next(run for run in collect(complete).evaluation if (run.planned.row, run.planned.seed) == ("sgd", 0))
    run.folder.path.rename(run.folder.path.with_name(f"renamed-{run.spec.signature}"))
    assert find(run.spec).path.name.startswith("renamed")
    assert results_of(complete).row("sgd").errors[0] == 0.04


def test_many_runs_are_looked_for_in_one_listing_of_their_folder_a_phase(
    complete: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    glob = Path.glob

    def counted(path: Path, pattern: str) -> object:
        listed.extend([pattern] if path == Path("runs/mine") else [])
        return glob(path, pattern)

    monkeypatch.setattr(Path, "glob", counted)
    assert all(run.over for run in collect(complete).tuning)
    assert (
        len(listed) == 3
    )  # and for the precision of other devices; n runs that were looked for one by one took the time of n²


def test_a_run_that_ends_after_the_listing_of_a_phase_is_found_when_it_is_read_again(study: Study) -> None:
    first = study.tuning()[0]
    with making_specs() as make:
        runs = runs_of(study, [first], make)
    assert not runs[0].over
    finish(first, 0.1)
    assert read_again(study, runs)[0].over


def test_the_report_says_that_test_images_are_trained_on(tmp_path: Path) -> None:
    """`_data_of` is what the report prints of the data; the images are real ones."""
    root = tmp_path / "set"
    for number in range(16):
        folder = root / ("train", "test")[number // 8] / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (9 * number, 0, 0)).save(folder / f"{number}.png")
    section = {"kind": "image_folder", "root": str(root)}
    assert _data_of(facts(section), section).endswith("test is the folder test/")
    for file in (root / "train" / "cat").iterdir():  # three are trained on, one is cut for validation
        shutil.copy(file, root / "test" / "cat" / f"copy-{file.name}")
    assert _data_of(facts(section), section).endswith(
        "test is the folder test/, 3 of its images are training images too"
    )


def test_no_interval_holds_an_error_that_cannot_be(study: Study) -> None:
    tuned(study, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02})
    evaluated(study, "sgd", 0.3, [0.0, 0.0, 0.03])
    evaluated(study, "neumann", 0.3, [1.0, 0.97, 1.0])
    results = results_of(study)
    for key, ends in (("sgd", (0.0, None)), ("neumann", (None, 1.0))):
        row = results.row(key)
        assert row.error is not None
        for got, end in zip((row.error.low, row.error.high), ends, strict=True):
            assert got is not None
            assert 0 <= got <= 1
            assert end is None or got == end


def test_a_pair_listed_in_both_orders_is_one_hypothesis() -> None:
    def holm_of(also: list[list[str]], name: str) -> dict[tuple[str, str], float | None]:
        content = copy.deepcopy(STUDY)
        content["comparisons"]["also"] = also
        write_study(content, name)
        study = load_study(name)
        tuned(study, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02})
        evaluated(study, "sgd", 0.3, [0.04, 0.03, 0.05])
        evaluated(study, "neumann", 0.3, [0.03, 0.03, 0.02])
        return {(c.row, c.against): c.adjusted for c in results_of(study).comparisons}

    alone = holm_of([], "alone")
    mirrored = holm_of([["sgd", "averaged"], ["sgd", "neumann"]], "mirrored")
    assert alone["averaged", "sgd"] is not None
    assert mirrored["averaged", "sgd"] == mirrored["sgd", "averaged"] == alone["averaged", "sgd"]
    assert mirrored["sgd", "neumann"] is None  # the primary comparison, which is not adjusted, in the other order


def test_rows_that_are_the_same_runs_at_the_same_point_are_one_hypothesis() -> None:
    """Two names of a point, the eval point and the base, are told to be one only by the runs."""

    def family(name: str, *, twin: bool) -> dict[tuple[str, str], float | None]:
        content = copy.deepcopy(STUDY)
        if twin:
            content["rows"]["twin"] = {"label": "Twin", "overrides": ["optimizer=neumann"], "point": "base"}
        content["comparisons"] |= {"primary": "averaged"}
        write_study(content, name)
        study = load_study(name)
        for planned in study.tuning():
            if planned.row in ("sgd", "neumann"):
                finish(planned, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02}[planned.setting["optimizer.lr"]])
        evaluated(study, "sgd", 0.3, [0.04, 0.03, 0.05])
        evaluated(study, "neumann", 0.3, [0.03, 0.03, 0.02])
        return {(c.row, c.against): c.adjusted for c in results_of(study).comparisons}

    alone, same = family("alone", twin=False), family("same", twin=True)
    assert same["twin", "sgd"] == same["neumann", "sgd"] == alone["neumann", "sgd"]
    assert alone["neumann", "sgd"] is not None  # as two, p would be doubled


def test_the_interval_of_a_difference_is_within_what_errors_can_differ_by(study: Study) -> None:
    tuned(study, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02})
    evaluated(study, "sgd", 0.3, [0.0, 0.01, 0.0])
    evaluated(study, "neumann", 0.3, [1.0, 0.99, 1.0])
    found = results_of(study).comparisons[0].paired
    assert found is not None
    assert found.low == pytest.approx(0.9933333333 - 0.0286844, abs=1e-6)
    assert found.high == 1.0


def test_a_mean_loss_is_that_of_all_runs_or_not_known(study: Study) -> None:
    tuned(study, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02})
    for planned in study.evaluation("sgd", {"optimizer.lr": 0.3}):
        finish(planned, 0.02, loss=None if planned.seed == 1 else 0.1)  # type: ignore[arg-type]
    evaluated(study, "neumann", 0.3, [0.03, 0.03, 0.02])
    results = results_of(study)
    assert results.row("sgd").loss is None
    assert results.row("sgd").error is not None
    assert results.row("neumann").loss is not None
