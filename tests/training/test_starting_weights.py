"""A run starts from another run's answer, its head new where the classes are others."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from neumann.config import load_spec, make_spec
from neumann.errors import UserError
from neumann.store import RunFolder
from neumann.training.build_check import wrong_settings
from neumann.training.checkpoints import decode, encode
from neumann.training.distributed import RankGroup
from neumann.training.parts import build_parts
from tests.support.quick_runs import Train, quick

SHORT = ("trainer.max_epochs=0.2", "optimizer=neumann")
WEIGHTS = "eval-weights.pt"


@pytest.fixture
def trained(train: Train) -> RunFolder:
    return train(*SHORT)[1]


def saved(folder: RunFolder) -> dict[str, Tensor]:
    with folder.eval_weights.open("rb") as file:
        state: dict[str, Tensor] = decode(file)["state_dict"]
    return state


def first_weights(*words: str) -> dict[str, Tensor]:
    """Return the weights that a run begins with."""
    return build_parts(quick(*SHORT, *words), RankGroup()).module.model.state_dict()


def test_it_begins_at_the_answer_with_its_statistics(trained: RunFolder, train: Train) -> None:
    """By the run's folder, its name, its signature and its file, which are one run."""
    result = trained.result()
    assert result is not None
    answer = saved(trained)
    ways = (str(trained.path), trained.path.name, result["signature"], str(trained.eval_weights))
    specs = [quick(*SHORT, "seed=1", f"model.checkpoint={way}") for way in ways]
    assert len({spec.signature for spec in specs}) == 1
    assert specs[0].signature != quick(*SHORT, "seed=1").signature
    assert load_spec(specs[0].as_record()).signature == specs[0].signature
    begun = first_weights("seed=1", f"model.checkpoint={trained.path}")
    assert begun.keys() == answer.keys()
    assert all(torch.equal(begun[key], answer[key]) for key in answer)  # the buffers of batch norm among them
    assert int(begun["features.1.num_batches_tracked"]) > 0
    tuned, _ = train(*SHORT, "seed=1", f"model.checkpoint={trained.path}")
    digest = hashlib.sha256(trained.eval_weights.read_bytes()).hexdigest()
    assert tuned["start"] == {
        "path": str(trained.eval_weights),
        "sha256": digest,
        "run": result["signature"],
        "point": "base",
        "new_head": [],
    }
    assert "start" not in result


def test_images_are_normalised_as_the_weights_were(trained: RunFolder) -> None:
    with trained.eval_weights.open("rb") as file:
        content = decode(file)
    content["data"]["mean"], content["data"]["std"] = [0.25], [0.5]
    Path("w.pt").write_bytes(encode(content))
    data = build_parts(quick(*SHORT, "model.checkpoint=w.pt"), RankGroup()).data
    assert (data.mean, data.std) == ((0.25,), (0.5,))
    torch.save(content["state_dict"], "plain.pt")
    plain = build_parts(quick(*SHORT, "model.checkpoint=plain.pt"), RankGroup()).data
    assert (plain.mean, plain.std) == (
        build_parts(quick(*SHORT), RankGroup()).data.mean,
        build_parts(quick(*SHORT), RankGroup()).data.std,
    )


def test_the_head_is_new_where_the_classes_are_others(trained: RunFolder, train: Train) -> None:
    """Also where there are as many of them."""
    answer = saved(trained)
    data = ("data=fashion14", f"model.checkpoint={trained.path}")
    told = r"the head \(head.weight, head.bias\) begins anew: the weights of .* are for 10 classes \(0, 1, 2, …\)"
    with pytest.warns(UserWarning, match=told):
        begun = first_weights(*data)
    fresh = first_weights("data=fashion14")
    for key in answer:
        same = fresh if key.startswith("head.") else answer
        assert torch.equal(begun[key], same[key]), key


def test_a_head_of_another_size_is_new(trained: RunFolder) -> None:
    with trained.eval_weights.open("rb") as file:
        content = decode(file)
    content["state_dict"]["head.weight"] = torch.zeros(7, 16)
    content["state_dict"]["head.bias"] = torch.zeros(7)
    torch.save(content["state_dict"], "seven.pt")  # says nothing of its classes
    with pytest.warns(
        UserWarning, match=r"begins anew: the weights of seven.pt are for other classes, the data has 10"
    ):
        begun = first_weights("model.checkpoint=seven.pt")
    assert begun["head.weight"].shape == (10, 16)
    assert torch.equal(begun["features.0.weight"], content["state_dict"]["features.0.weight"])


def test_an_exported_folder_is_read(trained: RunFolder) -> None:
    state = saved(trained)
    Path("out").mkdir()
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, "out/model.safetensors")
    config = {
        "architecture": "small_cnn",
        "model_args": {"width": 8},
        "label_names": [str(digit) for digit in range(10)],
        "pretrained_cfg": {"mean": [0.25], "std": [0.5]},
    }
    Path("out/config.json").write_text(json.dumps(config), encoding="utf-8")
    parts = build_parts(quick(*SHORT, "model.checkpoint=out"), RankGroup())
    assert (parts.data.mean, parts.start.new_head) == ((0.25,), [])
    assert all(torch.equal(value, state[key]) for key, value in parts.module.model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=timm", "model.name=test_resnet"], "holds the weights of small_cnn, and model.name=test_resnet is another"),
        (["model.kwargs.width=16"], r"the network's features.0.weight is 16×1×3×3, and the file has 8×1×3×3, as model.kwargs={"),
        (["+model.kwargs.checkpoint_path=FILE"], "model.checkpoint and model.kwargs.checkpoint_path both name weights"),
    ],
)  # fmt: skip
def test_other_networks_weights_are_refused(words: list[str], sentence: str, trained: RunFolder) -> None:
    """Before any run of a launch trains, and when the run is built."""
    base = ["trainer.max_epochs=0.2", "logger=none", f"model.checkpoint={trained.path}"]
    width = [] if "width" in "".join(words) or "timm" in "".join(words) else ["+model.kwargs.width=8"]
    given = [word.replace("FILE", str(trained.eval_weights)) for word in words]
    spec = make_spec([*base, *width, *(f"+{w}" if w.startswith("model.kwargs") else w for w in given)])
    with pytest.raises(UserError) as refused:
        build_parts(spec, RankGroup())
    assert sentence in str(refused.value)
    (told,) = wrong_settings([spec])
    assert told == str(refused.value)


def test_what_is_no_weights_is_one_sentence(trained: RunFolder) -> None:
    content = trained.eval_weights.read_bytes()
    Path("cut").mkdir()
    Path("cut", WEIGHTS).write_bytes(content[:-100])
    Path("text.pt").write_text("no weights", encoding="utf-8")
    torch.save({"step": 3}, "other.pt")
    for path, sentence in {
        f"cut/{WEIGHTS}": "cannot be used: it is cut short",
        "text.pt": "cannot be used: it is not a file of weights",
        "other.pt": "is not a network's state_dict",
    }.items():
        with pytest.raises(UserError, match=re.escape(sentence)) as refused:
            build_parts(quick(*SHORT, f"model.checkpoint={path}"), RankGroup())
        assert "\n" not in str(refused.value)
    Path("empty").mkdir()
    for path, sentence in {
        "empty": "holds no eval-weights.pt or model.safetensors: the run is not over",
        "no-such-run": "is no file, no folder and no run in runs",
        "no/such/file": "the file cannot be read (no such file or directory)",
    }.items():
        with pytest.raises(UserError, match=re.escape(sentence)):
            quick(*SHORT, f"model.checkpoint={path}")


def test_a_name_of_several_runs_is_refused(trained: RunFolder) -> None:
    other = trained.path.parent.with_name("other")
    other.mkdir()
    (other / trained.path.name).mkdir()
    with pytest.raises(UserError, match="is the name of 2 runs: give the folder of one, such as runs/default/"):
        quick(*SHORT, f"model.checkpoint={trained.path.name}")


def test_it_is_not_searched() -> None:
    from neumann.config.signature import why_not_tuned

    assert "is what a run starts from" in str(why_not_tuned("model.checkpoint"))
