"""Tests of launch=slurm: the resources that its jobs request, and the settings that are refused beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest

from neumann.config import LocalLaunchConfig, SlurmLaunchConfig, make_spec
from neumann.config.launch_settings import seconds as in_seconds
from neumann.errors import UserError
from neumann.folders import is_for_a_shell
from neumann.launch.slurm import queue
from neumann.launch.slurm.folder import LaunchFolder
from tests.support.fake_slurm import FakeSlurm


@pytest.mark.medium
def test_settings_are_typed_by_kind_and_signed_by_none() -> None:
    spec = make_spec(
        [
            "launch=slurm",
            "launch.partition=gpu",
            "launch.time=1-12:00:00",
            "launch.sbatch.constraint=a100",
            "launch.sbatch.input='~/in'",
        ]
    )
    launch = spec.config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    sbatch = {"constraint": "a100", "input": f"{Path.home()}/in"}
    assert (launch.partition, launch.time, launch.sbatch) == ("gpu", "1-12:00:00", sbatch)
    assert make_spec(["launch=slurm", "ablation=no_alpha", "launch.qos=low"]).config.launch == SlurmLaunchConfig(
        qos="low"
    )
    local = make_spec([])
    assert isinstance(local.config.launch, LocalLaunchConfig)
    assert spec.signature == local.signature


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["launch.partition=gpu"], "launch=local has no setting 'partition'"),
        (["launch=slurm", "launch.parallel=2"], "launch=slurm has no setting 'parallel'"),
        (["launch=slurm", "launch.partitoin=gpu"], "did you mean 'partition'"),
        (["launch.kind=slurm"], "choose another file of that group"),
        (["launch=slurm", "launch.time=tomorrow"], "is not a time limit"),
        (["launch=slurm", "launch.mem=much"], "is not an amount of memory"),
        (["launch=slurm", "launch.workers=0"], "launch.workers=0 is out of range"),
        (["launch=slurm", "launch.gpu_hours=3"], "set launch.gpus_per_node as well"),
        (["launch=slurm", "launch.sbatch.gpus-per-node=3"], "is set by launch.gpus_per_node"),
        (["launch=slurm", "launch.sbatch.output=x"], "is set by the launch itself"),
        (["launch=slurm", "launch.gpus_per_node=1", "launch.sbatch.gres=gpu:4"], "both ask for GPUs"),
        (["launch=slurm", "launch.gpus_per_node=1", "launch.sbatch.gpus-per-socket=1"], "both ask for GPUs"),
        (
            ["launch=slurm", "launch.sbatch.input='$HOME/in'"],
            "launch.sbatch.input=$HOME/in: '$HOME' is not replaced here",
        ),
        (["launch=slurm", "launch.sbatch.export-file='file:///x'"], "is an address, and only a folder can be used"),
        (["launch=slurm", "launch.time=2"], "launch.time=2 is 120 s and launch.grace=120 s of it are for leaving"),
        (["launch=slurm", "launch.time='0-0:01:30'"], "launch.time=0-0:01:30 is 90 s"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        make_spec(words)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:05", 7205), ("1-2", 93600), ("1-2:30", 95400), ("1-00:00:01", 86401)],
)
def test_times_are_read_as_sbatch_reads_them(time: str, seconds: int) -> None:
    assert in_seconds(time) == seconds


def test_a_users_own_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    text = "# Ours: neumann train -m launch=ours\ndefaults: [slurm, _self_]\npartition: big\ncpus_per_task: 4\n"
    (tmp_path / "launch/ours.yaml").write_text(text)
    launch = make_spec(["launch=ours", "launch.workers=3"], [str(tmp_path)]).config.launch
    assert isinstance(launch, SlurmLaunchConfig)
    assert (launch.partition, launch.cpus_per_task, launch.workers, launch.grace) == ("big", 4, 3, 120)


@pytest.mark.parametrize(
    ("text", "for_a_shell"),
    [("~/in", True), ("~ann", True), ("$HOME/in", True), ("${TMP}/in", True), ("file:///x", True), ("a100", False),
     ("https://x", False), ("a~b", False), ("100$", False), ("ALL,PATH", False)],
)  # fmt: skip
def test_what_a_shell_would_replace_is_known_by_one_list(text: str, for_a_shell: bool) -> None:
    assert is_for_a_shell(text) == for_a_shell


WHOLE = SlurmLaunchConfig(
    partition="gpu",
    account="me",
    qos="low",
    time="1-00:00:00",
    gpus_per_node=1,
    cpus_per_task=6,
    mem="16G",
    setup=["module load cuda"],
    sbatch={"constraint": "a100"},
    workers=2,
    grace=90,
)


def test_every_setting_reaches_sbatch(fake: FakeSlurm) -> None:
    folder = LaunchFolder(Path("runs/.launches/abc"))
    folder.make()
    ids = queue.submit(folder, WHOLE, [len, len, len, len])
    assert ids == ["7_0", "7_1", "7_2", "8"]  # MaxArraySize is 3 there
    script = fake.scripts()[0]
    asked = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert asked >= {
        "job-name=neumann-abc",
        "partition=gpu",
        "account=me",
        "qos=low",
        "time=1-00:00:00",
        "nodes=1",
        "ntasks-per-node=1",
        "gpus-per-node=1",
        "cpus-per-task=6",
        "mem=16G",
        "constraint=a100",
        "signal=USR2@90",
        "requeue",
        "array=0-2%2",
    }
    assert "module load cuda" in script
    assert script.index("export PYTHONSAFEPATH=1") < script.index("module load cuda") < script.index("-m submitit")
    assert "srun" in script
    assert "--cpus-per-task=6" in script.split("srun", 1)[1]
    assert not list((folder.path / "slurm").glob(".*"))


def test_a_run_on_several_devices_gets_a_task_and_a_gpu_for_each(fake: FakeSlurm) -> None:
    folder = LaunchFolder(Path("runs/.launches/abc"))
    folder.make()
    queue.submit(folder, WHOLE, [len], (4, 2))
    assert "#SBATCH --nodes=2\n" in fake.scripts()[0]
    assert "#SBATCH --ntasks-per-node=4\n" in fake.scripts()[0]
    assert "#SBATCH --gpus-per-node=4\n" in fake.scripts()[0]
    assert "--kill-on-bad-exit=1" in fake.scripts()[0]


def test_a_job_submitted_from_a_job_is_no_part_of_it(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "99")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    folder = LaunchFolder(Path("runs/.launches/abc"))
    folder.make()
    queue.submit(folder, WHOLE, [len])
    told = (fake.place / "environment").read_text()
    assert "SLURM_CPUS_PER_TASK" not in told
    assert "SLURM_CONF=/etc/slurm.conf" in told


def test_slurm_refuses_in_its_own_words(fake: FakeSlurm) -> None:
    fake.refuse("invalid partition specified: gpu")
    folder = LaunchFolder(Path("runs/.launches/abc"))
    folder.make()
    with pytest.raises(UserError, match=r"^Slurm takes no job: invalid partition specified: gpu$"):
        queue.submit(folder, WHOLE, [len])


def test_without_slurm_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        queue.check()


def test_the_queue_answers_or_not(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.queue({"7_0": "RUNNING", "7_1": "PENDING", "7_2": "NODE_FAIL"})
    jobs = queue.jobs("neumann-abc")
    assert jobs == {"7_0": "RUNNING", "7_1": "PENDING", "7_2": "NODE_FAIL"}
    assert queue.alive(jobs) == ["7_0", "7_1"]
    assert queue.short(["7_0", "7_1", "8"]) == ["7", "8"]
    assert queue.max_array_size() == 3
    fake.queue(None)
    assert queue.jobs("neumann-abc") is None
