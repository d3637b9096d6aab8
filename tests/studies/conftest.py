"""What do the tests of studies share? The marker of those that open a browser."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: opens a page in chromium; skipped with a reason where there is none")
