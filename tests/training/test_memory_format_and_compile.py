"""Memory format, torch.compile and bf16 change rounding and time, and nothing else of a run."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from timm.models import register_model
from torch import Tensor

from neumann.errors import Interrupted, UserError
from neumann.models.classifiers import SmallCNN, build_model
from neumann.models.timm_arguments import own_settings
from neumann.processes.ranks import RankPlace
from neumann.store import RunFolder, find
from neumann.training import precision
from neumann.training.distributed import RankGroup
from neumann.training.parts import build_parts, check_device
from neumann.training.run import run
from neumann.training.stopping import Stop
from tests.support.quick_runs import Train, quick
from tests.support.rank_groups import together
from tests.training.test_accumulation import assert_equal, weights

SHORT = (
    "optimizer=neumann",
    "trainer.max_epochs=0.4",
    "trainer.check_val_every_n_epoch=0.2",
    "timing.reset_period=0.2",
)
EXACT = (*SHORT, "trainer.precision=64-true")


class Viewing(SmallCNN):
    """Views its activations as contiguous ones."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        logits: Tensor = self.head(features.view(len(x), -1).view(*features.shape[:2], -1).mean(dim=2))
        return logits


@register_model
def viewing(**kwargs: Any) -> Viewing:
    """Return a `Viewing` of ``kwargs``."""
    return Viewing(**own_settings("viewing", kwargs))


def stopped_and_resumed(words: tuple[str, ...], train: Train, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Train a run that is stopped after its fifth step, and goes on."""
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *place: Any) -> None:
        if place[-1] == 4:
            patch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
        original(self, *place)

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "on_train_batch_end", stop_once)
        with pytest.raises(Interrupted, match="stopped at step 5"):
            train(*words, "study=stopped")
    result, folder = train(*words, "study=stopped")
    assert result["attempts"] == 2
    return folder


@pytest.mark.parametrize("setting", ["model.channels_last", "model.compile"])
def test_either_is_signed_where_it_is_on(setting: str) -> None:
    before = quick().signature
    assert quick(f"{setting}=false").signature == before
    assert quick(f"{setting}=true").signature != before


def test_channels_last_trains_the_same_network(train: Train) -> None:
    _, plain = train(*EXACT)
    _, folder = train(*EXACT, "model.channels_last=true")
    state = weights(folder)
    assert_equal(weights(plain), state, buffers=True)
    assert state["features.3.weight"].is_contiguous(memory_format=torch.channels_last)


def test_channels_last_takes_the_fused_step_and_resumes_to_the_bit(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*SHORT, "model.channels_last=true")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fused")
        _, whole = train(*words)
    again = stopped_and_resumed(words, train, monkeypatch)
    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(whole).items())


def test_a_network_that_cannot_compute_in_it_is_refused() -> None:
    fitted: dict[str, Any] = {"in_chans": 3, "num_classes": 10, "image_size": (8, 8)}
    build_model("viewing", {"width": 8}, **fitted)
    told = r"viewing cannot compute in model.channels_last=true \(.*view.*\): set it to false"
    with pytest.raises(UserError, match=told):
        build_model("viewing", {"width": 8}, **fitted, channels_last=True)


def test_bf16_trains_with_the_fused_step_and_resumes_to_the_bit(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and the optimizer's state stay in float32; only the network computes in bf16."""
    words = (*SHORT, "trainer.precision=bf16-mixed")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fused")
        _, whole = train(*words)
    _, full = train(*SHORT)
    state = weights(whole)
    assert state["head.weight"].dtype == torch.float32
    assert 0 < float((state["head.weight"] - weights(full)["head.weight"]).abs().max()) < 0.05
    again = stopped_and_resumed(words, train, monkeypatch)
    assert all(torch.equal(value, weights(again)[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("line", "told"),
    [("flags : sse avx512_bf16", False), ("Features : fp asimd bf16", False), ("flags : sse avx2", True), ("", False)],
)
def test_bf16_without_instructions_for_it_is_told(
    line: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said of a processor that does not list its instructions."""
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(precision, "PROCESSOR", tmp_path / "cpuinfo")
    said = precision.slow_precision("cpu", "bf16-mixed")
    assert bool(said) is told
    assert not precision.slow_precision("cpu", "32-true")
    for has in (True, False):  # of a GPU torch knows it
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert ["this GPU has no instructions" in one for one in precision.slow_precision("gpu", "bf16-mixed")] == (
            [] if has else [True]
        )
    if told:
        with pytest.warns(UserWarning, match="no instructions for bf16, so torch emulates it"):
            build_parts(quick("trainer.precision=bf16-mixed"), RankGroup())


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here")
@pytest.mark.slow
def test_a_compiled_network_trains_the_same_and_resumes_to_the_bit(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*EXACT, "batch.norm_size=32", "model.compile=true")
    _, plain = train(*EXACT, "batch.norm_size=32")
    calls = []
    real = torch.nn.Module.compile

    def compiled(self: torch.nn.Module, **settings: Any) -> None:
        calls.append(settings)
        real(self, **settings)

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    torch.compiler.reset()
    _, whole = train(*words)
    assert calls == [{"dynamic": False}]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # of training and of evaluation
    assert_equal(weights(plain), weights(whole), buffers=True)
    again = stopped_and_resumed(words, train, monkeypatch)
    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(whole).items())


def rank_of(ranks: RankPlace, listener: Any, words: tuple[str, ...]) -> int:
    """Train as one rank; return how many attempts the run took."""
    attempts: int = run(quick(*words), Console(quiet=True), threads=1, ranks=ranks, listener=listener)["attempts"]
    return attempts


def on_two_ranks(*words: str) -> list[Any]:
    return together(rank_of, 2, words, joined_already=False, patience=600)


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here")
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_ranks_that_accumulate_compile_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    split = (*EXACT, "trainer.devices=2", "trainer.accelerator=cpu", "batch.max_per_device=16", "batch.norm_size=16")
    words = (*split, "model.compile=true")
    assert on_two_ranks(*split) == [1, 1]
    assert on_two_ranks(*words) == [1, 1]
    plain, compiled = (weights(find(quick(*its))) for its in (split, words))
    assert find(quick(*words)).result()["batch"]["accumulation"] == 2
    assert_equal(plain, compiled, buffers=True)  # by the plain names
    assert any(not torch.equal(plain[key], compiled[key]) for key in plain), "it rounds otherwise, so it was compiled"
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *place: Any) -> None:
        if place[-1] == 4 and self._group.rank == 1:
            signal.raise_signal(signal.SIGINT)
        original(self, *place)

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "on_train_batch_end", stop_once)
        stopped = on_two_ranks(*words, "study=stopped")
    assert [type(answer) for answer in stopped] == [Interrupted] * 2
    step = find(quick(*words, "study=stopped")).status()["step"]
    assert 5 <= step < 7
    assert on_two_ranks(*words, "study=stopped") == [2, 2]
    again = weights(find(quick(*words, "study=stopped")))
    assert all(torch.equal(value, again[key]) for key, value in compiled.items())


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"model.compile=true: no C\+\+ compiler was found .*: install one"):
        build_parts(quick("model.compile=true"), RankGroup())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    spec = quick("model.compile=true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"model.compile=true needs Triton on a GPU, which is not installed"):
        check_device(spec)
