"""Reads checkpoints and data, writes arrays; never trains."""
