import copy

import pytest
import torch

from neumann.optim import NesterovInner, Neumann, NeumannReference
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, set_gradients, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SETTING = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 5, "reset_period": 20, "weight_decay": 1e-2}
PATHS = pytest.mark.parametrize(
    "how", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=["loop", "foreach", "Triton"]
)


def on_device(dtype):
    return [p.detach().cuda().requires_grad_() for p in new_params(dtype)]


def lend_gradients(params, step):
    members = [p.detach().cpu().requires_grad_() for p in params]
    set_gradients(members, step)
    for p, q in zip(params, members, strict=True):
        p.grad = q.grad.cuda()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("how", [{}, {"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_against_the_twin(how, capturable):
    params, literal_params = on_device(torch.float64), new_params()
    ours, literal = (
        Neumann(params, capturable=capturable, **how, **SETTING),
        NeumannReference(literal_params, **SETTING),
    )
    for step in range(200):
        lend_gradients(params, step)
        ours.step()
        train(literal, literal_params, [step])
    ours.eval()
    assert relative([p.cpu() for p in params], literal.answer()) < 1e-12


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Neumann(p, **SETTING),
        lambda p: Neumann(p, foreach=False, **SETTING),
        lambda p: Neumann(p, foreach=True, **{**SETTING, "lr": torch.tensor(0.05, device="cuda")}),
        lambda p: Neumann(p, capturable=True, **SETTING),
        lambda p: NesterovInner(p, lr=0.05),
    ],
    ids=["picked", "loop", "foreach, rate on the device", "capturable", "nesterov_inner"],
)
def test_a_step_waits_for_nothing(make):
    params = on_device(torch.float32)
    optimizer = make(params)
    lend_gradients(params, 0)
    optimizer.step()  # makes state and tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(30):
            optimizer.step()
        optimizer.eval()
        optimizer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@PATHS
def test_the_replay_of_a_cuda_graph_is_the_uncaptured_run(how):
    """Captured in burn-in, replayed through resets and the ramp of μ, with a rate that its owner fills."""
    rate = torch.tensor(0.05, device="cuda")
    setting = {**SETTING, "lr": rate, "reset_period": 4, "capturable": True}
    params, others = on_device(torch.float32), on_device(torch.float32)
    captured, plain = Neumann(params, **how, **setting), Neumann(others, **how, **setting)
    still = [torch.zeros_like(p) for p in params]  # a graph reads gradients from where they were
    for p, grad in zip(params, still, strict=True):
        p.grad = grad

    def take_gradients(members, step):
        for p, grad in zip(members, still, strict=True):
            grad.copy_(0.3 * torch.sin(3 * p.detach() + step))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(3):
            take_gradients(params, step)
            captured.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    assert int(captured.param_groups[0]["step"]) == 3  # a capture does nothing yet
    for step in range(3, 40):
        take_gradients(params, step)
        graph.replay()
        rate.mul_(0.99)
    rate.fill_(0.05)
    for step in range(40):
        for p in others:
            p.grad = 0.3 * torch.sin(3 * p.detach() + step)
        plain.step()
        if step >= 3:
            rate.mul_(0.99)
    assert int(captured.param_groups[0]["step"]) == 40
    assert relative([p.cpu() for p in params], [p.cpu() for p in others]) < 1e-6
    captured.eval()
    plain.eval()
    assert relative([p.cpu() for p in params], [p.cpu() for p in others]) < 1e-6


def test_a_capture_needs_capturable():
    params = on_device(torch.float32)
    optimizer = Neumann(params, **SETTING)
    lend_gradients(params, 0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@PATHS
@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_that_grad_scaler_skips_changes_nothing(how, capturable):
    params, others = on_device(torch.float32), on_device(torch.float32)
    setting = {**SETTING, "reset_period": 4, "capturable": capturable}
    optimizer, unscaled = Neumann(params, **how, **setting), Neumann(others, **how, **setting)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0, growth_interval=3)
    for step in range(24):
        lend_gradients(params, step)
        scale = float(scaler.scale(torch.ones((), device="cuda")))
        for p in params:
            p.grad.mul_(scale)
        bad = step in (3, 9, 10, 20)
        if bad:
            params[1].grad[2] = torch.inf
        before = copies(params), copy.deepcopy(optimizer.state_dict())
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert same_bits(copies(params), before[0])
            assert str(optimizer.state_dict()) == str(before[1])
        else:
            lend_gradients(others, step)
            unscaled.step()
    assert same_bits(params, others)


def test_grad_scaler_does_not_wait_where_we_skip():
    params = on_device(torch.float32)
    optimizer = Neumann(params, fused=True, capturable=True, **SETTING)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    scaler.scale(torch.ones((), device="cuda"))
    lend_gradients(params, 0)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaler.step(optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_state_goes_from_the_device_to_the_host_and_back():
    params = on_device(torch.float64)
    first = Neumann(params, capturable=True, **SETTING)
    host_params, literal_params = new_params(), new_params()
    second, literal = Neumann(host_params, **SETTING), NeumannReference(literal_params, **SETTING)
    for step in range(10):
        lend_gradients(params, step)
        first.step()
    with torch.no_grad():
        for p, q in zip(host_params, params, strict=True):
            p.copy_(q)
    second.load_state_dict(first.state_dict())
    assert second.state[host_params[0]]["m"].device.type == "cpu"
    train(second, host_params, range(10, 20))
    with torch.no_grad():
        for p, q in zip(params, host_params, strict=True):
            p.copy_(q)
    first.load_state_dict(second.state_dict())
    for step in range(20, 30):
        lend_gradients(params, step)
        first.step()
    train(literal, literal_params, range(30))
    assert relative([p.cpu() for p in params], literal_params) < 1e-12


def test_a_model_that_moves_takes_its_state_along():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = Neumann(model.parameters(), **{**SETTING, "lr": 1e-2})
    for device in ("cpu", "cuda", "cpu"):
        model.to(device)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(4, 3, device=device)).square().sum().backward()
            optimizer.step()
        assert {state["m"].device.type for state in optimizer.state.values()} == {device}
