"""Data: sources, packing into shards, verification, the resumable stream, augmentation."""
