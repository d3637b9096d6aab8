"""Tests of the cache folder: $NEUMANN_CACHE, else the user's cache folder, with `platformdirs` and without."""

import sys
from pathlib import Path

import pytest

from neumann.cache_folder import cache_folder


def test_the_variable_is_taken_first(monkeypatch, tmp_path):
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("NEUMANN_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
@pytest.mark.parametrize("installed", [True, False])
def test_on_linux_it_is_the_xdg_cache_folder_with_platformdirs_and_without(monkeypatch, tmp_path, installed):
    monkeypatch.delenv("NEUMANN_CACHE")
    if not installed:
        monkeypatch.setitem(sys.modules, "platformdirs", None)  # which makes its import fail
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "neumann"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "neumann"
