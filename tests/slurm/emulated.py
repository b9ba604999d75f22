"""A real Slurm (Debian's slurm-wlm) with several emulated nodes on this machine, for tests.

Each node has its own network, host name, mounts, /dev/shm and scratch folder (Linux namespaces), hence its own address
and ports, as Ray, torchrun and vLLM need it; memory, cores and Python's packages are this machine's, GPUs only names.
Everything lies in one folder; nothing outside it is touched but a bridge and the nodes' network namespaces, which carry
this process's id in their names. By hand, until Ctrl-C:

    sudo python -m tests.slurm.emulated 16
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "ip", "nsenter", "unshare", "setpriv")
GPUS = 8
START_WITHIN_S = 60
NODE = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs tmpfs "$2/l"
mountpoint -q /sys/fs/cgroup || mount -t tmpfs tmpfs /sys/fs/cgroup
exec slurmd -D -N "$1" -f "$2/slurm.conf"
"""
"""slurmd 22.05 ends at once where nothing is mounted on /sys/fs/cgroup."""


def why_not() -> str | None:
    """What this machine lacks for it; None if nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge iproute2"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    tried = subprocess.run(["unshare", "--mount", "--uts", "--net", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


class EmulatedSlurm:
    """A context manager: the cluster is up inside, and gone after."""

    def __init__(self, num_nodes: int, *, cpus: int = 16) -> None:
        self.names = [f"n{i}" for i in range(1, num_nodes + 1)]
        self.cpus = cpus
        self.id = os.getpid()
        self.net = f"10.{78 + self.id // 250 % 100}.{self.id % 250}"
        self.folder = Path(tempfile.mkdtemp(prefix="ns_", dir="/tmp"))  # short: sockets lie in it
        self._daemons: dict[str, subprocess.Popen] = {}

    @property
    def environment(self) -> dict[str, str]:
        """For sbatch and the like. No variable of a job that we may be in."""
        rest = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**rest, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    @property
    def scratch(self) -> Path:
        """Each node's own."""
        return self.folder / "l"

    def __enter__(self) -> "EmulatedSlurm":
        remove_leftovers()
        (self.folder / "owner").write_text(str(self.id))
        try:
            self._write_files()
            self._start_munge()
            self._net_up()
            self._start("slurmctld", ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")])
            for name in self.names:
                self.node_up(name)
            self._wait_until_idle()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def run(self, *command: str, within_s: float = 30) -> str:
        """Standard output of a client's command."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=within_s)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(word.split("=", 1) for word in self.run("scontrol", "show", "job", job_id).split() if "=" in word)

    def netns(self, name: str) -> str:
        """Name of a node's network namespace, for `ip -n`."""
        return f"nft{self.id}-{name}"

    def on_node(self, name: str, *command: str) -> None:
        """Runs a command among the node's mounts."""
        pid = str(self._daemons[name].pid)
        subprocess.run(["nsenter", "--target", pid, "--mount", "--uts", "--net", *command], check=True)

    def node_up(self, name: str) -> None:
        (self.folder / f"spool.{name}").mkdir(exist_ok=True)
        enter = ["nsenter", f"--net=/run/netns/{self.netns(name)}", "unshare", "--mount", "--uts", "--"]
        self._start(name, [*enter, "sh", "-c", NODE, "sh", name, str(self.folder)])

    def node_down(self, name: str) -> None:
        """A node's end: its daemon, and every process on it."""
        for pid in _output("ip", "netns", "pids", self.netns(name)).split():
            _kill(int(pid), signal.SIGKILL)
        self._daemons.pop(name).wait()

    def processes(self) -> list[str]:
        """Command lines of all that runs on the nodes, but their daemons."""
        found = []
        for name in self.names:
            for pid in _output("ip", "netns", "pids", self.netns(name)).split():
                words = Path(f"/proc/{pid}/cmdline")
                line = words.read_text().replace("\0", " ") if words.exists() else ""
                if line and not line.startswith(("slurmd", "nsenter", "unshare", "sh -c")):
                    found.append(f"{name}: {line}")
        return found

    def close(self) -> None:
        """Ends all jobs and daemons, and takes the network down."""
        if "slurmctld" in self._daemons:
            for arguments in (["--full", "--signal=KILL", "--state=RUNNING"], ["--state=PENDING"], ["--state=RUNNING"]):
                subprocess.run(["scancel", *arguments], env=self.environment, capture_output=True, timeout=20)
        for name in [n for n in self.names if n in self._daemons]:
            self.node_down(name)
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for name in self.names:
            _output("ip", "netns", "del", self.netns(name))
        _output("ip", "link", "del", self._bridge)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _bridge(self) -> str:
        return f"nft{self.id}"

    def _start(self, name: str, command: list[str], **options) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self._daemons[name] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self.environment,
            start_new_session=True,
            **options,
        )

    def _write_files(self) -> None:
        folder, host = self.folder, socket.gethostname()
        folder.chmod(0o755)
        for name in ("state", "munge", "gpu", "l"):
            (folder / name).mkdir()
        for i in range(GPUS):  # Slurm wants a character device each: a second /dev/null
            os.mknod(folder / "gpu" / f"nvidia{i}", 0o20666, os.makedev(1, 3))
        addresses = {name: f"{self.net}.{i}" for i, name in enumerate(self.names, start=1)}
        lines = ["127.0.0.1 localhost", f"{self.net}.254 {host}", *(f"{a} {n}" for n, a in addresses.items())]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "gres.conf").write_text(f"Name=gpu Type=h100 File={folder}/gpu/nvidia[0-{GPUS - 1}]\n")
        (folder / "slurm.conf").write_text(
            f"""
ClusterName=emulated
SlurmctldHost={host}({self.net}.254)
SlurmctldPort={_free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,bf_interval=5,sched_interval=5
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=15
MinJobAge=3600
NodeName=DEFAULT CPUs={self.cpus} RealMemory=20000 Gres=gpu:h100:{GPUS} State=UNKNOWN
"""
            + "".join(f"NodeName={name} NodeAddr={address} Port=17000\n" for name, address in addresses.items())
            + "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        )

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        for path in (folder, folder / "munge.key"):
            shutil.chown(path, "munge", "munge")
        files = [f"--{kind}={folder}/munge.{end}" for kind, end in (
            ("key-file", "key"), ("socket", "sock"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"),
        )]  # fmt: skip
        user = ["setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups"]
        self._start("munged", [*user, "munged", "--foreground", "--force", "--num-threads=4", *files])
        _poll(lambda: (folder / "munge.sock").is_socket(), "munged's socket")

    def _net_up(self) -> None:
        def ip(*arguments: str) -> None:
            subprocess.run(["ip", *arguments], check=True, capture_output=True)

        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.net}.254/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for i, name in enumerate(self.names, start=1):
            ip("netns", "add", self.netns(name))
            ip("link", "add", f"nf{self.id}.{i}", "type", "veth", "peer", "name", "eth0", "netns", self.netns(name))
            ip("link", "set", f"nf{self.id}.{i}", "master", self._bridge, "up")
            ip("-n", self.netns(name), "addr", "add", f"{self.net}.{i}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", self.netns(name), "link", "set", device, "up")

    def _wait_until_idle(self) -> None:
        def all_idle() -> bool:
            done = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%T"], env=self.environment, capture_output=True, text=True
            )
            return done.stdout.split() == ["idle"] * len(self.names)

        _poll(all_idle, f"{len(self.names)} idle nodes; see {self.folder}/*.log")


def remove_leftovers() -> None:
    """Ends what processes of this module left that were killed: in their network namespaces, and in their folders."""
    for folder in [path.parent for path in Path("/tmp").glob("ns_*/owner")]:
        owner = (folder / "owner").read_text()
        if Path(f"/proc/{owner}").exists():
            continue
        namespaces = [line.split()[0] for line in _output("ip", "netns", "list").splitlines()]
        for namespace in [n for n in namespaces if n.startswith(f"nft{owner}-")]:
            for pid in _output("ip", "netns", "pids", namespace).split():
                _kill(int(pid), signal.SIGKILL)
            _output("ip", "netns", "del", namespace)
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"{folder}/" in line.read_text():
                    _kill(int(line.parent.name), signal.SIGKILL)
        _output("ip", "link", "del", f"nft{owner}")
        shutil.rmtree(folder, ignore_errors=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _poll(is_there, what: str) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while not is_there():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} within {START_WITHIN_S} s")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"error: {reason}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with EmulatedSlurm(int(sys.argv[1]) if len(sys.argv) > 1 else 4) as slurm:
        print(f"export SLURM_CONF={slurm.folder}/slurm.conf\nexport NFT_LOCAL_DIR={slurm.scratch}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
