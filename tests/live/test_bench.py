"""`vagrant/lab bench`, at its quickest: it runs, and says of every row what it must. Figures fail nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench.rows import ROWS, Goal
from tests.live.lab_host import PROJECT, LabHost

KEYS = {"row", "value", "unit", "goal", "met", "backend", "samples"}


def bench(*words: str) -> str:
    """`python -m tests.bench`, as `vagrant/lab bench` runs it."""
    command = [sys.executable, "-m", "tests.bench", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.backends("netns")
def test_every_row(nothing_behind: None, alpha: LabHost, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    kept, drawn = tmp_path / "results", tmp_path / "picture.svg"
    name = request.config.getoption("--lab-name")
    bench("measure", "--lab", name, "--backend", alpha.backend, "--quick", str(kept))
    lines = [json.loads(line) for line in bench("show", "--json", str(kept)).splitlines()]
    assert {line["row"] for line in lines} == set(ROWS)
    for line in lines:
        if line["value"] is None:
            # the one row that a kernel without soft-dirty cannot have
            assert line["row"] == "haul", line
            assert "soft-dirty" in line["why"]
            assert line["met"] is None
            continue
        assert set(line) == KEYS
        assert line["backend"] == "netns"
        assert line["unit"]
        assert line["met"] == (Goal.parse(line["goal"]).met_by(line["value"]) if line["goal"] else None)
        assert all(value == value for values in line["samples"].values() for value in values), line
    shown = bench("show", "--picture", str(drawn), str(kept))
    assert all(f"\n{row} " in shown for row in ROWS)
    texts = [element.text or "" for element in ElementTree.parse(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert any("own share" in text for text in texts)
