"""python -m slurm.cluster up|status|down [--state DIR]. Exit status: 0 done or up, 1 failed or not up, 2 bad input."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from scaling.errors import UserError
from slurm.cluster import lifecycle
from slurm.cluster.layout import DEFAULT_STATE, GPUS_PER_NODE, NODES, Layout
from slurm.cluster.machine import linked_layout
from slurm.cluster.processes import ClusterError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.cluster", description="A real Slurm of four nodes, here.")
    parser.add_argument("command", choices=("up", "status", "down"))
    place = f"folder for everything it writes (default: that of the cluster that is up, else {DEFAULT_STATE})"
    parser.add_argument("--state", type=Path, help=place)
    given = parser.parse_args(arguments)
    layout = Layout(given.state.absolute()) if given.state else linked_layout() or Layout()
    try:
        return {"up": _up, "status": _status, "down": _down}[given.command](layout)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except ClusterError as error:
        print(f"{error}\nLogs: {layout.logs}. Clean up with `down`.", file=sys.stderr)
        return 1


def _up(layout: Layout) -> int:
    began = time.monotonic()
    if lifecycle.up(layout):
        print(f"up in {time.monotonic() - began:.0f} s: {len(NODES)} nodes of {GPUS_PER_NODE} declared GPUs")
        print("Try: srun --nodes=2 hostname; sinfo. Partitions: low (preemptible), high.")
    else:
        print("already up")
    return 0


def _status(layout: Layout) -> int:
    states = lifecycle.node_states(layout)
    print(" ".join(f"{node}={state}" for node, state in states.items()) or "down")
    return 0 if lifecycle.is_up(layout) else 1


def _down(layout: Layout) -> int:
    print("down" if lifecycle.down(layout) else "was not up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
