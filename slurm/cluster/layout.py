"""What the cluster is made of, and the configuration texts that say so to Slurm: pure functions, nothing is touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_STATE: Final = Path("/var/lib/armscale-cluster")
MARK: Final = "armscale-cluster"
"""Stands in everything that is ours, so that nothing else is ever removed."""

BRIDGE: Final = "armscale0"
# 198.18.0.0/15 is set aside for tests between networks (RFC 2544), so no real network has it.
SUBNET: Final = "198.18.77"
MACHINE_ADDRESS: Final = f"{SUBNET}.254"

CPUS_PER_NODE: Final = 4
GPUS_PER_NODE: Final = 8
MEMORY_MIB_PER_NODE: Final = 8000
PARTITIONS: Final = ("low", "high")


@dataclass(frozen=True)
class Host:
    """One host of the cluster: a network namespace that is joined to the bridge, and processes that see its name."""

    name: str
    number: int

    @property
    def address(self) -> str:
        return f"{SUBNET}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"armscale-{self.name}"

    @property
    def link(self) -> str:
        """The machine's end of the virtual cable; the kernel allows 15 characters."""
        return f"armscale-{self.number}"


CONTROLLER: Final = Host("controller", 100)
NODES: Final = tuple(Host(f"n{number}", number) for number in range(1, 5))
HOSTS: Final = (CONTROLLER, *NODES)


@dataclass(frozen=True)
class Layout:
    """The state folder: all that the cluster writes to disk, save for lines of /etc/hosts and a link in /etc/slurm."""

    state: Path = DEFAULT_STATE

    @property
    def mark(self) -> Path:
        return self.state / MARK

    @property
    def namespaces_record(self) -> Path:
        """Exists where the machine had no network namespaces before us."""
        return self.state / "made-namespaces-folder"

    @property
    def slurm_conf(self) -> Path:
        return self.state / "slurm.conf"

    @property
    def gres_conf(self) -> Path:
        # Slurm looks for it beside slurm.conf.
        return self.state / "gres.conf"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.state / "slurmdbd.conf"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pids(self) -> Path:
        return self.state / "pids"

    @property
    def jobs(self) -> Path:
        """Slurm's record of jobs and nodes."""
        return self.state / "jobs"

    @property
    def database(self) -> Path:
        return self.state / "database"

    @property
    def devices(self) -> Path:
        return self.state / "devices"

    @property
    def database_socket(self) -> Path:
        return self.state / "sockets" / "mariadb"

    @property
    def munge_socket(self) -> Path:
        return self.state / "sockets" / "munge"

    @property
    def munge_key(self) -> Path:
        return self.state / "munge.key"

    def spool(self, node: Host) -> Path:
        return self.state / "spool" / node.name

    @property
    def gpus(self) -> tuple[Path, ...]:
        return tuple(self.devices / f"gpu{index}" for index in range(GPUS_PER_NODE))


def slurm_conf(layout: Layout) -> str:
    """The text of slurm.conf, the same for daemons and clients."""
    nodes = "\n".join(f"NodeName={node.name} NodeAddr={node.address}" for node in NODES)
    names = ",".join(node.name for node in NODES)
    return f"""\
# {MARK}: written by `python -m slurm.cluster up`, removed by `down`.
ClusterName=armscale
SlurmctldHost={CONTROLLER.name}({CONTROLLER.address})
SlurmUser=root
SlurmdUser=root
StateSaveLocation={layout.jobs}
SlurmdSpoolDir={layout.spool(Host("%n", 0))}
SlurmctldPidFile={layout.pids}/slurmctld
SlurmdPidFile={layout.pids}/slurmd-%n
SlurmctldLogFile={layout.logs}/slurmctld.log
SlurmdLogFile={layout.logs}/slurmd-%n.log

# A munge of our own, so that a munge that is already in use stays untouched. A requeued job waits until its
# old credential has expired: 5 seconds in place of two minutes.
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={layout.munge_socket},cred_expire=5

# No cgroups (containers often have none to give), and more CPUs and memory declared than the machine may have.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
MpiDefault=none

# Schedule at once, notice a dead node within half a minute, take it back when it returns. Forget ended jobs within a
# minute, not five, so that whoever watches jobs here meets what happens to long sweeps: only accounting knows them.
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmdTimeout=10
ReturnToService=2
KillWait=3
MinJobAge=30

# Jobs of `high` requeue jobs of `low`, which get their own signal (sbatch --signal) at the start of the grace time.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmctldParameters=preempt_send_user_signal

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={CONTROLLER.address}
AccountingStoragePass={layout.munge_socket}

NodeName=DEFAULT CPUs={CPUS_PER_NODE} CoresPerSocket={CPUS_PER_NODE} RealMemory={MEMORY_MIB_PER_NODE} \
Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN
{nodes}
PartitionName=DEFAULT Nodes={names} MaxTime=INFINITE State=UP
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


def gres_conf(layout: Layout) -> str:
    """The text of gres.conf. Device files are needed: a count without files leaves the nodes invalid."""
    return f"Name=gpu File={layout.devices}/gpu[0-{GPUS_PER_NODE - 1}]\n"


def slurmdbd_conf(layout: Layout) -> str:
    """The text of slurmdbd.conf, which must be readable by its owner alone. MariaDB knows root by its socket."""
    return f"""\
DbdHost={CONTROLLER.name}
DbdAddr={CONTROLLER.address}
AuthType=auth/munge
AuthInfo={layout.munge_socket}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_accounting
LogFile={layout.logs}/slurmdbd.log
PidFile={layout.pids}/slurmdbd
"""


def add_hosts(text: str) -> str:
    """The text of /etc/hosts with the cluster's names in it, once."""
    text = remove_hosts(text)
    if text and not text.endswith("\n"):
        text += "\n"
    return text + "".join(f"{host.address} {host.name} # {MARK}\n" for host in HOSTS)


def remove_hosts(text: str) -> str:
    """The text of /etc/hosts without the cluster's names."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.rstrip().endswith(f"# {MARK}"))
