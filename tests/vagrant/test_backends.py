"""How the hosts are started and reached."""

from __future__ import annotations

import itertools
import socket
import threading
from pathlib import Path

import pytest

from labkit import netns, record, run, ssh, vm

BOOT = vm.Boot(Path("kernel"), Path("initrd"))


def test_the_machines_differ_in_everything_that_must_differ() -> None:
    alpha, beta = (vm.host_arguments(name, port) for name, port in (("alpha", 4001), ("beta", 4002)))
    for one, other in zip(alpha, beta):
        shared = {"root", "seed", "virtio-blk-pci,drive=root", "virtio-blk-pci,drive=seed"}
        assert one != other or one in shared or one.startswith("-"), one
    assert any("server=on" in word for word in alpha)
    assert any("server=off" in word for word in beta)
    assert any("hostfwd=tcp:127.0.0.1:4001-:22" in word and "restrict=on" in word for word in alpha)


@pytest.mark.parametrize(("accelerator", "words"), [("kvm", ["kvm", "host"]), ("tcg", ["tcg,thread=multi", "max"])])
def test_the_accelerator_decides_the_processor(accelerator: str, words: list[str]) -> None:
    arguments = vm.machine_arguments(accelerator, BOOT, "")
    assert [arguments[arguments.index(option) + 1] for option in ("-accel", "-cpu")] == words


def test_each_host_has_an_address_and_a_machine_id_of_its_own() -> None:
    words = [vm.kernel_words(lab, name) for lab, name in itertools.product(("one", "two"), record.HOSTS)]
    ids = {word for line in words for word in line.split() if word.startswith("systemd.machine_id=")}
    assert len(ids) == 4
    assert all(len(word) == len("systemd.machine_id=") + 32 for word in ids)
    assert f"lab.private={record.PRIVATE_ADDRESSES['beta']}/24" in words[1]


def test_without_a_usable_device_machines_are_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert vm.accelerator(BOOT) == "tcg"


@pytest.mark.parametrize(("boots", "answer"), [(True, "kvm"), (False, "tcg")])
def test_a_device_is_tried_once_and_the_answer_kept(monkeypatch: pytest.MonkeyPatch, boots: bool, answer: str) -> None:
    tries: list[str] = []
    monkeypatch.setattr("os.access", lambda path, mode: True)
    monkeypatch.setattr(vm, "run", lambda command: "QEMU emulator version 10.0.0")

    def try_it(boot: vm.Boot, name: str) -> bool:
        tries.append(name)
        return boots

    monkeypatch.setattr(vm, "_boots", try_it)
    assert [vm.accelerator(BOOT), vm.accelerator(BOOT)] == [answer, answer]
    assert tries == ["kvm"]


def test_namespaces_need_root_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(run.LabError) as caught:
        netns.require()
    assert "sudo" in caught.value.hint


def test_ssh_takes_nothing_from_the_users_own_configuration(place: Path) -> None:
    lab = record.Lab("one", "vm", {"alpha": record.Host("alpha", 4001)})
    words = ssh.command(lab, "alpha", ["uptime", "-p"], user="admin")
    assert words[-3:] == ["admin@127.0.0.1", "uptime", "-p"]
    assert words[1:3] == ["-F", "none"]
    assert f"UserKnownHostsFile={place}/labs/one/known_hosts" in words
    assert "StrictHostKeyChecking=yes" in words


@pytest.mark.parametrize(("said", "ready"), [(b"SSH-2.0-OpenSSH\r\n", True), (b"", False), (b"HTTP/1.1", False)])
def test_a_port_is_ready_when_sshd_has_spoken(said: bytes, ready: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        assert ssh.banner(server.getsockname()[1]) is ready
        thread.join()


def test_nobody_at_the_port_is_not_ready() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert ssh.banner(taken.getsockname()[1]) is False


def test_a_failed_command_can_be_pasted() -> None:
    with pytest.raises(run.CommandFailed) as caught:
        run.run(["sh", "-c", "echo 'what it said'; exit 3"])
    assert caught.value.status == 3
    assert "sh -c 'echo '\"'\"'what it said'\"'\"'; exit 3'" in str(caught.value)
    assert "    what it said" in str(caught.value)


def test_a_missing_program_is_an_error_with_a_hint() -> None:
    with pytest.raises(run.LabError, match="no-such-program: no such program"):
        run.run(["no-such-program"])
