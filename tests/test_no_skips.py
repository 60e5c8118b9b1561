"""`--no-skips`: what nobody ran is not taken for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import pytest

def test_runs():
    pass

@pytest.mark.skipif(True, reason="there is no tool")
def test_by_its_mark():
    pass

@pytest.fixture
def tool():
    pytest.skip("there is no tool either")

def test_by_its_fixture(tool):
    pass
"""


@pytest.mark.parametrize(
    ("option", "wanted", "status"), [((), "1 passed, 2 skipped", 0), (("--no-skips",), "1 passed", 1)]
)
def test_a_skip_fails_where_nothing_may_be_skipped(
    tmp_path: Path, option: tuple[str, ...], wanted: str, status: int
) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", *option]
    done = subprocess.run(
        [*words, "--rootdir", tmp_path, "-c", "/dev/null", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, wanted in done.stdout) == (status, True), done.stdout + done.stderr
    assert ("skipped, where nothing may be" in done.stdout) == bool(option)
    assert ("there is no tool either" in done.stdout) == bool(option)
