"""Words of a command line: a text keeps what was written, a number is a plain number, and nothing is given twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from neumann.config import make_spec
from neumann.config.override_text import FOLLOWS, key_of, parse_override, refuse_twice, value_of
from neumann.errors import UserError
from neumann.folders import folder_of
from tests.support.markdown_pages import ROOT


@pytest.mark.medium
@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("name=1.10", "name", "1.10"),
        ("name=1e3", "name", "1e3"),
        ("name=1e-400", "name", "1e-400"),
        ("name=true", "name", "true"),
        ("name='it''s'", "name", None),
        ("name=null", "name", None),
        ("study=2024_01", "study", "2024_01"),
        ("study=007", "study", "007"),
        ("study='1.10'", "study", "1.10"),
        ("output=2024.10", "output", "2024.10"),
        ("output=/data/2024_01/x", "output", "/data/2024_01/x"),
        ("output=/data/1_0", "output", "/data/1_0"),
        ("output='größe (1)'", "output", "größe (1)"),
    ],
)
def test_a_text_is_what_was_written(word: str, key: str, value: str | None) -> None:
    if word == "name='it''s'":
        with pytest.raises(UserError, match="quotes and brackets must close"):
            make_spec([word])
        return
    assert getattr(make_spec([word]).config, key) == value


@pytest.mark.medium
def test_a_number_with_underscores_within_a_text_is_none() -> None:
    kwargs = "+model.kwargs.a=/w/2024_01/x"
    assert make_spec([kwargs, "+model.kwargs.b=[x 1_0,'2_0']", "+model.kwargs.c={k: v/3_0}"]).config.model.kwargs == {
        "a": "/w/2024_01/x",
        "b": ["x 1_0", "2_0"],
        "c": {"k": "v/3_0"},
    }


@pytest.mark.medium
def test_texts_of_a_section_are_what_was_written() -> None:
    launch = make_spec(["launch=slurm", "launch.account=00123", "launch.qos=1_2", "launch.time=060"]).as_dict()[
        "launch"
    ]
    assert (launch["account"], launch["qos"], launch["time"]) == ("00123", "1_2", "060")


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["seed=010"], "seed='010' is not a whole number"),
        (["seed='3'"], "seed='3' is not a whole number"),
        (["seed=1_0"], "'seed=1_0': write 10 for the number"),
        (["optimizer.lr=1_0.5"], "write 10.5 for the number"),
        (["optimizer.lr=1e-400"], "1e-400 is nearer to zero than a number can be here"),
        (["optimizer.momentum=[-2.5e-999,0.9]"], "-2.5e-999 is nearer to zero"),
        (["timing.burn_in=.1e-500"], ".1e-500 is nearer to zero"),
        (["launch.threads=32768"], "launch.threads=32768 is out of range: it must be at least 1 and below 32768"),
        (["launch.parallel=32768"], "launch.parallel=32768 is out of range"),
        (["recipe.recalibrate_batch_norm=1000000"], "must be at least 0 and below 1000000"),
        *[
            ([f"launch.kind={value}"], "launch.kind is set by launch=local")
            for value in ("slurm", "${steps:1}", "${hydra:runtime.cwd}", "${nope:1}", "${nope.x}", "${launch.kind}")
        ],
        (["optimizer.momentum=[0_1,0.9]"], "optimizer.momentum[0]='0_1' is not a number"),
        (["optimizer.momentum=[1_0,0.9]"], "write 10 for the number"),
        (["optimizer.lr=1:30"], "optimizer.lr='1:30' is not a number"),
        (["optimizer.lr='0.1'"], "optimizer.lr='0.1' is not a number"),
        (["trainer.max_epochs='3'"], "trainer.max_epochs='3' is not a number"),
        (["batch.size=32.0"], "batch.size=32.0 is not a whole number"),
        (["+model.kwargs.width=1_6"], "write 16 for the number"),
        (["logger.tags=[1.10,a]"], "an element of logger.tags: 1.1 is a number and not a text"),
        (["logger.tags={a: 1}"], "'logger.tags' is a list, such as [a, b], and not a section"),
        (["logger.tags=x"], "logger.tags=x is not a list"),
        (["launch.devices=a"], "launch.devices=a is not a list"),
        (["name=größe"], "\"name='größe'\""),
        (["output=/data/(a)=[b]"], "\"output='/data/(a)=[b]'\""),
        (["output=~/x"], "\"output='~/x'\""),
        (["grö.ße=3"], "'grö.ße' is not the name of a setting"),
        (["logger.tags=[größe,日本]"], "\"logger.tags=['größe','日本']\""),
        (["optimizer.lr==3"], "leave out the equals sign before its value"),
        (["optimizer=sgd,"], "leave out the comma behind its value"),
        (["optimizer.lr=[1"], "quotes and brackets must close"),
        (["optimizer.lr=choice(0.1,0.2"], "quotes and brackets must close"),
        (["optimizer.lr=${seed"], "quotes and brackets must close"),
        (["optimizer.lr = 0.1"], "write optimizer.lr=0.1, without spaces"),
        (["=3"], "there is no setting before the equals sign"),
        (["optimizer=[sgd,adam]"], "for a run of each write optimizer=sgd,adam with -m, without brackets"),
        (["optimizer.lr=[0.1,0.2]"], "for a run of each write optimizer.lr=0.1,0.2 with -m, without brackets"),
        (["+optimizer=sgd"], "a choice is written optimizer=sgd, without a sign"),
        (["optimizer@foo=sgd"], "a choice is written optimizer=sgd, without a sign"),
        (["model.kwargs=[1]"], "'model.kwargs' is a section: set model.kwargs.NAME"),
        (["nonsense"], "an override is written key=value"),
        (["epochs=3"], "did you mean 'trainer.max_epochs'?"),
        (["lr=0.1"], "did you mean 'optimizer.lr'?"),
        (["accelerator=cuda"], "did you mean 'trainer.accelerator'?"),
        (["batch_size=3"], "did you mean 'batch.size'?"),
        (["devices=2"], "did you mean 'trainer.devices' or 'launch.devices'?"),
        (["learning_rate=3"], "did you mean 'optimizer.lr'?"),
        (["model=resnet18"], "any model of timm is model=timm model.name=resnet18"),
        (["optimizer=adagrad"], "any other is optimizer=torch optimizer.name=adagrad"),
        (["trainer.accelerator=cuda"], "did you mean 'gpu'?"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_is_not_meant_is_refused_with_what_to_write(words: list[str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        make_spec(words)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.medium
def test_what_the_message_says_to_write_works() -> None:
    assert make_spec(["name='größe'"]).config.name == "größe"
    assert make_spec(["output='/data/(a)=[b]'"]).config.output == "/data/(a)=[b]"


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1", "seed=2"],
        ["optimizer=sgd", "optimizer=adam"],
        ["+model.kwargs.a=1", "model.kwargs.a=2"],
        ["a=1", "~a"],
        ["model.kwargs.a=1", "+model.kwargs={a:2}"],
        ["recipe={label_smoothing:0.1}", "recipe.label_smoothing=0.2"],
        ["timing.burn_in=0.5", "optimizer.burn_in_steps=3"],
        ["schedule.ramp_steps=1,2", "timing.ramp=1"],
    ],
)
def test_nothing_is_given_twice(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"both set .*: leave out one of the two"):
        refuse_twice(words)
    refuse_twice([words[0], "other=1"])
    refuse_twice(["optimizer=sgd", "optimizer.lr=1"])
    refuse_twice(["timing=paper", "optimizer.burn_in_steps=3"])


def test_the_settings_that_follow_from_a_time_scale_are_those_of_the_files() -> None:
    found: dict[str, set[str]] = {}
    for group in ("optimizer", "schedule"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            for key, scale in re.findall(r"^(\w+): \$\{\w+:\$\{(timing\.\w+)\}", file.read_text(), re.MULTILINE):
                found.setdefault(scale, set()).add(f"{group}.{key}")
    assert {scale: {setting} for scale, setting in FOLLOWS.items()} == found


def test_an_override_has_a_key_and_a_value() -> None:
    assert [key_of(word) for word in ("a.b=1", "++a.b=1=2", "~a")] == ["a.b", "a.b", "a"]
    assert [value_of(word) for word in ("output='a b'", "output=1.10", "output=x")] == ["a b", "1.10", "x"]


def test_a_word_that_is_not_text_in_the_locale_is_refused_as_a_name_of_a_file_is() -> None:
    r"""``\udcc3`` is what Python makes of a byte outside the locale's encoding, ``\ud800`` is in no encoding."""
    with pytest.raises(UserError, match=r"'name=.*' is not text in this locale's encoding, utf-8: set LC_ALL=C.UTF-8"):
        value_of("name='gr\udcc3\udcb6'")
    assert folder_of("output", "gr\udcc3\udcb6") == "gr\udcc3\udcb6"  # a folder that is there has that name
    with pytest.raises(
        UserError, match=r"data\.root=.*: this locale writes the names of files in utf-8, which lacks a"
    ):
        folder_of("data.root", "\ud800")


@pytest.mark.medium
def test_a_home_folder_is_one_and_an_address_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_spec(["output='~/x'"]).config.output == str(tmp_path / "x")
    assert make_spec(["output='./~'"]).config.output == "./~"
    for word in ("output=s3://bucket/x", "output='gs://b'", "output=file:///x"):
        with pytest.raises(UserError, match=r"is an address, and only a folder can be used"):
            make_spec([word])
    with pytest.raises(UserError, match="no home folder of that name is known"):
        make_spec(["output='~nobody-of-that-name/x'"])
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path}/images"):  # it is looked into, and it is empty
        make_spec(["data=image_folder", "data.root='~/images'"])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["optimizer=sgd", "optimizer.momentum=5"], "optimizer.momentum=5 is out of range"),
        (["optimizer=nesterov", "optimizer.momentum=1"], "at least 0 and below 1"),
        (["optimizer=adam", "optimizer.betas=[0.9,0.99,0.999]"], "is not a list of 2 numbers"),
        (["optimizer=adam", "optimizer.betas=[0.9,1]"], "optimizer.betas[1]=1 is out of range"),
        (["optimizer=adamw", "optimizer.betas=0.9"], "is not a list of 2 numbers"),
        (
            ["optimizer=lars", "optimizer.trust_coeff=-1"],
            "optimizer.trust_coeff=-1 is out of range: it must be above 0",
        ),
        (["optimizer=lamb", "optimizer.max_grad_norm=-1"], "optimizer.max_grad_norm=-1 is out of range"),
        (["optimizer=rmsprop", "optimizer.alpha=2"], "optimizer.alpha=2 is out of range"),
        (["optimizer=sgd", "optimizer.lr=-0.1"], "optimizer.lr=-0.1 is out of range"),
        (["optimizer=torch", "optimizer.name=sgd", "+optimizer.kwargs.momentum=5"], "optimizer.kwargs.momentum=5"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_torch_and_timm_let_through_and_cannot_train_is_refused(words: list[str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        make_spec(words)
    assert part in str(caught.value)


@pytest.mark.parametrize("key", ["output", "data.root"])
@pytest.mark.parametrize("word", ["$HOME/x", "${DATA}/x", "a/$USER"])
def test_a_variable_that_the_shell_was_kept_from_replacing_makes_no_folder(
    key: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variable = next(part for part in word.split("/") if part.startswith("$"))
    sentence = f"{key}={word}: '{variable}' is not replaced here, and no folder has that name: leave the single quotes"
    with pytest.raises(UserError) as caught:
        folder_of(key, word)
    assert str(caught.value).startswith(sentence)
    Path(word).mkdir(parents=True)  # somebody's folder has that very name
    assert folder_of(key, word) == word
    assert folder_of(key, f"{word}/new") == f"{word}/new"  # and a new one is to lie in it
    assert folder_of(key, "costs/5$") == "costs/5$"


@pytest.mark.parametrize(
    ("word", "inner"),
    [
        ("seed=range(0,2),1", "range(…)"),
        ("seed=1,range(0,2)", "range(…)"),
        ("seed=[1,range(0,2)]", "range(…)"),
        ("optimizer.lr=interval(0.1,1),1", "interval(…)"),
        ("optimizer=glob(*),sgd", "glob(…)"),
        ("seed=shuffle(1,2),3", "shuffle(…) or sort(…)"),
        ("optimizer.betas={a:range(0,2)}", "range(…)"),
    ],
)
def test_a_sweep_among_other_values_is_one_sentence(word: str, inner: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_override(OverridesParser.create(), word)
    assert str(caught.value).startswith(f"cannot read '{word}': {inner} stands alone after the equals sign")


@pytest.mark.parametrize("word", ["seed=range(0,2)", "seed=1,2", "seed=shuffle(1,2)", "seed=sort(2,1)", "x=[1,[2]]"])
def test_a_sweep_that_stands_alone_is_read(word: str) -> None:
    assert parse_override(OverridesParser.create(), word).input_line == word
