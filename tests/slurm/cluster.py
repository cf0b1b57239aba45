"""A real SLURM with two nodes on this machine: munge, slurmctld and two slurmd in a temporary folder.

`python tests/slurm/cluster.py COMMAND...` runs a command in such a cluster and takes it down afterwards.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOSTS = Path("/etc/hosts")
NODES = ("node1", "node2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
)

CONF = """\
ClusterName=trilemma
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again (120 s by default)
AuthInfo=socket={run}/munge/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={run}/slurmctld.pid
SlurmctldLogFile={run}/slurmctld.log
StateSaveLocation={run}/state
SlurmdPidFile={run}/slurmd-%n.pid
SlurmdSpoolDir={run}/spool-%n
SlurmdLogFile={run}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={run}/jobcomp.txt
EnforcePartLimits=ALL
JobRequeue=1
KillWait=10
FirstJobId={first_job}
MinJobAge=36000
MaxArraySize=500
SlurmdTimeout=30
SlurmctldTimeout=30
ReturnToService=2
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000 Gres=gpu:a100:4 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=8000 Gres=gpu:a100:4 State=UNKNOWN
PartitionName=DEFAULT Nodes=node1,node2 State=UP PriorityTier=10
PartitionName=general Default=YES DefaultTime=60 MaxTime=4-00:00:00
PartitionName=gpu DefaultTime=60 MaxTime=2-00:00:00
PartitionName=gpu-debug DefaultTime=60 MaxTime=01:00:00 MaxNodes=2
PartitionName=low PriorityTier=1 GraceTime=15
PartitionName=high PriorityTier=20
"""


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    if absent := [name for name in PROGRAMS if _which(name) is None]:
        return f"no SLURM here ({', '.join(absent)} missing): apt-get install slurm-wlm slurm-wlm-basic-plugins munge"
    if os.geteuid() != 0:
        return "the daemons of the test cluster need root"
    if not os.access(HOSTS, os.W_OK):
        return f"{HOSTS} cannot be written, and the nodes of the test cluster need names"
    return None


class Cluster:
    """The daemons, and what a user types at them.

    Attributes:
        run: Folder with the daemons' configuration, logs and state.
        environment: What a command needs to find this cluster.
        host: The name of this machine.
    """

    def __init__(self) -> None:
        self.run = Path(tempfile.mkdtemp(prefix="trilemma-slurm-"))
        self.host = socket.gethostname().partition(".")[0]
        self.environment = {
            **{
                key: value
                for key, value in os.environ.items()
                if not key.startswith(("SLURM_", "SBATCH_", "TRILEMMA_"))
            },
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "SLURM_CONF": str(self.run / "slurm.conf"),
            "TRILEMMA_TEST_CLUSTER": str(self.run),  # by which everything that belongs to it is found at the end
        }

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start(self) -> None:
        self.run.chmod(0o755)
        for name in ("munge", "state", "spool-node1", "spool-node2"):
            (self.run / name).mkdir(mode=0o700)
        (self.run / "munge").chmod(0o755)
        key = self.run / "munge/munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        for index in range(4):
            (self.run / f"fakegpu{index}").touch()
        (self.run / "gres.conf").write_text(f"NodeName=node1,node2 Name=gpu Type=a100 File={self.run}/fakegpu[0-3]\n")
        first_job = 10_000 + secrets.randbelow(40) * 1000  # Lightning and we derive ports from it
        conf = CONF.format(host=self.host, run=self.run, ports=_free_ports(3), first_job=first_job)
        (self.run / "slurm.conf").write_text(conf)
        with HOSTS.open("a") as hosts:
            hosts.write(self._hosts_line)
        munge = self.run / "munge"
        self._daemon(
            "munged",
            f"--key-file={key}",
            *(f"--{what}={munge}/munge{suffix}" for what, suffix in
              (("socket", ".sock"), ("pid-file", "d.pid"), ("log-file", "d.log"), ("seed-file", ".seed"))),
        )  # fmt: skip
        self._daemon("slurmctld", "-c", "-f", self.environment["SLURM_CONF"])
        for node in NODES:
            self._daemon("slurmd", "-N", node, "-f", self.environment["SLURM_CONF"])
        _until(lambda: self._nodes_are_idle(), 30, "the nodes do not come up", self.logs)

    def stop(self) -> None:
        """End every job and daemon, and leave nothing behind."""
        if (self.run / "slurmctld.pid").exists():
            self.call("scancel", "--full", "--signal=KILL", "--user=root", check=False)
            self.call("scancel", "--user=root", check=False)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 10
            while (processes := self._processes()) and time.monotonic() < deadline:
                for pid in processes:
                    _kill(pid, sign)
                time.sleep(0.2)
        HOSTS.write_text(HOSTS.read_text().replace(self._hosts_line, ""))
        shutil.rmtree(self.run, ignore_errors=True)

    def call(
        self, *command: str, check: bool = True, environment: dict[str, str] | None = None, cwd: Path = ROOT
    ) -> str:
        """Run a command against this cluster and return what it printed."""
        done = subprocess.run(
            command, env={**self.environment, **(environment or {})}, cwd=cwd, capture_output=True, text=True
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one job or array element."""
        line = self.call("scontrol", "show", "job", job, "-o").splitlines()[0]
        return dict(part.split("=", 1) for part in line.split() if "=" in part)

    def state(self, job: str) -> str:
        """A job's state, such as RUNNING."""
        return self.job(job)["JobState"]

    def log(self, job: str) -> str:
        """What a job has printed so far, of all its starts."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Wait until a job is in one of these states, or has ended otherwise, which is an error."""
        wanted = states or ENDED

        def reached() -> bool:
            state = self.state(job)
            assert state in wanted or state not in ENDED, f"job {job} is {state}\n{self.log(job)}"
            return state in wanted

        _until(reached, seconds, f"job {job} does not become {' or '.join(wanted)}", lambda: self._tell(job))
        return self.job(job)

    def finish(self, job: str, *, seconds: float = 300) -> dict[str, str]:
        """Wait for a job's successful end."""
        return self.wait_for(job, "COMPLETED", seconds=seconds)

    def until(self, condition: Callable[[], object], job: str, *, seconds: float = 180, every: float = 0.25) -> None:
        """Wait for a condition; where it does not come true, show what the job printed."""
        ended: list[float] = []

        def met() -> object:
            if self.state(job) in ENDED:
                ended.append(time.monotonic())
            done = condition()
            assert done or not ended or time.monotonic() < ended[0] + 15, f"the job has ended\n{self._tell(job)}"
            return done

        _until(met, seconds, "it did not happen", lambda: self._tell(job), every)

    def ranks(self, job: str) -> dict[int, int]:
        """Process ids of a running job's own commands, those that `rank.sh` started, by rank."""
        number = f"SLURM_JOB_ID={self.job(job)['JobId']}".encode()
        found = {}
        for pid in self._processes():
            with contextlib.suppress(OSError, IndexError, StopIteration):
                variables = (Path(f"/proc/{pid}/environ")).read_bytes().split(b"\0")
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                runs = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
                if number in variables and runs[1] == b"slurm/rank.sh":
                    rank = next(v for v in variables if v.startswith(b"SLURM_PROCID="))
                    found[int(rank.partition(b"=")[2])] = pid
        return found

    def logs(self) -> str:
        """The daemons' logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.run.glob("*.log")))

    def _tell(self, job: str) -> str:
        return f"{self.job(job)}\n{self.log(job)[-6000:]}\n{self.call('squeue', check=False)}"

    @property
    def _hosts_line(self) -> str:
        return f"127.0.0.1 {' '.join(NODES)} # {self.run.name}\n"

    def _daemon(self, name: str, *arguments: str) -> None:
        program = _which(name)
        assert program is not None
        output = self.run / f"{name}.out"
        with output.open("a") as sink:
            done = subprocess.run([program, *arguments], env=self.environment, stdout=sink, stderr=sink)
        assert done.returncode == 0, output.read_text()

    def _nodes_are_idle(self) -> bool:
        return self.call("sinfo", "-h", "-p", "general", "-o", "%D %t", check=False).strip() == "2 idle"

    def _processes(self) -> list[int]:
        mark = f"TRILEMMA_TEST_CLUSTER={self.run}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    is_ours = mark in (entry / "environ").read_bytes().split(b"\0")
                    is_dead = b"State:\tZ" in (entry / "status").read_bytes()
                except OSError:
                    continue
                if is_ours and not is_dead:
                    found.append(int(entry.name))
        return found


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _kill(pid: int, sign: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


def _until(
    condition: Callable[[], object], seconds: float, complaint: str, tell: Callable[[], str], every: float = 0.25
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{complaint} within {seconds:.0f} s\n{tell()}")
        time.sleep(every)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    with Cluster() as cluster:
        sys.exit(subprocess.run(sys.argv[1:] or ["bash"], env=cluster.environment).returncode)
