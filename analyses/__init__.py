"""Analyses: each takes a config dataclass and returns a frozen Result."""
