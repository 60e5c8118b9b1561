"""What a tree is made of, and when it is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit import tree
from labkit.packages import Mirror
from labkit.run import LabError

MIRROR = Mirror("http://mirror.example/debian", ('Acquire::http::Proxy "http://proxy.example";',))


def test_the_command_uses_the_given_mirror_and_its_options() -> None:
    command = tree.mmdebstrap_command(tree.recipe("netns"), Path("/somewhere/tree"), MIRROR)
    assert command[-3:] == ["forky", "/somewhere/tree", "http://mirror.example/debian"]
    assert '--aptopt=Acquire::http::Proxy "http://proxy.example";' in command
    assert any("Check-Valid-Until" in word for word in command)


def test_a_tree_that_is_no_host_has_the_packages_alone() -> None:
    command = tree.mmdebstrap_command(tree.Recipe("bullseye", "", ("python3", "sed")), Path("/tree"), MIRROR)
    assert command[-4:] == ["--include=python3,sed", "bullseye", "/tree", "http://mirror.example/debian"]
    assert not any("hook" in word for word in command)


def test_the_recipe_is_the_suite_the_role_and_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {tree.Recipe(suite, role).key() for suite in ("trixie", "forky") for role in ("vm", "namespace")}
    assert len(keys) == 4
    before = tree.recipe("vm").key()
    changed = tmp_path / "provision.sh"
    changed.write_bytes(tree.PROVISION.read_bytes() + b"# more\n")
    monkeypatch.setattr(tree, "PROVISION", changed)
    assert tree.recipe("vm").key() != before


def test_both_roles_are_known_to_the_script() -> None:
    script = tree.PROVISION.read_text()
    for recipe in (tree.recipe("netns"), tree.recipe("vm")):
        assert f"    {recipe.role}) " in script


def test_the_python_of_a_tree_is_found(tmp_path: Path) -> None:
    programs = tmp_path / "usr/bin"
    programs.mkdir(parents=True)
    with pytest.raises(LabError, match="no python3"):
        tree.python_version(tmp_path)
    for name in ("python3", "python3.13", "python3-config", "python3.13-config"):
        (programs / name).touch()
    assert tree.python_version(tmp_path) == "3.13"
