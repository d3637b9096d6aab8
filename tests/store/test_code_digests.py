"""The code behind a run is recorded, and a result that other code has trained is told and left as it is."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.metadata import version
from pathlib import Path

import pytest

from neumann.cli.main import main as cli
from neumann.config import make_spec
from neumann.errors import Interrupted
from neumann.store import RunFolder, code_digests, find
from neumann.store.code_digests import LIBRARIES, OWN, OWN_DIGEST, code_of, contributing, differing, in_words
from neumann.store.session import Session
from neumann.training.run import run
from tests.support.launching import QUICK

OPTIMIZER = """\
import torch
from {helper} import sign

class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=sign * group["lr"])
        return loss
"""
GROUP = "_target_: {target}\nlr: 0.05 # rate\nweight_decay: 0.0 # decay\n"


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An optimizer of the user's in the working directory, with a module that it imports; the words that choose it."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path.cwd())])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine_opt", "mine_sign", "lab")]:
        monkeypatch.delitem(sys.modules, name)
    write("mine_opt.py", OPTIMIZER.format(helper="mine_sign"))
    write("mine_sign.py", "sign = -1\n")
    write("conf/optimizer/mine.yaml", GROUP.format(target="mine_opt.Mine"))
    yield ["--config-dir", "conf", "optimizer=mine", *QUICK]
    forget()


def forget() -> None:
    """Have the next run import the user's modules anew, as another process would."""
    for name in ("mine_opt", "mine_sign"):
        sys.modules.pop(name, None)


def test_a_targets_module_and_what_it_imports_are_found_and_nothing_is_imported(own: list[str]) -> None:
    write("lab/__init__.py", "")
    write(
        "lab/deep/opt.py", "from ..shared import a\nfrom . import near\nimport numpy\nimport mine_sign, neumann.optim\n"
    )
    write("lab/deep/near.py", "raise SystemExit('executed')\n")
    write("lab/shared.py", "a = 1\n")
    write("lab/unused.py", "a = 1\n")
    found = code_of(["mine_opt.Mine", "lab.deep.opt.Opt.make", "torch.optim.NAdam", "neumann.optim.Neumann", "no.such"])
    files = {"mine_opt.py", "mine_sign.py", "lab/__init__.py", "lab/deep/opt.py", "lab/deep/near.py", "lab/shared.py"}
    assert found.keys() - LIBRARIES.values() == {OWN, *files}
    assert not {"mine_opt", "lab", "lab.deep"} & sys.modules.keys()
    write("lab/shared.py", "a = 2\n")
    again = code_of(["mine_opt.Mine", "lab.deep.opt.Opt.make"])
    assert differing([found, again]) == ["lab/shared.py"]


def test_an_installed_package_counts_whole_and_by_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("venv/site-packages/theirs/__init__.py", "from theirs.core import Opt\n")
    write("venv/site-packages/theirs/core.py", "class Opt: pass\n")
    monkeypatch.syspath_prepend("venv/site-packages")
    before = code_of(["theirs.Opt"])
    assert before.keys() - LIBRARIES.values() == {OWN, "theirs"}
    write("venv/site-packages/theirs/core.py", "class Opt: ...\n")
    assert differing([before, code_of(["theirs.Opt"])]) == ["theirs"]


def test_an_installed_package_that_a_users_module_imports_counts(
    own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("venv/site-packages/helping/__init__.py", "a = 1\n")
    monkeypatch.setattr(sys, "path", ["venv/site-packages", *sys.path])
    write("mine_sign.py", "from helping import a\nsign = -1\n")
    assert "helping" in code_of(["mine_opt.Mine"])


def test_a_library_counts_by_its_version_and_by_its_files_where_it_is_not_the_installed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = code_of([])
    assert before["torch"] == version("torch")
    assert before["pillow"] == version("pillow")
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "torch" else version(name))
    assert differing([before, code_of([])]) == ["torch"]
    write("fork/timm/__init__.py", "edited = True\n")
    monkeypatch.syspath_prepend("fork")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    assert "timm" in differing([before, code_of([])])


def test_a_record_from_before_libraries_were_in_it_differs_in_none() -> None:
    assert differing([{OWN: OWN_DIGEST}, code_of([])]) == []


@pytest.mark.parametrize(
    "name",
    ["NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TORCH_BLAS_PREFER_CUBLASLT"],
)
def test_a_variable_that_changes_the_precision_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    before = code_of([])
    monkeypatch.setenv(name, "1")
    assert differing([before, code_of([])]) == [f"${name}"]


def test_our_own_code_counts_by_every_file(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(Path(code_digests.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    assert code_digests._of_folder(package) == OWN_DIGEST
    for name in ("optim/neumann.py", "optim/kernels/fused_step.cpp"):
        with (package / name).open("a") as file:
            file.write("\n")
        assert code_digests._of_folder(package) != OWN_DIGEST
        shutil.copy(Path(code_digests.__file__).parents[1] / name, package / name)
    assert code_digests._of_folder(package) == OWN_DIGEST


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([0], [0]),
        ([0, 18], [0, 18]),
        ([0, 0], [0]),  # the first left no checkpoint, so nothing of it is in the result
        ([0, 18, 18], [0, 18]),
        ([0, 18, 27, 9], [0, 9]),  # the newer checkpoints were damaged
        ([None, 18], [None, 18]),
        (["x", float("nan")], [float("nan")]),
    ],
)
def test_only_attempts_whose_steps_are_in_the_result_count(steps: list[object], kept: list[object]) -> None:
    attempts = [{"attempt": i, **({} if step is None else {"step": step})} for i, step in enumerate(steps)]
    assert len(contributing(attempts)) == len(kept)
    assert contributing(attempts)[-1]["attempt"] == len(steps) - 1


def test_names_in_words() -> None:
    assert in_words(["neumann"]) == "the code of neumann has"
    assert in_words(["neumann", "a.py"]) == "a.py and the code of neumann have"
    assert in_words(["a", "b", "c", "d", "neumann"]) == "a, b, c and 2 more files have"


@pytest.mark.medium
def test_a_result_of_other_code_is_told_and_stands_until_the_user_decides(
    own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["train", *own]) == 0
    spec = make_spec(own[2:], ["conf"])
    first = find(spec).result()
    assert first is not None
    assert [code.keys() - LIBRARIES.values() for code in first["code"]] == [{OWN, "mine_opt.py", "mine_sign.py"}]
    assert first["code"] == [find(spec).attempts()[0]["code"]]
    capsys.readouterr()
    assert cli(["train", *own]) == 0
    assert capsys.readouterr().err == ""
    write("mine_sign.py", "sign = +1\n")
    forget()
    assert cli(["train", *own]) == 0
    said = capsys.readouterr()
    assert "finished, already there" in said.out
    assert said.err.replace("\n", " ").startswith(
        "note: mine_sign.py has changed since this run was trained, and its result stands: study=NEW trains it with"
    )
    assert find(spec).result() == first
    assert cli(["train", *own, "study=again"]) == 0  # diverges, or errs far more often
    again = RunFolder(Path("runs/again") / find(spec).path.name).result()
    assert again is not None
    assert again["validation"] != first["validation"]
    capsys.readouterr()
    assert cli(["train", "-m", *own, "seed=0"]) == 0
    assert capsys.readouterr().err.count("mine_sign.py has changed") == 1
    shutil.rmtree(find(spec).path)
    assert cli(["train", *own]) == 0
    assert capsys.readouterr().err == ""
    assert find(spec).result()["validation"] == again["validation"]  # type: ignore[index]


@pytest.mark.medium
def test_a_run_that_goes_on_with_other_code_says_so_and_its_result_names_both(
    own: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(own[2:], ["conf"])
    real: Callable[..., None] = Session.checkpoint

    def stop(self: Session, content: bytes) -> None:
        real(self, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Session, "checkpoint", stop)
        with pytest.raises(Interrupted):
            run(spec)
    write("mine_sign.py", "sign = -1 # the same\n")
    forget()
    with pytest.warns(UserWarning, match=r"mine_sign.py has changed since the first \d+ steps of the run were trained"):
        assert cli(["train", *own]) == 0
    result = find(spec).result()
    assert result is not None
    assert differing(result["code"]) == ["mine_sign.py"]
    capsys.readouterr()
    assert cli(["train", *own]) == 0
    assert "mine_sign.py has changed since this run was trained" in capsys.readouterr().err
    assert cli(["runs", "show", find(spec).path.name]) == 0
    assert "mine_sign.py has changed between its attempts" in capsys.readouterr().out
