"""`clipft ops chaos`: the embedded stack works through the loop while its processes are killed and its power is cut."""

from .proof import run
from .runs import Report

__all__ = ["Report", "run"]
