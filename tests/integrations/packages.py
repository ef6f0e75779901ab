"""The real packages: a machine without them skips these tests, but not in CI."""

import importlib.util
import os

import pytest


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None and "CI" not in os.environ:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
