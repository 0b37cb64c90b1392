"""A whole Slurm on this machine: several nodes, two fake GPUs each, accounting, and a partition whose jobs
preempt the others'.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.ports import free_ports

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sacct")
NODES, CPUS, GPUS = 4, 2, 2

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again waits for its credential to expire, two minutes unless told otherwise.
AuthInfo=cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptParameters=send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStorageTRES=gres/gpu
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 State=UNKNOWN \\
  Port=[{ports[2]}-{last_port}] CPUs={cpus} RealMemory=6000 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE \
    DefMemPerCPU=256 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefMemPerCPU=256 PriorityTier=10 PreemptMode=OFF
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def why_not() -> str | None:
    """Why Slurm can't be brought up here; null where it can."""
    if os.geteuid() != 0:
        return "bringing up Slurm needs root"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return (
            f"{', '.join(missing)} not installed: apt-get install slurmctld slurmd slurm-client slurmdbd"
            " munge mariadb-server"
        )
    return None


class Cluster:
    """The daemons of one Slurm; everything is below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ports = free_ports(2 + NODES)
        self.values = {
            "host": socket.gethostname().split(".")[0],
            "root": root,
            "ports": ports,
            "last_port": ports[2] + NODES - 1,
            "nodes": NODES,
            "cpus": CPUS,
            "gpus": GPUS,
        }
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(root / "etc" / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(root / "db" / "socket"),
        }
        self.daemons: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Start everything, and wait until all nodes are there.

        Raises:
            TimeoutError: something doesn't come up; the logs are in ``root/log``.
        """
        for folder in (
            "etc",
            "run",
            "log",
            "state",
            "spool",
            "dev",
            *(f"spool/node{number + 1}" for number in range(NODES)),
        ):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._start_munge()
        self._start_database()
        self._write("slurm.conf", SLURM_CONF)
        self._write("slurmdbd.conf", SLURMDBD_CONF, 0o600)
        self._write("cgroup.conf", "CgroupPlugin=disabled\n")
        self._write(
            "gres.conf",
            f"AutoDetect=off\nNodeName=node[1-{NODES}] Name=gpu File={self.root}/dev/gpu[0-{GPUS - 1}]\n",
        )
        for number in range(GPUS):  # Slurm wants a device behind each GPU: another name of /dev/null
            os.mknod(self.root / "dev" / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
        self._daemon("slurmdbd", "-D")
        wait_for(
            "slurmdbd", lambda: self.run("sacctmgr", "-n", "show", "cluster", check=False).returncode == 0
        )
        self.run("sacctmgr", "-i", "add", "cluster", "test")
        self._daemon("slurmctld", "-D", "-c", "-f", self.environment["SLURM_CONF"])
        for number in range(NODES):
            self._daemon("slurmd", "-D", "-f", self.environment["SLURM_CONF"], "-N", f"node{number + 1}")
        wait_for(
            "the nodes",
            lambda: (
                self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").stdout.count("node")
                == NODES
            ),
        )

    def down(self) -> None:
        """End every daemon and every job."""
        self.run("scancel", "-u", "root", check=False)
        with suppress(TimeoutError):
            wait_for("the end of the jobs", lambda: not self.run("squeue", "-h", check=False).stdout, 15)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        with suppress(TimeoutError):
            wait_for(
                "the end of the daemons", lambda: all(daemon.poll() is not None for daemon in self.daemons), 5
            )
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command against this Slurm."""
        return subprocess.run(
            command, env=self.environment, check=check, timeout=timeout, capture_output=True, text=True
        )

    def accounting(self, job: str) -> dict[str, str]:
        """{job or array task: state} of a job, as sacct has it."""
        answer = self.run("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", job).stdout
        return dict(line.split("|", 1) for line in answer.splitlines())

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        file = self.root / "etc" / name
        file.write_text(text.format(**self.values))
        file.chmod(mode)

    def _daemon(self, *command: str) -> None:
        with (self.root / "log" / f"{command[0]}.{len(self.daemons)}.out").open("wb") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _start_munge(self) -> None:
        """Munge has one key and one socket per machine; one that runs already serves as well."""
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
            return
        if not Path("/etc/munge/munge.key").is_file():
            subprocess.run(
                ["runuser", "-u", "munge", "--", "mungekey", "--create", "--keyfile", "/etc/munge/munge.key"],
                check=True,
            )
        for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.chown(folder, "munge", "munge")
        Path("/run/munge").chmod(0o755)
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
        wait_for(
            "munge", lambda: subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0
        )

    def _start_database(self) -> None:
        data, client = (
            self.root / "db",
            ["mariadb", "--no-defaults", "-S", self.environment["MYSQL_UNIX_PORT"], "-u", "root"],
        )
        data.mkdir()
        # As root: any other pytest that starts makes the folders above private to root.
        given = ["--no-defaults", "--user=root", f"--datadir={data}"]
        with (self.root / "log" / "mariadb-install-db").open("wb") as log:
            command = [
                "mariadb-install-db",
                *given,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ]
            subprocess.run(command, check=True, stdout=log, stderr=log)
        self._daemon(
            "mariadbd",
            *given,
            f"--socket={data / 'socket'}",
            f"--pid-file={data / 'pid'}",
            "--skip-networking",
        )
        wait_for(
            "the database",
            lambda: (
                subprocess.run([*client, "-e", "select 1"], capture_output=True, check=False).returncode == 0
            ),
        )
        user = "'slurm'@'localhost'"
        accounts = (
            f"create database slurm_acct_db; create user {user} identified by 'slurm'; grant all on"
            f" slurm_acct_db.* to {user}"
        )
        subprocess.run([*client, "-e", accounts], check=True)


def wait_for(what: str, there: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it never is.
    """
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(0.2)
