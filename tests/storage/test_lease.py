"""One owner at a time; a dead one is replaced, a living one is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ecoflap.errors import UserError
from ecoflap.storage import lease as module
from ecoflap.storage.lease import Lease, held, is_held


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
    assert first.acquire()
    assert not second.acquire()
    assert second.describe_owner().endswith(f":{os.getpid()}")
    second.release()  # what it doesn't hold it doesn't release
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert not list(tmp_path.iterdir())


def test_a_killed_owner_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from ecoflap.storage.lease import Lease; assert Lease(sys.argv[1]).acquire();"
        " print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lease")], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    mine = Lease(tmp_path / "lease")
    assert not mine.acquire()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert mine.acquire()
    mine.release()


def of_another_host(path: Path, beat: int = 0) -> None:
    path.write_text(
        json.dumps({"host": "elsewhere", "machine": "another", "pid": 1, "token": "theirs", "beat": beat})
    )


def test_an_owner_on_another_host_is_dead_when_its_beats_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    of_another_host(tmp_path / "lease")
    mine = Lease(tmp_path / "lease")
    for beat in range(3):
        of_another_host(tmp_path / "lease", beat)
        assert not mine.acquire()
        clock[0] += 50
    clock[0] += 20
    assert mine.acquire()
    mine.release()


def of_this_host(path: Path, pid: int) -> None:
    owner = json.loads(Lease(path)._text(0))
    path.write_text(json.dumps({**owner, "pid": pid, "token": "theirs"}))


def test_a_process_of_the_same_number_does_not_hold_a_lease_without_beats(tmp_path: Path) -> None:
    of_this_host(tmp_path / "lease", os.getpid())
    assert is_held(tmp_path / "lease")
    os.utime(tmp_path / "lease", (time.time() - 1000,) * 2)
    assert not is_held(tmp_path / "lease")
    assert not is_held(tmp_path / "none")


class Clock:
    """A clock that only sleep moves; another host's owner beats at each sleep until it ends."""

    def __init__(self, path: Path, lag: float, ends: float) -> None:
        self.now, self.path, self.lag, self.ends = 0.0, path, lag, ends

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now < self.ends:
            self.beat()

    def beat(self) -> None:
        of_another_host(self.path, int(self.now * 2))
        os.utime(self.path, (time.time() - self.lag,) * 2)


def wait_for(path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, ends: float, lag: float) -> float:
    """Seconds that ``held`` waits for the owner of a lease on another host."""
    clock = Clock(path, lag, ends)
    clock.beat()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    with held(path, lambda owner: f"{owner} is at work there", patience):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        waited = clock.now
    assert not path.exists()
    return waited


def test_a_dead_owner_is_waited_for_and_a_living_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = 1000.0  # seconds since its last heartbeat
    assert wait_for(tmp_path / "dead", monkeypatch, patience=0, ends=0, lag=old) == pytest.approx(60, abs=1)
    assert wait_for(tmp_path / "ends", monkeypatch, patience=90, ends=20, lag=0) == pytest.approx(80, abs=1)
    with pytest.raises(UserError, match="elsewhere:1 is at work there"):
        wait_for(tmp_path / "lives", monkeypatch, patience=0, ends=1e9, lag=0)
    with pytest.raises(UserError, match="elsewhere:1 is at work there"):
        wait_for(tmp_path / "late clock", monkeypatch, patience=0, ends=1e9, lag=old)


@pytest.mark.parametrize(("machine", "host"), [("", "here"), ("one that was cloned", "elsewhere")])
def test_a_host_that_only_looks_like_this_one_is_another(
    machine: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    of_this_host(tmp_path / "lease", ended.pid)
    assert not is_held(tmp_path / "lease")
    monkeypatch.setattr(module, "machine", lambda: machine)
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    of_this_host(tmp_path / "lease", ended.pid)
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert is_held(tmp_path / "lease")
    assert not Lease(tmp_path / "lease").acquire()


def test_a_lease_that_changed_hands_meanwhile_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lease"
    of_another_host(path)
    mine, faster = Lease(path), Lease(path)
    monkeypatch.setattr(mine, "_owner_is_alive", lambda: False)
    mine.owner = {"token": "theirs"}
    path.unlink()
    assert faster.acquire()
    mine._remove_dead()
    assert json.loads(path.read_text())["token"] == faster._token
    assert not mine._create()
    faster.release()


def test_a_half_written_lease_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("")
    assert not Lease(tmp_path / "lease").acquire()


def test_the_owner_beats_and_notices_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    mine = Lease(tmp_path / "lease")
    assert mine.acquire()
    deadline = time.monotonic() + 10
    while json.loads(mine.path.read_text() or "{}").get("beat", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert json.loads(mine.path.read_text())["beat"] >= 2
    assert mine._thread is not None
    deadline = time.monotonic() + 10
    while mine._thread.is_alive() and time.monotonic() < deadline:
        of_another_host(mine.path)  # which beats too: a beat of ours may have been under way at its first
        mine._thread.join(timeout=0.1)
    assert not mine._thread.is_alive()
    mine.release()
    assert module._read(mine.path)["token"] == "theirs"


def test_a_beat_that_failed_once_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk may leave the file empty, and a shared one may not be readable for a moment."""
    monkeypatch.setattr(module, "BEAT", 0.01)
    mine = Lease(tmp_path / "lease")
    assert mine.acquire()
    mine.path.write_text("")
    deadline = time.monotonic() + 10
    while "token" not in module._read(mine.path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert module._read(mine.path)["token"] == mine._token
    assert not Lease(mine.path).acquire()
    assert mine._thread is not None
    assert mine._thread.is_alive()
    mine.path.unlink()  # as one who takes over and lets go again
    mine._thread.join(timeout=10)
    assert not mine.path.exists()
    mine.release()


def compete(path: Path, barrier: multiprocessing.synchronize.Barrier, wins: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    for round_number in range(20):
        lease = Lease(path.with_name(f"lease{round_number}"))
        barrier.wait(timeout=30)
        wins.put((round_number, lease.acquire()))
        barrier.wait(timeout=30)
        lease.release()


def test_of_many_that_want_it_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(4), context.Queue()
    processes = [context.Process(target=compete, args=(tmp_path / "lease", barrier, wins)) for _ in range(4)]
    for process in processes:
        process.start()
    won = [wins.get(timeout=60) for _ in range(80)]
    for process in processes:
        process.join(timeout=30)
    assert [sum(got for number, got in won if number == round_number) for round_number in range(20)] == [
        1
    ] * 20
