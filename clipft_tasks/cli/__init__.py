"""The command line: `clipft …`."""

from .main import main

__all__ = ["main"]
