"""An operator's word on the target, where the journals do not decide: taken only there, and only typed out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import paramiko
import pytest

from tests.live import power
from tests.live.conftest import Run
from tests.live.faults.hands import Hand
from tests.live.lab_host import Done, LabHost, until, wait_for_sweeps
from tests.live.test_recover import runs_there, settled

pytestmark = pytest.mark.long_on("vm")

BETA = "10.77.0.12"
CUT = "".join(
    f"add chain inet cut {hook} {{ type filter hook {hook} priority -400; }}; "
    f"add rule inet cut {hook} ip {way} {BETA} drop; "
    for hook, way in (("input", "saddr"), ("output", "daddr"))
)


@pytest.fixture
def mended(nothing_behind: None, alpha: LabHost, beta: LabHost) -> Iterator[None]:
    """Whatever happens, the link is there again when the test is over, and both hosts have their own boot id.

    Meanwhile beta does not wait for half a minute whenever nobody answers it.
    """
    beta.run(f"echo ConnectTimeout {3 * beta.slow} >/root/.ssh/config")
    yield
    beta.run("rm /root/.ssh/config")
    alpha.run("nft delete table inet cut", check=False)
    alpha.run("kill -KILL $(cat /run/lingers) 2>/dev/null; rm -f /run/lingers", check=False)
    for host in (alpha, beta):
        power.forget(host)


def newest(host: LabHost) -> str:
    """The id of the newest migration of a host."""
    return host.run("basename $(dirname $(ls -t /var/lib/migrate/*/journal | head -1))").out.strip()


def records(host: LabHost, migration: str) -> list[str]:
    """What its journal has decided."""
    lines = host.read(f"/var/lib/migrate/{migration}/journal").splitlines()
    return [line.split('"')[3] for line in lines if line.split('"')[3].isupper()]


def end_of(channel: paramiko.Channel) -> Run:
    """`migrate`, read to its end."""
    out = channel.makefile().read().decode()
    return Run(Done(channel.recv_exit_status(), out, channel.makefile_stderr().read().decode()))


def refused(run: Run, status: int, words: str) -> None:
    """In one line that says why, and nothing was done."""
    assert run.status == status, run.explain()
    (error,) = run.of("error")
    assert words in error["message"], run.explain()
    assert "Traceback" not in run.err


def test_the_source_is_said_to_be_dead_and_comes_back(
    mended: None, both_ways: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any
) -> None:
    """It was not dead: the process runs twice, until recover on either host ends what the word has deposed."""
    alpha.start(
        "/opt/migrate/bin/python /root/programs/saboteur.py --at commit --act linger --before -- "
        f"--json --copy-files {witness} beta"
    )
    until(lambda: alpha.run("test -s /run/lingers", check=False).status == 0, "it does not come so far")
    name = newest(beta)
    assert records(beta, name)[-1] == "HELD"
    refused(migrate("recover", name, "--source-is-dead", on=beta), 2, "has to be typed out")
    refused(migrate("recover", f"--source-is-dead={name}", on=beta), 20, "is not dead")
    refused(migrate("recover", name, f"--restore-anyway={name}", on=beta), 22, "at work")
    refused(migrate("recover", name, f"--source-is-dead={name}"), 20, "is the source")
    assert records(beta, name)[-1] == "HELD", "a refused word has done something"

    alpha.run(f"nft 'add table inet cut; {CUT}'; kill -KILL $(cat /run/lingers); pkill -KILL -f '[s]erve --build'")
    wait_for_sweeps(alpha, 1)
    run = migrate("recover", f"--source-is-dead={name}", on=beta)
    assert run.status == 0, run.explain()
    assert any("runs twice" in note["text"] for note in run.of("note")), run.explain()
    assert "by your word" in run.of("recovered")[0]["text"], run.explain()
    assert beta.state(witness) in ("S", "R", "D")
    assert alpha.alive(witness), "the test is to have two of them now"

    alpha.run("nft delete table inet cut")
    back = migrate("recover")
    assert back.status == 0, back.explain()
    (told,) = back.of("recovered")
    assert (told["course"], told["host"]) == ("depose", "beta"), back.explain()
    assert "--source-is-dead" in told["text"]
    assert "was killed" in told["text"]
    assert records(alpha, name)[-3:] == ["DEPOSED", "KILLED", "DONE"]
    settled(beta)
    runs_there(alpha, beta, witness)
    assert migrate("recover").of("recovered")[0]["course"] == "nothing"
    assert migrate("recover", name).of("recovered")[0]["host"] == "beta"


def test_what_may_have_run_is_restored_by_an_operators_word_alone(
    mended: None, both_ways: None, alpha: LabHost, beta: LabHost, witness: int, migrate: Any
) -> None:
    """The target reboots right after RESUMING: nobody can tell whether the process ran there."""
    hand = Hand(beta)
    hand.hold("resuming")
    channel = alpha.start(f"exec migrate --json --copy-files --durable {witness} beta")
    assert hand.held(120 * beta.slow)
    name = newest(beta)
    power.cut(beta)
    hand.close()
    assert end_of(channel).status == 71
    plain = migrate("recover", name)
    assert plain.status == 70, plain.explain()
    assert "--restore-anyway" in plain.of("error")[0]["message"]
    refused(migrate("recover", name, f"--restore-anyway={name}"), 20, "is the source")
    refused(migrate("recover", name, "--restore-anyway", on=beta), 2, "has to be typed out")
    refused(migrate("recover", f"--source-is-dead={name}", on=beta), 20, "is not dead")
    assert beta.state(witness) == ""
    run = migrate("recover", f"--restore-anyway={name}", on=beta)
    assert run.status == 0, run.explain()
    assert any("once more" in note["text"] for note in run.of("note")), run.explain()
    runs_there(alpha, beta, witness)
    refused(migrate("recover", f"--restore-anyway={name}", on=beta), 20, "not taken")
