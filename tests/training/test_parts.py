"""Tests of a run's parts: each is built once, on the device and in the precision that it trains in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from neumann.config import make_spec
from neumann.errors import UserError
from neumann.training.distributed import RankGroup
from neumann.training.parts import build_parts
from tests.support.quick_runs import Train, quick

COUNTED = """
import torch

class Counted(torch.optim.SGD):
    made = []

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, lr=lr)
        Counted.made.append(self)
"""


def test_the_optimizer_that_was_checked_is_the_one_that_trains(
    train: Train, own_group: Callable[[str, str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counted.py").write_text(COUNTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    dirs = (own_group("optimizer", "mine", "_target_: counted.Counted\nlr: 0.1\n"),)
    result, _ = train("optimizer=mine", "trainer.max_epochs=1", dirs=dirs)
    assert result["step"] == 18
    assert len(sys.modules["counted"].Counted.made) == 1


def test_lightning_gets_the_optimizer_of_the_schedule() -> None:
    parts = build_parts(quick("optimizer=neumann"), RankGroup())
    optimizer = parts.module.configure_optimizers()
    parts.module.to("cpu", torch.float32)  # as Lightning does; the parameters stay the same objects
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in parts.module.parameters()}
    optimizer.step()
    assert parts.schedule.count == 1


@pytest.mark.medium
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_state_that_a_constructor_makes_is_of_the_type_that_is_trained(
    precision: str, dtype: torch.dtype, train: Train
) -> None:
    """Adagrad makes its sums when it is made, of the type and on the device that the parameters have then."""
    words = ["optimizer=torch", "optimizer.name=Adagrad", "trainer.max_epochs=1", "checkpoint=last"]
    _, folder = train(*words, f"trainer.precision={precision}")
    state = torch.load(folder.last, weights_only=True)["optimizer_states"][0]["state"]
    assert {values["sum"].dtype for values in state.values()} == {dtype}


@pytest.mark.medium
@pytest.mark.parametrize("in_memory", ["true", "false"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_weights_get_their_own_statistics(tmp_path: Path, in_memory: str, channels: int) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit").state_dict(), weights)  # its statistics are 0.5, unlike ImageNet's
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (160, 160), (9 * number, 100 * label, 40)).save(tmp_path / "set" / name / f"{number}.png")
    words = ["data=image_folder", f"data.root={tmp_path / 'set'}", f"data.in_memory={in_memory}", "model=timm"]
    words += ["model.name=test_vit", "data.workers=0", "batch.size=4", f"data.channels={channels}"]
    plain = make_spec(words)
    weighted = ["+model.kwargs.pretrained=true", f"+model.kwargs.pretrained_cfg_overlay.file={weights}"]
    pretrained = make_spec([*words, *weighted])
    chosen = make_spec([*words, *weighted, f"data.mean={[0.1] * channels}", f"data.std={[0.2] * channels}"])
    half = (0.5,) * channels
    for spec, wanted in ((pretrained, (half, half)), (chosen, ((0.1,) * channels, (0.2,) * channels))):
        data = build_parts(spec, RankGroup()).data
        assert (data.mean, data.std) == wanted
    assert build_parts(plain, RankGroup()).data.mean != half
    assert plain.signed()["config"]["data"]["mean"] is None
    assert chosen.signed()["config"]["data"]["mean"] == [0.1] * channels
    assert pretrained.signed()["config"]["data"]["mean"] == list(half)


def test_a_batch_of_one_that_batch_norm_cannot_take_is_one_sentence() -> None:
    words = ["model=timm", "model.name=test_resnet", "batch.size=1"]
    with pytest.raises(
        UserError, match=r"batch\.size gives each process one image.*choose batch\.size=2 or more"
    ) as error:
        build_parts(make_spec(words), RankGroup())
    assert "more than 1 value per channel" in str(error.value)


def test_a_batch_of_one_that_can_be_trained_leaves_no_trace() -> None:
    one, two = (build_parts(quick("batch.size=1", f"seed={seed}"), RankGroup()).module for seed in (0, 0))
    for name, buffer in one.state_dict().items():
        assert torch.equal(buffer, two.state_dict()[name])
    means = [buffer for name, buffer in one.named_buffers() if name.endswith("running_mean")]
    assert means
    assert all(not mean.any() for mean in means)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_on_a_gpu_everything_is_built_there() -> None:
    words = ["optimizer=torch", "optimizer.name=Adagrad", "recipe.weight_average=0.9"]
    parts = build_parts(quick(*words), RankGroup())
    optimizer = parts.module.configure_optimizers()
    tensors = [*parts.module.parameters(), *(values["sum"] for values in optimizer.state.values())]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
