"""Declare what the commands take: one dataclass per command, without torch, so that `--help` is fast."""
