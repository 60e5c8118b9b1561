"""Which releases are tried with which, and what is made of what was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit import cache, cli, releases, tree
from labkit.run import LabError

HOST = {"criu": "4.1.1", "kernel": "6.12", "python": "3.13.5"}


def test_all_pairs_or_those_that_are_named() -> None:
    assert len(releases.pairs([])) == len(releases.RELEASES) ** 2
    assert releases.pairs(["trixie:forky"]) == [("trixie", "forky")]
    for wrong in ("trixie", "trixie:woody", "a:b:c", ""):
        with pytest.raises(LabError, match="no pair"):
            releases.pairs([wrong])


def test_each_release_is_one_that_machines_are_made_of() -> None:
    assert set(releases.RELEASES) == set(tree.RELEASES["vm"])
    for release in releases.RELEASES:
        assert tree.recipe("vm", release).suite == release
    with pytest.raises(LabError, match="no netns host of 'bookworm'"):
        tree.recipe("netns", "bookworm")
    known, _ = cli.parser().parse_known_args(["up", "--alpha", "bookworm"])
    assert (known.alpha, known.beta) == ("bookworm", "")


def test_the_matrix_says_what_was_seen_and_what_was_not_run() -> None:
    text = releases.table(
        {
            "trixie:trixie": {"passed": True, "tests": 7, "alpha": HOST},
            "trixie:forky": {"passed": True, "debian": ["library-build"], "stream": ["criu-stream"], "rsync": []},
            "forky:trixie": {
                "passed": True,
                "debian": ["library-build"],
                "stream": ["criu-older"],
                "rsync": ["criu-older"],
            },
            "forky:forky": {"passed": False, "tests": 0, "alpha": HOST},
        }
    )
    head, _, old, stable, new = text.splitlines()
    assert "trixie: criu 4.1.1, kernel 6.12" in head
    assert old.count("not run") == 3
    assert "not run | moves (7 tests) | Debian's: `library-build`; static: `criu-stream`, with rsync: moves |" in stable
    assert new.endswith("not run | Debian's: `library-build`; static: `criu-older` | **failed** |")


def test_what_is_seen_of_one_pair_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(releases, "README", tmp_path / "README.md")
    monkeypatch.setattr(cache, "REPOSITORY", tmp_path)
    (tmp_path / "README.md").write_text(f"before\n{releases.BEGIN}\nold\n{releases.END}\nbehind\n")
    releases.keep("one", {"passed": True})
    releases.keep("two", {"passed": False})
    releases.keep("two", {"passed": True})
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [kept[name]["passed"] for name in ("one", "two")] == [True, True]
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n{releases.BEGIN}\n| from")
    assert text.endswith(f"|\n{releases.END}\nbehind\n")


def test_the_readme_has_what_was_seen_last() -> None:
    known = json.loads(releases.KEPT.read_text())
    text = releases.README.read_text()
    assert releases.in_readme(text, known) == text
    assert known["python3.9"]["passed"]
    assert known["python3.9"]["beta"]["python"].startswith("3.9.")
