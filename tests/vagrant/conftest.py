"""Nothing here needs root, a lab or a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit import cache


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab folder of the test's own."""
    folder = tmp_path / "lab"
    monkeypatch.setenv(cache.PLACE_VARIABLE, str(folder))
    return folder
