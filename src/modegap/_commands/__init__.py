"""The commands: each module has a `Config` dataclass and `run(config, console)` returning what to print."""
