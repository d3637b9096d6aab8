"""YAML files: a word that only YAML 1.1 takes for a number stays the text that it is; what cannot be read is a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neumann.config import make_spec, yaml_files
from neumann.config.yaml_files import read_yaml
from neumann.errors import UserError
from neumann.search.grid import expand


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, text) for text in ("1:00:00", "060", "00123", "no", "on", "Yes", "1_0", "1:30", "2024_01", "0x1F", "0b1")],
        *[(text, text) for text in ("1_000.5", "12e", ".", "2024-01-02", "n")],
        *[("10", 10), ("-3", -3), ("+5", 5), ("0", 0), ("1.10", 1.1), ("1e-3", 1e-3), ("5E3", 5e3), (".5", 0.5), ("3.", 3.0)],
        *[("true", True), ("False", False), ("null", None), ("~", None), ("", None), (".inf", float("inf"))],
        *[("'10'", "10"), ('"no"', "no"), ("[010, 1_0, 3]", ["010", "1_0", 3]), ("&a [1]", [1])],
    ],
)  # fmt: skip
def test_only_plain_decimals_are_numbers(text: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"key: {text}\n")
    (read,) = read_yaml(tmp_path / "x.yaml").values()
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"# a remark\n", "is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"word\n", "holds a single value"),
        (b"a: 1\nb: 2\na: 3\n", "line 3 cannot be read: the key 'a' stands there twice"),
        (b"a: 1\n'a': 3\n", "line 2 cannot be read: the key 'a' stands there twice"),
        (b"a: {b: 1, b: 2}\n", "line 1 cannot be read: the key 'b' stands there twice"),
        (b"a: 1\n'': 2\n", "line 2 cannot be read: a key is empty"),
        (b"a: 1\n~: 2\n", "line 2 cannot be read: a key is empty"),
        (b"a: 1\n? [b]\n: 2\n", "line 2 cannot be read: a key is not a word"),
        (b"a: 0.0\nb: 1e-400\n", "line 2 cannot be read: 1e-400 is nearer to zero than a number can be here"),
        (b"a: {b\n", "line 2 cannot be read"),
        (b"a: *b\n", "cannot be read: found undefined alias 'b'"),
        (b"a: !!python/object:os.system x\n", "cannot be read"),
        ("a: 1\nb: größe\n".encode("latin-1"), "is not UTF-8 (line 2)"),
        ("a: größe\n".encode("utf-16"), "is not UTF-8 (line 1)"),
        (b"a: \x00\n", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(content: bytes, part: str, tmp_path: Path) -> None:
    file = tmp_path / "optimizer" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert part in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"mine\.yaml"):  # the same sentence when Hydra asks for it
        make_spec(["optimizer=mine"], [str(tmp_path)])


def test_a_file_is_read_as_utf_8_whatever_the_locale_and_its_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("\ufeffgröße: 日本\n".encode())
    assert read_yaml(tmp_path / "x.yaml") == {"größe": "日本"}


def own(folder: Path, name: str, text: str) -> list[str]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return [str(folder)]


@pytest.mark.medium
def test_a_text_in_a_file_keeps_its_digits_and_a_number_refuses_such_a_word(tmp_path: Path) -> None:
    cluster = (
        "defaults: [slurm]\naccount: 00123\nqos: no\ntime: 1:00:00\nsetup: [on, '1.0']\nsbatch: {constraint: 010}\n"
    )
    dirs = own(tmp_path, "launch/cluster.yaml", cluster)
    launch = make_spec(["launch=cluster"], dirs).as_dict()["launch"]
    assert (launch["account"], launch["qos"], launch["time"]) == ("00123", "no", "1:00:00")
    assert (launch["setup"], launch["sbatch"]) == (["on", "1.0"], {"constraint": "010"})
    own(tmp_path, "launch/cluster.yaml", cluster.replace("1:00:00", "060"))
    assert make_spec(["launch=cluster"], dirs).as_dict()["launch"]["time"] == "060"
    own(tmp_path, "launch/cluster.yaml", cluster + "workers: 010\n")
    with pytest.raises(UserError, match=r"yaml, line \d+: launch\.workers='010' is not a whole number"):
        make_spec(["launch=cluster"], dirs)
    own(tmp_path, "launch/cluster.yaml", cluster.replace("qos: no", "qos: 1.10"))
    with pytest.raises(
        UserError,
        match=r"yaml, line \d+: launch\.qos: 1\.1 is a number and not a text or null: write the text in quotes",
    ):
        make_spec(["launch=cluster"], dirs)
    own(tmp_path, "optimizer/mine.yaml", "_target_: torch.optim.SGD\nlr: 1:30\n")
    with pytest.raises(UserError, match=r"optimizer\.lr='1:30' is not a number"):
        make_spec(["optimizer=mine"], dirs)
    own(tmp_path, "trainer/mine.yaml", "defaults: [default]\ndeterministic: yes\n")
    with pytest.raises(UserError, match=r"yaml, line \d+: trainer\.deterministic=yes is not true or false"):
        make_spec(["trainer=mine"], dirs)


@pytest.mark.medium
def test_a_sweep_file_keeps_texts_too(tmp_path: Path) -> None:
    params = "hydra: {sweeper: {params: {seed: '0,1'}}}\n"
    dirs = own(tmp_path, "sweeps/mine.yaml", params + "study: 2024_01\n")
    assert make_spec(expand(["+sweeps=mine"], dirs)[0], dirs).config.study == "2024_01"
    own(tmp_path, "sweeps/mine.yaml", params + "name: 1.10\n")
    with pytest.raises(UserError, match=r"mine\.yaml: name: 1\.1 is not a text: write the text in quotes"):
        expand(["+sweeps=mine"], dirs)
    own(tmp_path, "sweeps/mine.yaml", params + "name: '1.10'\n")
    assert make_spec(expand(["+sweeps=mine"], dirs)[0], dirs).config.name == "1.10"


@pytest.mark.medium
@pytest.mark.parametrize("name", ["optimizer/sgd.yaml", "schedule/cosine.yaml", "sweeps/rates.yaml", "train.yaml"])
def test_an_own_file_with_the_name_of_ours_is_refused_and_both_are_named(name: str, tmp_path: Path) -> None:
    from neumann.config.compose import CONF

    dirs = own(tmp_path / "my", name, "lr: 3\n")
    for read in (make_spec, expand):
        with pytest.raises(UserError) as caught:
            read(["optimizer=sgd"], dirs)
        assert str(tmp_path / "my" / name) in str(caught.value)
        assert str(CONF / name) in str(caught.value)
        assert "rename yours" in str(caught.value)


@pytest.mark.medium
def test_two_folders_with_a_file_of_one_name_are_refused_and_one_named_twice_is_one(tmp_path: Path) -> None:
    text = "_target_: torch.optim.Adagrad\nlr: 0.05\n"
    first, second = own(tmp_path / "a", "optimizer/mine.yaml", text), own(tmp_path / "b", "optimizer/mine.yaml", text)
    with pytest.raises(UserError, match=r"b/optimizer/mine\.yaml has the name of .*a/optimizer/mine\.yaml"):
        make_spec(["optimizer=mine"], first + second)
    assert make_spec(["optimizer=mine"], first + first).config.optimizer["lr"] == 0.05
    ours = str(Path(__file__).resolve().parents[2] / "conf")
    assert make_spec(["optimizer=sgd"], [ours]).signature == make_spec(["optimizer=sgd"]).signature


@pytest.mark.medium
@pytest.mark.parametrize("folder", ["größe", "a = (b), [c]", "it's #1 ~x", "日本"])
def test_a_config_dir_may_have_any_name(folder: str, tmp_path: Path) -> None:
    dirs = own(tmp_path / folder, "optimizer/mine.yaml", "_target_: torch.optim.Adagrad\nlr: 0.05\n")
    assert make_spec(["optimizer=mine"], dirs).config.optimizer["lr"] == 0.05


@pytest.mark.medium
def test_every_packaged_file_is_read_to_what_omegaconf_reads() -> None:
    from omegaconf import OmegaConf

    from neumann.config.compose import CONF
    from neumann.studies.definition import PACKAGED

    files = [*CONF.glob("*.yaml"), *CONF.glob("*/*.yaml"), *PACKAGED.glob("*/study.yaml")]
    assert len(files) >= 40
    for file in files:
        assert read_yaml(file) == OmegaConf.to_container(OmegaConf.load(file)), file


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: &a [*a]\n", "an alias in it stands for what it is a part of"),
        (b"a: &a {b: *a}\n", "an alias in it stands for what it is a part of"),
        (
            b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 9)),
            "it holds more than 10,000 values, what its aliases stand for among them",
        ),
        (b"a: !!timestamp 2001-01-01\n", "it holds a date, and a setting is a text"),
        (b"a: !!binary aGVsbG8=\n", "it holds a binary value, and"),
        (b"a: !!set {b, c}\n", "it holds a tagged value, and"),
        (b"a: 1\n# " + b"x" * 2**18, "it is larger than 262,144 bytes"),
        (b"3: 1\n", "its key 3 is not a word"),
        ("folder", "it is not a regular file"),
        ("link", "no such file or directory"),
        ("loop", "too many levels of symbolic links"),
        ("pipe", "it is not a regular file"),
    ],
    ids=lambda value: str(value[:12]) if isinstance(value, bytes) else str(value)[:30],
)
def test_a_chosen_file_that_cannot_be_a_setting_is_named(content: bytes | str, part: str, tmp_path: Path) -> None:
    """Hydra tells these by tracebacks, or by sentences that do not name the file."""
    file = tmp_path / "optimizer" / "mine.yaml"
    file.parent.mkdir()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        kinds = {
            "folder": file.mkdir,
            "link": lambda: file.symlink_to("nowhere"),
            "loop": lambda: file.symlink_to(file.name),
            "pipe": lambda: os.mkfifo(file),
        }
        kinds[content]()
    for read in (lambda: read_yaml(file), lambda: make_spec(["optimizer=mine"], [str(tmp_path)])):
        with pytest.raises(UserError) as caught:
            read()
        assert part in str(caught.value).lower()
        assert str(caught.value).startswith(str(file))


def test_a_file_is_parsed_once_for_all_compositions_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    load = yaml_files._parsed
    monkeypatch.setattr(yaml_files, "_parsed", lambda path, text: parsed.append(path) or load(path, text))
    (tmp_path / "mine.yaml").write_text("a: {b: 1}\n")
    source = yaml_files.StrictFiles("main", f"neumann://{tmp_path}")
    one, other = (source.load_config("mine").config for _ in range(2))
    one.a.b = 2
    assert other.a.b == 1  # they share nothing
    assert len(parsed) == 1
    (tmp_path / "mine.yaml").write_text("a: {b: 3}\n")
    assert source.load_config("mine").config.a.b == 3


def test_a_file_of_another_systems_lines_is_the_same_file(tmp_path: Path) -> None:
    """Its first line names the package, without which its settings would go into a section named ablation."""
    text = "# @package _global_\n# a rate\noptimizer:\n  lr: 0.5\n"
    for name, lines in (("plain", text), ("windows", text.replace("\n", "\r\n")), ("mac", text.replace("\n", "\r"))):
        file = tmp_path / name / "ablation" / "mine.yaml"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"\xef\xbb\xbf" + lines.encode())
        assert make_spec(["ablation=mine"], [str(tmp_path / name)]).config.optimizer["lr"] == 0.5, name


@pytest.mark.parametrize("target", ["nowhere", "mine.yaml"])
def test_a_sweep_file_that_is_a_dead_link_is_named(target: str, tmp_path: Path) -> None:
    file = tmp_path / "sweeps" / "mine.yaml"
    file.parent.mkdir()
    file.symlink_to(target)
    with pytest.raises(UserError, match="cannot be read") as caught:
        expand(["+sweeps=mine"], [str(tmp_path)])
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("file", "text", "part"),
    [
        ("optimizer/mine", "# @package recipe\nlr: 1\n", "its file has a '# @package' line"),
        (
            "optimizer/mine",
            "# @package optimizer and more\nlr: 1\n",
            "line 1 cannot be read: after '@package' stands one word",
        ),
        (
            "ablation/mine",
            "# @package _global_ # mine\nseed: 1\n",
            "line 1 cannot be read: after '@package' stands one word",
        ),
        ("optimizer/mine", "defaults: [mine]\nlr: 1\n", "a defaults list leads back to its own file"),
        ("optimizer/mine", "defaults: sgd\nlr: 1\n", "defaults must be a list"),
        ("optimizer/mine", "defaults: [nosuch]\nlr: 1\n", "there is no optimizer 'nosuch'"),
        ("optimizer/mine", "_target_: 3\nlr: 1\n", "optimizer._target_=3 is not the dotted name of a class"),
        ("optimizer/1", "lr: 1\n", "put it in quotes of its own, \"optimizer='1'\""),
    ],
)
def test_a_file_that_hydra_would_misplace_or_not_end_with_is_a_sentence(
    file: str, text: str, part: str, tmp_path: Path
) -> None:
    dirs = own(tmp_path, f"{file}.yaml", text)
    with pytest.raises(UserError, match=part):
        make_spec([file.replace("/", "=")], dirs)


def test_the_package_may_stand_below_a_remark(tmp_path: Path) -> None:
    dirs = own(tmp_path, "ablation/mine.yaml", "# without alpha\n\n# @package optimizer\nalpha: 0.0\n")
    assert make_spec(["ablation=mine"], dirs).config.optimizer["alpha"] == 0
