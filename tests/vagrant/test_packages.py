"""The machine's own apt decides where Debian comes from."""

from __future__ import annotations

import pytest

from labkit import packages
from labkit.run import LabError

TARGETS = """\
http://security.example/debian-security/\tDebian\tDebian-Security
http://backports.example/debian/\tDebian\tDebian Backports
http://mirror.example/debian/\tDebian\tDebian
http://other.example/debian/\tDebian\tDebian
"""

CONFIGURATION = """\
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CAInfo "/etc/ssl/own.pem";
Acquire::Retries "3";
Acquire::Languages "none";
APT::Architecture "amd64";
"""


def test_the_mirror_is_the_first_that_is_debian_proper() -> None:
    assert packages.parse_index_targets(TARGETS) == "http://mirror.example/debian"


def test_without_debian_there_is_no_mirror() -> None:
    assert packages.parse_index_targets("https://tools.example/apt/\tTools\tTools\n") is None
    assert packages.parse_index_targets("") is None


def test_the_way_to_the_mirror_is_taken_over_and_nothing_else() -> None:
    assert packages.parse_apt_options(CONFIGURATION) == (
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::https::CAInfo "/etc/ssl/own.pem";',
        'Acquire::Retries "3";',
    )


def test_what_is_missing_is_named_when_apt_is_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_program", lambda name: None)
    with pytest.raises(LabError, match="missing on this machine: e2fsprogs mmdebstrap openssh-client"):
        packages.need(packages.FOR_TREES)


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(names: list[str]) -> None:
        raise AssertionError(names)

    monkeypatch.setattr(packages, "install", install)
    packages.need({"sh": "dash"})


def test_an_sshd_that_is_here_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*words: object, **options: object) -> str:
        raise AssertionError(words)

    monkeypatch.setattr(packages, "run", nothing)
    monkeypatch.setattr(packages, "find_program", lambda name: f"/usr/sbin/{name}")
    assert str(packages.an_sshd()) == "/usr/sbin/sshd"
