"""Seconds and scores of `make demo` on a fresh installation: python -m bench.demo

Takes about six minutes on two cores. Its metrics are those in README.md.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from clipft_tasks.devices.hardware import usable_cores

PROJECT = Path(__file__).resolve().parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "CLIPFT_HOME": str(Path(folder, "home"))}
        try:
            subprocess.run([sys.executable, "-m", "examples.demo"], cwd=PROJECT, env=env, check=True, stdout=sys.stderr)
            summary = json.loads(Path(folder, "home", "demo", "summary.json").read_text())
        finally:
            stop = [sys.executable, "-m", "deploy.local.stack", "down"]
            subprocess.run(stop, cwd=PROJECT, env=env, check=False, stdout=sys.stderr)
    print(
        f"| image size | start model | fine-tuned | gain in points |  ({summary['metric']}, {summary['data']['counts']['test']} images)"
    )
    print("|---|---|---|---|")
    for size, who in summary["scores"].items():
        cell = {w: f"{f['value']:.3f} [{f['low']:.2f}, {f['high']:.2f}]" for w, f in who.items()}
        gain = 100 * (who["candidate"]["value"] - who["start"]["value"])
        print(f"| {size} px | {cell['start']} | {cell['candidate']} | {gain:+.1f} |")
    print("| stage | seconds |\n|---|---|")
    for stage, seconds in summary["seconds"].items():
        print(f"| {stage} | {seconds:.0f} |")
    machine = {"machine": platform.machine(), "system": platform.system(), "cores": usable_cores()}
    print(json.dumps({**machine, "seconds": summary["seconds"], "scores": summary["scores"]}))


if __name__ == "__main__":
    main()
