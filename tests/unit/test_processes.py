"""Processes that work for a task do not run the task's program again."""

import subprocess
import sys
from pathlib import Path

# As `airflow` is inside of a task: it refuses to start there.
PROGRAM = """
if __name__ != "__main__":
    raise SystemExit("run again")
import os
from clipft_tasks.core.processes import fresh_pool
with fresh_pool(2, str) as pool:
    done = [pool.submit(os.getpid), pool.submit(len, [1, 2])]
    assert done[0].result() != os.getpid() and done[1].result() == 2
    import __main__
    assert __main__.__file__ == __file__
print("well")
"""


def test_a_fresh_process_does_not_run_the_program_again(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr[-2000:]
