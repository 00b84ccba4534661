"""What a plan expects of its runs: device hours from measured rates where there are any, else from a named assumption.

A rate is measured by a completed run (its summary.json) or by `armscale bench step --output FILE.json`. It holds for
runs that do the same work an image: strategy, encoder, size, stage, resolution, patch and precision alike.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.ladder import SIZES
from scaling import rundir
from scaling.config import RunConfig
from scaling.devices import DEVICES, dense_peak
from scaling.errors import UserError
from scaling.reading import load_yaml
from scaling.study.plan import Plan, Row

ASSUMED_DEVICE, ASSUMED_MFU = "H100", 0.4
Work = tuple[str, str, str, str, int, int, str]


@dataclass(frozen=True)
class Rate:
    """Images per second and device, as measured on `device`."""

    images_per_second: float
    device: str


@dataclass(frozen=True)
class Expectation:
    """Device hours of a run; None where nothing tells its images. `measured` names the device that was measured."""

    device_hours: float | None
    measured: str = ""


def work_of(config: RunConfig) -> Work:
    """What decides the work an image."""
    encoder = config.encoder_config()
    return (
        config.strategy, config.encoder, config.size, config.stage, encoder.image_size, encoder.patch_size,
        config.precision,
    )  # fmt: skip


class Measured:
    """Rates by work. Those of `device` (a part of its name) count alone where one is named."""

    def __init__(self, device: str = "") -> None:
        self.device = device
        self.rates: dict[Work, list[Rate]] = {}

    def add(self, work: Work, rate: float, device: str) -> None:
        """One measurement."""
        if self.device in device:
            self.rates.setdefault(work, []).append(Rate(rate, device))

    def rate(self, config: RunConfig) -> Rate | None:
        """The median rate on the device that was measured the most."""
        found = self.rates.get(work_of(config), [])
        if not found:
            return None
        device = statistics.mode(rate.device for rate in found)
        return Rate(statistics.median(rate.images_per_second for rate in found if rate.device == device), device)


def read_measured(plan: Plan, root: Path, paths: list[Path], device: str = "") -> Measured:
    """Rates of the plan's own completed runs and of `paths`: JSON of `bench step`, or RUNS (a root, study or run)."""
    measured = Measured(device)
    for row in plan.rows:
        if row.state == "completed":
            _add_run(measured, root / plan.study.name / row.config.run, row.config)
    for path in paths:
        if path.is_file():
            _add_bench(measured, path)
        elif path.is_dir():
            for run in rundir.find_runs(path):
                _add_run(measured, run, None)
        else:
            raise UserError("--measured", str(path), "a JSON file of `armscale bench step`, or a folder of runs")
    return measured


def _add_run(measured: Measured, run: Path, config: RunConfig | None) -> None:
    summary = rundir.read_json(run / rundir.SUMMARY)
    if summary is None or not summary.get("images_per_second_per_device"):
        return
    work = work_of(config) if config else _work_in(load_yaml(run / rundir.CONFIG))
    measured.add(work, summary["images_per_second_per_device"], str(summary.get("device")))


def _work_in(given: dict[str, Any]) -> Work:
    """That of a config.yaml, which has every field; read without its schema, which other versions may differ in."""
    return (
        given["strategy"], given["encoder"], given["size"], given["stage"], given["train"]["image_size"],
        given["model"]["patch_size"], given["precision"],
    )  # fmt: skip


def _add_bench(measured: Measured, path: Path) -> None:
    """The fastest contender of a bench of whole steps; its baselines are other programs."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        case = report["case"]
        rates = [
            row["images_per_second"]
            for row in report["results"]
            if "images_per_second" in row and not row["name"].startswith("baseline ")
        ]
        # pico to micro read patches of 4 there, as everywhere.
        patch = case.get("patch_size") or (4 if SIZES[case["size"]].width < SIZES["tiny"].width else 16)
        work = (
            case["strategy"], case["encoder"], case["size"], case["stage"], report["image_size"], patch,
            case["precision"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("--measured", str(path), "the JSON of `armscale bench step`", why=str(error)) from None
    if rates:
        measured.add(work, max(rates) / report.get("devices", 1), report["device"])


def expect(row: Row, measured: Measured) -> Expectation:
    """Device hours of the whole run."""
    price = row.cost
    if price.images is None or price.train_flops is None or price.scan_flops is None:
        return Expectation(None)
    rate = measured.rate(row.config)
    if rate is not None:
        return Expectation(price.images / rate.images_per_second / 3600, rate.device)
    device = measured.device or ASSUMED_DEVICE
    peak = dense_peak(device, "bf16") or dense_peak(device, "fp32")
    if peak is None:
        raise UserError("--device", device, DEVICES, why="nothing was measured on it and its peak is not known")
    return Expectation((price.train_flops + price.scan_flops) / (ASSUMED_MFU * peak) / 3600)
