"""Tests of the cache folder: $NEUMANN_CACHE, else the user's cache folder, or a safe one among the temporary files."""

import os
import pwd
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

import neumann.cache_folder as cache_folder_module
from neumann.cache_folder import cache_folder
from neumann.data import facts
from neumann.optim.kernels import cpu


def test_the_variable_is_taken_first(monkeypatch, tmp_path):
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("NEUMANN_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_on_linux_it_is_the_xdg_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUMANN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "neumann"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert cache_folder() == Path.home() / "caches" / "neumann"
    for nothing in ("", " ", "relative/folder", "~nobody-of-this-name/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert cache_folder() == Path.home() / ".cache" / "neumann"


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """No home folder is known, as of a container's user of no name; returns the folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("NEUMANN_CACHE", "~/cache")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    cache_folder_module._temporary.cache_clear()
    yield tmp_path / "temporary"
    cache_folder_module._temporary.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_without_a_home_it_is_a_folder_of_the_users_own(homeless):
    folder = cache_folder()
    assert folder == homeless / f"neumann-cache-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    cache_folder_module._temporary.cache_clear()
    assert cache_folder() == folder  # the next process finds it again
    assert not Path("~").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
def test_a_home_that_cannot_be_written_is_none(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NEUMANN_CACHE")
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path / "home")  # root may write everywhere
    assert cache_folder() == homeless / f"neumann-cache-{os.getuid()}"
    (tmp_path / "home" / ".cache" / "neumann").mkdir(parents=True)
    assert cache_folder() == tmp_path / "home" / ".cache" / "neumann"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
@pytest.mark.parametrize("trap", ["a link", "writable by all", "a file", "another user's"])
def test_a_folder_that_another_user_can_write_to_is_not_taken(homeless, monkeypatch, trap):
    place = homeless / f"neumann-cache-{os.getuid()}"
    if trap == "a link":
        (homeless / "theirs").mkdir(mode=0o700)
        place.symlink_to(homeless / "theirs")
    elif trap == "a file":
        place.write_text("x")
    else:
        place.mkdir(mode=0o700)
        if trap == "writable by all":
            place.chmod(0o777)
        else:
            other = os.getuid() + 1
            place = homeless / f"neumann-cache-{other}"
            place.mkdir(mode=0o700)
            monkeypatch.setattr(os, "getuid", lambda: other)
    folder = cache_folder()
    assert folder != place
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder  # within the process


@pytest.mark.medium
def test_images_and_kernels_lie_in_one_folder(monkeypatch, tmp_path):
    """Both follow XDG_CACHE_HOME."""
    monkeypatch.delenv("NEUMANN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name, number in (("cat", 0), ("dog", 9)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for file in range(4):
            Image.new("RGB", (4, 4), (number + file, 0, 0)).save(tmp_path / "set" / name / f"{file}.png")
    facts({"kind": "image_folder", "root": str(tmp_path / "set")})
    cpu._outcome.cache_clear()
    try:
        made = {"scans"} | ({f.name for f in (tmp_path / "xdg" / "neumann").glob("*.so")} if cpu.load() else set())
    finally:
        cpu._outcome.cache_clear()
    assert {entry.name for entry in (tmp_path / "xdg" / "neumann").iterdir()} == made
    assert len(made) == (2 if made != {"scans"} else 1)
