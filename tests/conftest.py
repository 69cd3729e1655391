"""Fixtures for all tests; importlib mode puts nothing on the path by itself."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `models` is a folder of the checkout, not an installed package.
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def find_assets() -> Path | None:
    """Return the folder that holds trained networks (`models/`) and real data (`data/`)."""
    named = os.environ.get("GRAPHOPT_ASSETS")
    folder = Path(named) if named else ROOT.parent / "shared"
    return folder if (folder / "models").is_dir() else None


@pytest.fixture(scope="session")
def assets() -> Path:
    folder = find_assets()
    if folder is None:
        pytest.skip("no trained networks: set GRAPHOPT_ASSETS to a folder that holds models/")
    return folder
