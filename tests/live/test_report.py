"""`migrate report` on a host: what has just been moved is kept, listed, drawn and compared, as the README says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from migrator import picture
from migrator.report import parse
from tests.live.lab_host import LabHost


@pytest.mark.backends("netns")
def test_the_readme_s_commands(nothing_behind: None, alpha: LabHost, witness: int, migrate: Any) -> None:
    rehearsed = migrate("rehearse", "--copy-files", str(witness), "beta")
    assert rehearsed.status == 0, rehearsed.explain()
    moved = migrate("--copy-files", str(witness), "beta")
    assert moved.status == 0, moved.explain()
    one, two = rehearsed.report["id"], moved.report["id"]
    assert alpha.run("stat -c %a /var/lib/migrate/reports /var/lib/migrate/reports/*.json").out.split()[:2] == [
        "700",
        "600",
    ]
    listed = alpha.run("migrate report").out.splitlines()
    assert listed[1].split()[0] == two
    assert listed[2].split()[0] == one
    assert listed[1].split()[-1] == "migrated"
    (event,) = map(json.loads, alpha.run(f"migrate report {two} --json").out.splitlines())
    assert event == moved.report, "as it was printed"
    steps = {step["name"]: step["seconds"] for step in event["freeze"]}
    assert list(steps) == ["dump", "images", "restore", "commit", "resume"]
    assert all(seconds > 0 for seconds in steps.values())
    assert sum(steps.values()) == pytest.approx(event["downtime_seconds"], abs=1e-4)
    assert [step["name"] for step in rehearsed.report["freeze"]] == ["dump", "images", "restore", "thaw"]
    drawn = alpha.run(f"migrate report {two}").out
    assert "nobody ran" in drawn
    assert "█" in drawn
    assert "downtime" in alpha.run(f"migrate report --compare {one} {two}").out
    # no matplotlib there: the same in characters, and what to install
    done = alpha.run(f"migrate report {two} --plot out.svg", check=False)
    assert (done.status, done.out) == (2, drawn)
    assert "pip install '.[plot]'" in done.err
    assert picture.render([parse(json.dumps(event)), parse(json.dumps(rehearsed.report))], "svg").startswith(b"<?xml")
