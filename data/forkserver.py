"""Imported by the fork server alone: loads once what all data workers need, and shields it and them from SIGTERM.

Slurm sends that to every process of a step. The trainer answers; its workers must go on until it has saved.
"""

from __future__ import annotations

import signal

import data.stream  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)
