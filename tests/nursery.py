"""Servers that start in a moment: forked from a process that has imported what a server imports, which takes longer than most tests."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]

# One line of JSON asks for a server; one line answers with its process.
PROGRAM = """
import json, os, signal, sys
import uvicorn
import serving.app

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever ends is gone, without being waited for
for line in sys.stdin:
    asked = json.loads(line)
    if child := os.fork():
        print(child, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(asked["environment"])
    log, nothing = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
    for there, here in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(there, here)
    uvicorn.main(asked["arguments"])
"""


@cache
def _nursery() -> subprocess.Popen[str]:
    """The one of this test process; it ends with it, when its input does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def start(arguments: list[str], environment: dict[str, str], log: Path) -> psutil.Process:
    """uvicorn with these arguments, in a process of its own.

    Args:
        arguments: of its command line; environment: the whole of it; log: where it writes.
    """
    nursery = _nursery()
    assert nursery.stdin and nursery.stdout
    asked = {"arguments": arguments, "environment": environment, "log": str(log)}
    print(json.dumps(asked), file=nursery.stdin, flush=True)
    return psutil.Process(int(nursery.stdout.readline()))
