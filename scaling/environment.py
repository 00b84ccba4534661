"""What this process is among its ranks, and what the machine is."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import platform
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scaling.errors import UserError

PACKAGES = (
    "armscale", "torch", "numpy", "deepspeed", "triton", "numba", "mamba-ssm", "causal-conv1d", "webdataset",
    "submitit",
)  # fmt: skip


GIT_SECONDS = 30.0

_LEFT: list[Any] = []
"""Process groups that were left, until the process ends.

A group joins gloo's thread when its last owner goes. Where that is DDP's reducer, whose destructor keeps the
interpreter's lock, and the thread waits for that lock to free the tensors of its last collective, neither ends. So the
last owner is this list: what Python owns of a group is freed without the lock.
"""


@atexit.register
def _free_groups() -> None:
    gc.collect()  # engines that still own one go first
    _LEFT.clear()


@dataclass(frozen=True)
class Rank:
    """One rank of a run: from torchrun's variables, from a Slurm task's, or alone."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    nodes: int = 1

    @classmethod
    def from_environment(cls) -> Rank:
        """Reads RANK, WORLD_SIZE, LOCAL_RANK, or the SLURM_* of a task started by srun."""
        env = os.environ
        if "RANK" in env and "WORLD_SIZE" in env:
            local_ranks = int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]))
            ranks = int(env["WORLD_SIZE"])
            return cls(int(env["RANK"]), ranks, int(env.get("LOCAL_RANK", "0")), max(1, ranks // local_ranks))
        if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
            return cls(
                int(env["SLURM_PROCID"]),
                int(env.get("SLURM_NTASKS", "1")),
                int(env.get("SLURM_LOCALID", "0")),
                int(env.get("SLURM_NNODES", "1")),
            )
        return cls()

    @property
    def device(self) -> torch.device:
        """This rank's GPU where there are any, else the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    def join_others(self) -> None:
        """`join` where there are other ranks."""
        if self.ranks > 1:
            self.join()

    def join(self) -> None:
        """Starts the process group (nccl beside gloo on GPUs, gloo on CPUs), where it is not there yet."""
        if dist.is_initialized():
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(self.device)  # kernels of ours and of libraries start on the current device
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if self.ranks == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            return
        if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
            raise UserError(
                "MASTER_ADDR", os.environ.get("MASTER_ADDR"), "host and MASTER_PORT of rank 0, as torchrun sets"
            )
        dist.init_process_group(backend, rank=self.rank, world_size=self.ranks)

    def leave(self) -> None:
        """Ends the process group, where there is one; threads that outlive the interpreter make it abort."""
        if dist.is_initialized():
            _LEFT.append(dist.group.WORLD)
            dist.destroy_process_group()


@functools.cache
def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return models[0] if models else platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the checkout that runs, with '+' where it holds uncommitted changes; None outside a checkout, and
    where git does not answer in time, as on a slow file system."""
    home = Path(__file__).resolve().parent.parent
    try:
        commit = _git(home, "rev-parse", "HEAD")
        return commit + ("+" if _git(home, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(home: Path, *arguments: str) -> str:
    command = ["git", "-C", str(home), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout.strip()


def versions() -> dict[str, str]:
    """Versions of the packages that shape a result, those that are installed."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(rank: Rank) -> dict[str, Any]:
    """environment.json: versions, git commit, hosts and device names of all ranks."""
    here = (socket.gethostname(), device_name(rank.device))
    everywhere: list[tuple[str, str]] = [here]
    if rank.ranks > 1:
        gathered: list[Any] = [None] * rank.ranks
        dist.all_gather_object(gathered, here)
        everywhere = gathered
    return {
        "versions": versions(),
        "git_commit": git_commit(),
        "hosts": sorted({host for host, _ in everywhere}),
        "devices": [device for _, device in everywhere],
        "ranks": rank.ranks,
        "threads": torch.get_num_threads(),
    }
