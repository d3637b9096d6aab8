"""The private names that neumann rests on are still there and still do what they did; each failure says what moved."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import omegaconf.base
import pytest
from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

import neumann
from neumann import compat
from neumann.config.yaml_files import StrictFiles

ROOT = Path(neumann.__file__).parent
PARSER = OverridesParser.create()

# (its distribution, None for Python's own; the module; the name in it; its parameters, None where it is not called)
PRIVATE: list[tuple[str | None, str, str, list[str] | None]] = [
    ("hydra-core", "hydra._internal.config_loader_impl", "ConfigLoaderImpl._apply_overrides_to_config", ["overrides", "cfg"]),
    ("hydra-core", "hydra._internal.utils", "create_config_search_path", ["search_path_dir"]),
    ("hydra-core", "hydra._internal.hydra", "Hydra.create_main_hydra2", ["task_name", "config_search_path"]),
    ("hydra-core", "hydra.core.override_parser.types", "Override._get_value_element_as_str", ["value", "space_after_sep"]),
    ("omegaconf", "omegaconf.base", "parse", ["value", "parser_rule", "lexer_mode"]),
    ("omegaconf", "omegaconf", "DictConfig._get_node", None),
    ("omegaconf", "omegaconf", "Node._is_missing", ["self"]),
    ("omegaconf", "omegaconf", "Node._is_none", ["self"]),
    ("omegaconf", "omegaconf", "Node._is_interpolation", ["self"]),
    ("omegaconf", "omegaconf", "Node._value", ["self"]),
    ("pytorch-lightning", "pytorch_lightning.trainer.connectors.signal_connector", "_SignalConnector.register_signal_handlers", ["self"]),
    (None, "atexit", "_run_exitfuncs", None),
    (None, "multiprocessing.forkserver", "connect_to_new_process", ["fds"]),
    (None, "multiprocessing.forkserver", "read_signed", ["fd"]),
    (None, "multiprocessing.forkserver", "_forkserver._forkserver_pid", None),
    ("torch", compat.TORCH_WORKER, "_worker_loop", None),
    ("wandb-workspaces", "wandb_workspaces.reports.v2", "Report._to_model", ["self"]),
    ("wandb-workspaces", "wandb_workspaces.reports.v2", "Report._from_model", ["model"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("package", "module", "name", "parameters"), PRIVATE, ids=[f"{row[1]}.{row[2]}" for row in PRIVATE]
)
def test_a_private_name_is_where_it_was(package: str | None, module: str, name: str, parameters: list[str] | None) -> None:  # fmt: skip
    of = f"{package} {version(package)}" if package else "this Python"
    moved = f"{of} has moved or changed {module}.{name}: read what it does now and mend neumann/compat.py"
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{moved} ({error})")
    if parameters is not None:
        assert list(inspect.signature(found).parameters) == parameters, moved


def test_values_are_set_as_hydra_sets_them() -> None:
    config = OmegaConf.create({"a": {"b": 1}, "free": {}})
    OmegaConf.set_struct(config, True)
    compat.set_values([PARSER.parse_override("a.b=2"), PARSER.parse_override("++free.c=[1,x]")], config)
    assert config == {"a": {"b": 2}, "free": {"c": [1, "x"]}}


def test_a_text_is_parsed_once_and_resolved_anew() -> None:
    compat.keep_parsed()
    compat.keep_parsed()  # it is not wrapped twice
    texts = {"a": 1, "b": "${a} and ${oc.select:${c}}", "c": "a"}
    first, second = OmegaConf.create(texts), OmegaConf.create(texts | {"a": 2, "c": "c"})
    omegaconf.base.parse.cache_clear()
    said = [OmegaConf.to_container(each, resolve=True)["b"] for each in (first, second, first)]
    assert said == ["1 and 1", "2 and c", "1 and 1"]
    known = omegaconf.base.parse.cache_info()
    assert (known.misses, known.hits) == (1, 2)
    with pytest.raises(GrammarParseError):
        OmegaConf.to_container(OmegaConf.create({"a": "${b"}), resolve=True)


def test_hydra_takes_its_files_from_our_source(tmp_path: Path) -> None:
    (tmp_path / "odd = (path)").mkdir()
    (tmp_path / "odd = (path)" / "main.yaml").write_text("word: no\n")
    with compat.hydra_over(StrictFiles, [tmp_path / "odd = (path)"]):
        assert hydra_compose("main") == {"word": "no"}


@pytest.mark.parametrize("value", [1, 1.5, True, None, "word", [1, [2.5, "x"]], {"k": [1, None]}])
def test_an_override_is_read_again_as_it_was_written(value: Any) -> None:
    assert PARSER.parse_override(f"key={compat.as_override(value)}").value() == value


def test_nodes_are_looked_at_without_resolving_them() -> None:
    config = OmegaConf.create({"number": 3, "null": None, "missing": "???", "link": "${number}", "list": [1]})
    nodes = {key: compat.child(config, key) for key in ("number", "null", "missing", "link", "list")}
    assert {key for key, node in nodes.items() if compat.is_plain(node)} == {"number", "list"}
    assert {key for key, node in nodes.items() if compat.is_missing(node)} == {"missing"}
    assert {key for key, node in nodes.items() if compat.is_null(node)} == {"null"}
    assert compat.value_of(nodes["number"]) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_leaves_signals_alone() -> None:
    import signal

    import pytorch_lightning as pl

    trainer = pl.Trainer(logger=False, enable_checkpointing=False, barebones=True, accelerator="cpu")
    compat.leave_signals_to_us(trainer)
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) is before
    call, user = "self._signal_connector.register_signal_handlers()", pl.Trainer._run
    moved = f"Lightning {version('pytorch-lightning')} no longer calls {call} in {user.__qualname__}"
    assert call in inspect.getsource(user), f"{moved}: read how it handles SIGTERM now and mend neumann/compat.py"


def test_wandbs_experimental_settings_are_there() -> None:
    import wandb

    gone = set(compat.NO_SYSTEM_METRICS) - set(wandb.Settings.model_fields)
    assert not gone, f"wandb {version('wandb')} has no {gone} any more: mend neumann/compat.py"


def test_a_wandb_report_is_the_same_after_its_specification() -> None:
    import wandb_workspaces.reports.v2 as wr

    report = wr.Report(project="ours", entity="us", title="A report", blocks=[wr.H2("Heading")], width="fluid")
    spec = compat.as_wandb_spec(report)
    assert (spec.display_name, spec.project.entity_name, spec.spec.width) == ("A report", "us", "fluid")
    again = compat.from_wandb_spec(spec)
    assert (again.title, again.blocks, again.width) == ("A report", [wr.H2("Heading")], "fluid")


def test_the_scale_that_torch_leaves_to_a_step_is_told() -> None:
    import torch

    params = [torch.zeros(1, requires_grad=True)]
    scaling, plain = (SimpleNamespace(precision_plugin=SimpleNamespace(scaler=s)) for s in (Scaler(), None))
    moved = f"torch {version('torch')} leaves the scale of gradients to other steps: mend neumann/compat.py"
    assert compat.loss_scale_left(scaling, torch.optim.Adam(params, fused=True)) == 1024.0, moved  # type: ignore[arg-type]
    assert compat.loss_scale_left(scaling, torch.optim.Adam(params)) == 1.0, moved  # type: ignore[arg-type]
    assert compat.loss_scale_left(plain, torch.optim.Adam(params, fused=True)) == 1.0  # type: ignore[arg-type]


class Scaler:
    """torch's GradScaler, as far as it is asked."""

    def get_scale(self) -> float:
        return 1024.0


def test_a_parsers_long_options_are_listed() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("words", nargs="*")
    assert compat.long_options(parser) == ["--quiet"]


def test_what_was_registered_at_exit_is_run_once(python: Callable[[str], str]) -> None:
    code = "import atexit; from neumann import compat; atexit.register(print, 'ran');"
    assert python(f"{code} compat.run_exit_functions(); print('after')") == "ran\nafter\n"


def test_a_fork_server_answers_and_is_killed(python: Callable[[str], str]) -> None:
    code = (
        "import os; from multiprocessing import forkserver; from neumann import compat;"
        "forkserver.ensure_running(); compat.wait_for_fork_server(); print('answered');"
        "compat.kill_fork_server(); print(os.WTERMSIG(os.waitpid(forkserver._forkserver._forkserver_pid, 0)[1]))"
    )
    assert python(code) == "answered\n9\n"


def test_every_module_that_the_fork_server_imports_beforehand_is_there() -> None:
    """The server passes over a module that is not there without a word, and every run then imports it itself."""
    from neumann.launch.fork_server import PRELOADED

    stale = [name for name in PRELOADED if find_spec(name) is None]
    assert not stale


def test_nothing_outside_compat_reaches_for_a_private_name() -> None:
    found = [use for path in _sources() for use in _private_uses(path)]
    assert not found, "put these into neumann/compat.py: " + "; ".join(found)


def test_the_search_for_private_names_finds_them(tmp_path: Path) -> None:
    lines = [
        "from hydra._internal.x import Y",
        "import torch._dynamo",
        "from torch.nn import _Thing",
        "trainer._connector.run()",
        "getattr(x, '_hidden')",
        "self._own, self._own.fine, cls._own",
    ]
    (tmp_path / "x.py").write_text("\n".join(lines))
    assert sorted(use.split(":")[1] for use in _private_uses(tmp_path / "x.py")) == ["1", "2", "3", "4", "5"]


def _sources() -> Iterator[Path]:
    """Yield our modules; optim keeps its own private names, and the YAMLs' folders hold no modules."""
    for path in sorted(ROOT.rglob("*.py")):
        if path.name != "compat.py" and path.relative_to(ROOT).parts[0] not in (
            "optim",
            "conf",
            "sweeps",
            "experiments",
        ):
            yield path


OWN = {
    node.name
    for path in ROOT.rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
}


def _private_uses(path: Path) -> Iterator[str]:
    """Yield FILE:LINE: CODE for every underscored name of another project, as far as the syntax tells."""

    def private(name: str) -> bool:
        return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))

    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="_exit"):  # underscored, but documented by Python
                hit = False
            case ast.ImportFrom(module=str() as module, names=names) if module != "__future__":
                hit = not module.startswith("neumann") and (private(module) or any(private(n.name) for n in names))
            case ast.Import(names=names):
                hit = any(private(n.name) for n in names)
            case ast.Attribute(value=value, attr=attr):
                own = isinstance(value, ast.Name) and value.id in ("self", "cls")
                hit = private(attr) and not own and attr not in OWN
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str() as attr), *_]
            ):
                hit = private(attr)
            case _:
                hit = False
        if hit:
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]
