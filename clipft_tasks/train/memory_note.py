"""A try that ended without a word: where the memory of a host is short, the kernel ends a process and nothing is raised.

A note lies beside the work while it runs. One that is found when a try begins is of a try that was killed; where it had used nearly all
that it may, or had not taken a step, the next one takes passes of half the size. The result stays the same, only the passes are
smaller.
"""

from pathlib import Path

from ..contracts import Record
from ..contracts.plan import Plan
from ..core.console import say
from ..core.decision import Decision
from ..core.files import atomic_write
from ..devices import backend

NEAR = 0.8  # of the limit: more than that in use, and it is likely to have been the memory
GROWN = 1.05  # times what was noted, before it is noted anew


class _Used(Record):
    """Bytes that a try had in use at most; 0 before its first step."""

    in_use: int = 0


class MemoryNote:
    """The note of a job.

    Args:
        folder: of the job.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "under_way.json"
        self._noted = 0

    def smaller(self, plan: Plan) -> Plan:
        """The plan, or one of passes of half the size where the last try was killed for its memory, as far as can be told."""
        if not backend(plan.device.value).is_host or not self._path.exists():
            return plan
        try:
            used = _Used.model_validate_json(self._path.read_text()).in_use
        except ValueError:  # killed while it was written: before anything was known
            used = 0
        if 0 < used < NEAR * plan.memory_limit or max(plan.micro_batch.value.values()) == 1:
            return plan
        halved = {side: max(1, -(-pairs // 2)) for side, pairs in plan.micro_batch.value.items()}
        why = "the last try ended without a word" + (f" at {used / 2**30:.1f} GiB" if used else " before its first step")
        say(f"{why[0].upper()}{why[1:]}: half as many pairs a pass.")
        passes = {side: count * 2 for side, count in plan.accumulation.value.items()}
        return plan.model_copy(
            update={
                "micro_batch": Decision(halved, f"half as many: {why}", plan.micro_batch.measured),
                "accumulation": Decision(passes, plan.accumulation.reason, plan.accumulation.measured),
            }
        )

    def begin(self) -> None:
        """A try begins."""
        self._noted = 0
        atomic_write(self._path, _Used().model_dump_json())

    def saw(self, in_use: int) -> None:
        """So many bytes are in use."""
        if in_use > GROWN * self._noted:
            self._noted = in_use
            atomic_write(self._path, _Used(in_use=in_use).model_dump_json())

    def end(self) -> None:
        """The try ends, and says how."""
        self._path.unlink(missing_ok=True)
