"""The selective scan and the causal convolution before it: one operator each, several backends, one contract."""

from models.scan.backends import available_backends
from models.scan.conv_operator import causal_conv1d
from models.scan.scan_operator import selective_scan

__all__ = ["available_backends", "causal_conv1d", "selective_scan"]
