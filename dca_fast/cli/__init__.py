"""The command line."""

from dca_fast.cli.parser import main

__all__ = ["main"]
