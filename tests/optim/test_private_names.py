"""The private names that the optimizers rest on are where they were, and no other is used."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import Optimizer

import neumann.optim
from neumann.optim import Neumann, private_names

PACKAGE = Path(neumann.optim.__file__).parent
PUBLIC_IN_ALL_BUT_NAME = "_foreach_"


def moved(name: str, needed_by: str) -> str:
    return f"torch {torch.__version__}: {name} has moved or changed. {needed_by} needs it: see private_names.py"


def stepped(make=lambda p: torch.optim.SGD([p], lr=0.1)):
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = make(p)
    optimizer.step()
    return p, optimizer


def test_batch_norm_is_the_base_class_of_every_kind():
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    assert all(issubclass(kind, private_names.BatchNorm) for kind in kinds), moved("_BatchNorm", "batch_norm.py")
    assert not issubclass(nn.LayerNorm, private_names.BatchNorm)


def test_torch_counts_its_writes_to_a_tensor():
    tensor = torch.zeros(2)
    before = private_names.write_count(tensor)
    tensor.add_(1)
    after = private_names.write_count(tensor)
    tensor.numpy().fill(0)
    assert (after, private_names.write_count(tensor)) == (before + 1, before + 1), moved("Tensor._version", "fused.py")


@pytest.mark.medium
def test_a_function_is_left_out_of_compiled_graphs():
    seen = []

    @private_names.outside_compiled_graphs
    def look():
        seen.append(torch.compiler.is_compiling())

    @torch.compile(backend="eager")
    def compiled(x):
        look()
        return x + 1

    compiled(torch.ones(2))
    assert seen == [False], moved("torch._disable_dynamo", "phased.py")


def test_loading_puts_one_default_among_the_defaults_that_no_group_has():
    for make in (lambda p: Optimizer([p], {"lr": 0.1}), lambda p: Optimizer([{"params": [p]}], {"lr": 0.1})):
        optimizer = make(nn.Parameter(torch.ones(2)))
        before = set(optimizer.defaults)
        optimizer.load_state_dict(optimizer.state_dict())
        new = set(optimizer.defaults) - before
        assert new == {private_names.DEFAULT_OF_LOADING}, moved("Optimizer.__setstate__", "displaced.py")
        assert new.isdisjoint(optimizer.param_groups[0])


def test_a_hooks_warning_names_the_caller_of_the_module(recwarn):
    import warnings

    module = nn.Linear(1, 1)
    module.register_forward_pre_hook(lambda *_: warnings.warn("here", stacklevel=private_names.CALLER_OF_MODULE))
    module(torch.ones(1))
    (warning,) = recwarn
    assert warning.filename == __file__, moved("the frames of nn.Module.__call__", "Watcher in displaced.py")


def test_tensors_are_parted_by_device_and_type_with_their_places():
    tensors = [torch.zeros(1), torch.zeros(2, dtype=torch.float64), torch.zeros(3)]
    parts = private_names.parts_of_one_device_and_dtype(tensors)
    told = sorted(([each.numel() for each in part], list(places)) for part, places in parts)
    assert told == [([1, 3], [0, 2]), ([2], [1])], moved("_group_tensors_by_device_and_dtype", "tensors.py")


def test_the_hooks_of_a_step_can_be_seen():
    _, optimizer = stepped()

    def hook(*_):
        return None

    optimizer.register_step_post_hook(hook)
    assert private_names.step_post_hooks(optimizer) == [hook], moved("_optimizer_step_post_hooks", "burn_in_sgd.py")


def test_torch_marks_a_step_that_runs_hooks():
    class Hookless:
        def step(self):
            return None

    assert private_names.runs_step_hooks(stepped()[1]), moved("Optimizer.step.hooked", "average.py")
    assert not private_names.runs_step_hooks(Hookless())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_grad_scaler_gives_scale_and_found_inf_to_a_step_that_can_use_them():
    told_by_grad_scaler("cuda")


def test_grad_scaler_gives_scale_and_found_inf_on_the_cpu_too():
    told_by_grad_scaler("cpu")


def told_by_grad_scaler(device: str) -> None:
    p = nn.Parameter(torch.ones(2, device=device))
    told = []

    class Asks(torch.optim.SGD):
        _step_supports_amp_scaling = True

        def step(self, closure=None):
            told.append((private_names.gradient_scale(self), private_names.found_inf(self)))

    optimizer, scaler = Asks([p], lr=0.1), torch.amp.GradScaler(device, init_scale=8.0)
    scaler.scale(p.sum()).backward()
    p.grad[0] = torch.inf
    scaler.step(optimizer)
    ((scale, found),) = told
    assert float(scale) == 8.0, moved("Optimizer.grad_scale", "phased.py")
    assert float(found) == 1.0, moved("Optimizer.found_inf", "phased.py and average.py")
    assert private_names.gradient_scale(optimizer) is None
    assert private_names.found_inf(optimizer) is None
    assert isinstance(Neumann._step_supports_amp_scaling, property)


def test_timms_lookahead_shows_the_optimizer_inside():
    lookahead = pytest.importorskip("timm.optim").Lookahead
    inside = stepped()[1]
    assert private_names.base_optimizer(lookahead(inside)) is inside, "timm: Lookahead._base_optimizer has moved"
    assert private_names.base_optimizer(inside) is None


def test_timms_registry_takes_registrations():
    pytest.importorskip("timm")
    assert callable(private_names.timm_registry().register), "timm: default_registry has moved; timm.py needs it"


def test_a_lightning_module_has_its_trainer_or_none():
    lightning = pytest.importorskip("pytorch_lightning")
    module = lightning.LightningModule()
    assert private_names.attached_trainer(module) is None
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    module.trainer = trainer
    assert private_names.attached_trainer(module) is trainer, "Lightning: LightningModule._trainer has moved"


def test_no_other_private_name_of_torch_is_used_and_the_lists_of_tensors_are_there():
    """An attribute of `torch`, `torch.x` or `Optimizer`, or a name imported from torch, that begins with one underscore."""
    lists = set()
    for file in PACKAGE.rglob("*.py"):
        if file.name == "private_names.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[0] in ("torch", "Optimizer"):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "timm"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            else:
                continue
            private = [name for name in names if name.startswith("_") and not name.startswith("__")]
            lists |= {name for name in private if name.startswith(PUBLIC_IN_ALL_BUT_NAME)}
            others = [name for name in private if not name.startswith(PUBLIC_IN_ALL_BUT_NAME)]
            assert not others, f"{file.name}:{node.lineno} uses {others}: only private_names.py may"
    assert len(lists) > 5
    assert all(hasattr(torch, name) for name in lists), moved(str(lists), "foreach.py")
