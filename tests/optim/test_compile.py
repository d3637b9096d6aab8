"""torch.compile(optimizer.step) is the plain step, and compiles a fixed number of times however many steps there are."""

import pytest
import torch
import torch._dynamo  # its first use takes seconds

from neumann.optim import NesterovInner, Neumann
from tests.support.optimizer_paths import PATHS, path
from tests.support.optimizer_problems import new_params, relative, same_bits, set_gradients, train

STRONG = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 3, "reset_period": 7}
STEPS = 20  # through burn-in, the ramp of μ and two resets
WARM = 4


def run_compiled(optimizer, params, backend, steps=STEPS, before=lambda: None):
    """Take steps; after WARM of them, nothing may be compiled again."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(optimizer.step, backend=backend)
    for index in range(steps):
        set_gradients(params, index)
        before()
        with torch._dynamo.config.patch(error_on_recompile=index >= WARM):
            step()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.medium
@pytest.mark.parametrize("name", PATHS)
def test_a_step_that_is_not_capturable_stays_as_it_is(name):
    """Its phase is a number of the host: each would be another graph. It runs beside the graph, by the same kernel."""
    params, others = new_params(), new_params()
    with path(name) as how:
        compiled, plain = Neumann(params, **how, **STRONG), Neumann(others, **how, **STRONG)
        graphs = run_compiled(compiled, params, "eager", 12 if name == "Triton" else STEPS)
        assert bool(compiled._fused_passes) == how.get("fused", False)
        train(plain, others, range(12 if name == "Triton" else STEPS))
    assert graphs == 0
    assert same_bits(params, others)
    assert compiled.param_groups[0]["step"] == plain.param_groups[0]["step"]
    assert compiled.param_groups[0]["capturable"] is False


@pytest.mark.medium
@pytest.mark.parametrize("name", ["for-loop", "foreach"])
def test_a_capturable_step_is_one_graph_for_every_phase(name, recwarn):
    params, others = new_params(), new_params()
    with path(name) as how:
        compiled = Neumann(params, capturable=True, **how, **STRONG)
        plain = Neumann(others, **how, **STRONG)
        graphs = run_compiled(compiled, params, "eager")
        train(plain, others, range(STEPS))
    assert graphs == 2  # the first step makes the state
    assert relative(params, others) < 1e-12
    assert not [each for each in recwarn if "lru_cache" in str(each.message)]
    for each in (compiled, plain):
        each.eval()
    assert relative(params, others) < 1e-12


@pytest.mark.medium
def test_a_rate_that_is_a_tensor_may_change_without_compiling_again():
    params, others, rate = new_params(), new_params(), torch.tensor(0.05, dtype=torch.float64)
    compiled = Neumann(params, capturable=True, foreach=False, **{**STRONG, "lr": rate})
    run_compiled(compiled, params, "eager", before=lambda: rate.mul_(0.9))
    plain = Neumann(others, foreach=False, **STRONG)
    for step in range(STEPS):
        plain.param_groups[0]["lr"] = 0.05 * 0.9 ** (step + 1)
        train(plain, others, [step])
    assert relative(params, others) < 1e-12


@pytest.mark.medium
def test_a_compiled_training_step_takes_the_optimizer_along():
    """One function with forward, backward and step, as in torch's own examples."""
    torch.manual_seed(0)
    models = [torch.nn.Linear(4, 3).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    inputs = torch.randn(8, 4, dtype=torch.float64)
    optimizers = [Neumann(model.parameters(), **{**STRONG, "lr": 1e-2}) for model in models]

    def training_step(model, optimizer):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    torch._dynamo.reset()
    compiled = torch.compile(training_step, backend="eager")
    for _ in range(12):
        compiled(models[0], optimizers[0])
        training_step(models[1], optimizers[1])
    assert relative(list(models[0].parameters()), list(models[1].parameters())) < 1e-12
    assert optimizers[0].param_groups[0]["step"] == 12


@pytest.mark.medium
def test_nesterov_inner_compiles_once():
    params, others = new_params(), new_params()
    graphs = run_compiled(NesterovInner(params, lr=0.05), params, "eager")
    train(NesterovInner(others, lr=0.05), others, range(STEPS))
    assert graphs <= 2
    assert relative(params, others) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_inductor_computes_the_same(capturable, foreach):
    params, others = new_params(), new_params()
    compiled = Neumann(params, capturable=capturable, foreach=foreach, **STRONG)
    assert run_compiled(compiled, params, "inductor", 30) == (2 if capturable else 0)
    train(Neumann(others, foreach=foreach, **STRONG), others, range(30))
    assert relative(params, others) < 1e-12


@pytest.mark.medium
@pytest.mark.parametrize("name", ["for-loop", "fused"])
def test_a_compiled_step_may_take_the_place_of_the_optimizers_own(name):
    """``optimizer.step = torch.compile(optimizer.step)``, as PyTorch's tutorials have it; hooks run once a step."""
    torch._dynamo.reset()
    params, others, counts = new_params(), new_params(), [0, 0]
    with path(name if name in PATHS else "C++") as how:
        compiled, plain = Neumann(params, **how, **STRONG), Neumann(others, **how, **STRONG)

        def count(*_):
            counts[0] += 1

        compiled.register_step_post_hook(count)
        compiled.step = torch.compile(compiled.step, backend="eager")
        train(compiled, params, range(STEPS))
        train(plain, others, range(STEPS))
    assert same_bits(params, others)
    assert compiled.param_groups[0]["step"] == STEPS
    assert counts[0] == STEPS
