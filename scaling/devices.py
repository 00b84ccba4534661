"""What devices have by their name: memory, and dense peaks by precision."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.errors import UserError


@dataclass(frozen=True)
class Device:
    """Bytes of memory; operations per second of dense bf16 matrix products with fp32 sums, and of plain fp32."""

    memory: float
    bf16: float | None
    fp32: float


DEVICES: dict[str, Device] = {
    "B200": Device(180e9, 2250e12, 75e12),
    "GH200": Device(96e9, 990e12, 67e12),
    "H200": Device(141e9, 989e12, 67e12),
    "H100 PCIe": Device(80e9, 756e12, 51e12),
    "H100 NVL": Device(94e9, 835e12, 60e12),
    "H100": Device(80e9, 989e12, 67e12),
    "H800": Device(80e9, 989e12, 67e12),
    "H20": Device(96e9, 148e12, 44e12),
    "A100-SXM4-40GB": Device(40e9, 312e12, 19.5e12),
    "A100-PCIE-40GB": Device(40e9, 312e12, 19.5e12),
    "A100": Device(80e9, 312e12, 19.5e12),
    "A800": Device(80e9, 312e12, 19.5e12),
    "A40": Device(48e9, 149.7e12, 37.4e12),
    "A30": Device(24e9, 165e12, 10.3e12),
    "A10G": Device(24e9, 70e12, 35e12),
    "A10": Device(24e9, 125e12, 31.2e12),
    "RTX A6000": Device(48e9, 154.8e12, 38.7e12),
    "RTX 6000 Ada": Device(48e9, 364.2e12, 91.1e12),
    "L40S": Device(48e9, 362e12, 91.6e12),
    "L40": Device(48e9, 181e12, 90.5e12),
    "L4": Device(24e9, 121e12, 30.3e12),
    "RTX 5090": Device(32e9, 209.5e12, 104.8e12),
    "RTX 4090": Device(24e9, 165.2e12, 82.6e12),
    "RTX 3090": Device(24e9, 71e12, 35.6e12),
    "V100-SXM2-16GB": Device(16e9, None, 15.7e12),
    "V100": Device(32e9, None, 15.7e12),
    "T4": Device(16e9, None, 8.1e12),
    "MI300X": Device(192e9, 1307.4e12, 163.4e12),
    "MI250X": Device(64e9, 191.5e12, 23.9e12),
}
"""By a part of the device's name, the first that fits. From the vendors' data sheets and architecture papers (NVIDIA
Blackwell, Hopper, Ada, Ampere, Turing and Volta; AMD CDNA 2 and 3), without sparsity: where a sheet states the sparse
rate, half of it. An MI250X is one of its two dies, as torch counts devices. fp32 is without TF32."""

USABLE = 0.92
"""Of a device's memory: the rest is the driver's context, libraries' workspaces and what fragmentation leaves."""


def find_device(name: str) -> Device | None:
    """The device of this name, None when the table does not know it."""
    return next((device for known, device in DEVICES.items() if known.lower() in name.lower()), None)


def dense_peak(name: str, precision: str) -> float | None:
    """Dense peak of a device in operations per second; None when the table does not know it."""
    device = find_device(name)
    return None if device is None else {"bf16": device.bf16, "fp32": device.fp32}.get(precision)


def usable_memory(name: str) -> float:
    """Bytes that a run can use of the device of this name; UserError lists the names known."""
    device = find_device(name)
    if device is None:
        raise UserError("gpu", name, DEVICES)
    return USABLE * device.memory
