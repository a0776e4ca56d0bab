"""`clipft ops chaos`: the embedded stack works through the loop while its processes are killed and its power is cut."""

from .proof import Report, run

__all__ = ["Report", "run"]
