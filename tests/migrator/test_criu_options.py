"""migrator/criu_options.py: what is handed on, to whom, and every way round a refusal that criu would take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import arguments, criu_options, errors
from migrator.criu_options import REFUSED, CriuOption

KNOWN = [
    "leave-stopped", "leave-running", "restore-detached", "restore-sibling", "daemon", "images-dir", "work-dir",
    "log-file", "join-ns", "root", "ext-unix-sk", "help", "tcp-established", "close", "log-pid", "version",
    "evasive-devices", "pidfile", "veth-pair", "action-script", "link-remap", "shell-job", "file-locks", "page-server",
    "address", "port", "prev-images-dir", "ms", "track-mem", "auto-dedup", "libdir", "cpu-cap", "force-irmap",
    "ext-mount-map", "exec-cmd", "manage-cgroups", "cgroup-root", "inherit-fd", "feature", "skip-mnt", "enable-fs",
    "enable-external-sharing", "enable-external-masters", "freeze-cgroup", "ghost-limit", "irmap-scan-path",
    "lsm-profile", "timeout", "external", "empty-ns", "lazy-pages", "extra", "experimental", "all", "cgroup-props",
    "cgroup-props-file", "cgroup-dump-controller", "skip-in-flight", "deprecated", "display-stats", "weak-sysctls",
    "status-fd", "tcp-close", "verbosity", "ps-socket", "stream", "config", "no-default-config", "tls-cacert",
    "tls-cacrl", "tls-cert", "tls-key", "tls", "tls-no-cn-verify", "cgroup-yard", "pre-dump-mode", "file-validation",
    "skip-file-rwx-check", "lsm-mount-context", "network-lock", "mntns-compat-mode", "unprivileged", "ghost-fiemap",
    "allow-uprobes", "tree",
]  # fmt: skip
"""The long options of criu 4.2 (criu/config.c)."""
TAKEN = [name for name in KNOWN if name not in REFUSED]


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("tcp-close", CriuOption("--tcp-close")),
        ("--tcp-close", CriuOption("--tcp-close")),
        ("ghost-limit=10M", CriuOption("--ghost-limit=10M")),
        ("external=mnt[/x]:y=z", CriuOption("--external=mnt[/x]:y=z")),
        ("dump:--external=dev[1/2]:a b", CriuOption("--external=dev[1/2]:a b", "dump")),
        ("restore:external=dev[a]:/dev/b", CriuOption("--external=dev[a]:/dev/b", "restore")),
        ("-j", CriuOption("--shell-job")),
        ("r=/srv", CriuOption("--root=/srv")),
        ("something-of-criu-9", CriuOption("--something-of-criu-9")),
    ],
)
def test_what_is_handed_on(word: str, option: CriuOption) -> None:
    assert criu_options.parse(word) == option
    assert criu_options.parse(str(option)) == option


@pytest.mark.parametrize("name", TAKEN)
def test_all_others_of_criu_are_handed_on(name: str) -> None:
    assert criu_options.parse(name).argument == f"--{name}"


def test_the_refused_are_options_of_criu() -> None:
    assert set(REFUSED) <= set(KNOWN)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_break_the_commit_is_refused_in_all_its_forms(name: str) -> None:
    beginnings = {name[:length] for length in range(2, len(name) + 1)}
    assert not {known for known in TAKEN if known in beginnings}, "criu takes an exact name before any beginning"
    for form in beginnings:
        for word in (form, f"--{form}", f"no-{form}", f"dump:--{form}=1", f"restore:{form}"):
            with pytest.raises(ValueError, match=r"not handed on: \w"):
                criu_options.parse(word)


@pytest.mark.parametrize("letter", "tsRdSDWohVv")
def test_short_names_are_no_way_round(letter: str) -> None:
    with pytest.raises(ValueError, match="not handed on"):
        criu_options.parse(f"-{letter}")


@pytest.mark.parametrize(
    "word", ["", "-", "--", "=", "x y", "-Z", "dump:", "dump:restore:tcp-close", "--ghost-limit 1M", "a\n", "a=\0", "é"]
)
def test_what_is_no_option(word: str) -> None:
    with pytest.raises(ValueError, match="option"):
        criu_options.parse(word)


@given(st.text())
def test_whatever_is_given_one_argument_comes_out(word: str) -> None:
    try:
        option = criu_options.parse(word)
    except ValueError:
        return
    assert option.argument.startswith("--")
    assert option.argument[2:].partition("=")[0] not in REFUSED


def test_the_command_line_takes_several_and_says_why_not() -> None:
    words = ["7", "db2", "--criu-option", "tcp-close", "--criu-option=--timeout=60"]
    for command in ([], ["check"], ["rehearse"]):
        given_ = arguments.parse([*command, *words]).criu_option
        assert [str(one) for one in given_] == ["--tcp-close", "--timeout=60"]
    assert arguments.parse(["7", "db2"]).criu_option == []
    with pytest.raises(errors.UsageError, match="second copy"):
        arguments.parse(["7", "db2", "--criu-option", "R"])
