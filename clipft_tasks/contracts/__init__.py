"""Typed records that cross a process: between tasks (XCom), over HTTP, in MLflow artifacts and in files."""

from .base import Record, StageResult, VersionedRecord

__all__ = ["Record", "StageResult", "VersionedRecord"]
