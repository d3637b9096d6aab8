import pytest
import torch
from optim_problems import new_params, relative, set_gradients, train

from neumann.optim import NesterovInner, Neumann, NeumannReference

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SETTING = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 5, "reset_period": 20, "weight_decay": 1e-2}


def on_device(dtype):
    return [p.detach().cuda().requires_grad_() for p in new_params(dtype)]


def lend_gradients(params, step):
    members = [p.detach().cpu().requires_grad_() for p in params]
    set_gradients(members, step)
    for p, q in zip(params, members, strict=True):
        p.grad = q.grad.cuda()


@pytest.mark.parametrize("foreach", [None, False])
def test_against_the_twin(foreach):
    params, literal_params = on_device(torch.float64), new_params()
    ours, literal = Neumann(params, foreach=foreach, **SETTING), NeumannReference(literal_params, **SETTING)
    for step in range(200):
        lend_gradients(params, step)
        ours.step()
        train(literal, literal_params, [step])
    ours.eval()
    assert relative([p.cpu() for p in params], literal.answer()) < 1e-12


@pytest.mark.parametrize("make", [lambda p: Neumann(p, **SETTING), lambda p: NesterovInner(p, lr=0.05)])
def test_a_step_waits_for_nothing(make):
    params = on_device(torch.float32)
    optimizer = make(params)
    lend_gradients(params, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(30):
            optimizer.step()
        optimizer.eval()
        optimizer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
