"""Encoders, objectives, the selective scan and its backends, FLOPs, conversion."""
