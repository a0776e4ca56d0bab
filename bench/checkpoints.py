"""What checkpoints cost a run on a CPU: python -m bench.checkpoints [--epochs N]

The starter on elpv, the same run three times: without checkpoints, with one whenever the last is paid off (`train.checkpoint_seconds`
of a tenth of a second), and the same with low-rank updates. Printed: pairs a second, the share of the time that the run waited for
checkpoints, and their size.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from bench import train_cpu

CASES: dict[str, dict[str, object]] = {
    "no checkpoints": {},
    "as often as 5% allow": {"train.checkpoint_seconds": 0.1},
    "as often, rank 8": {"train.checkpoint_seconds": 0.1, "train.lora_rank": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    epochs = parser.parse_args().epochs
    metrics: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        dataset = train_cpu.prepare()
        train_cpu.ours(dataset, 1, Path(home, "warm"))  # decodes
        for number, (name, more) in enumerate(CASES.items()):
            folder = Path(home, str(number))
            metrics[name] = train_cpu.ours(dataset, epochs, folder, more)
            files = sorted((folder / "checkpoints").glob("*.pt"))
            metrics[name]["mib"] = files[-1].stat().st_size / 2**20
            print(json.dumps({name: metrics[name]}), file=sys.stderr, flush=True)
    print("| checkpoints | pairs/s | share of the time waited | MiB of one |\n|---|---|---|---|")
    for name, found in metrics.items():
        print(f"| {name} | {found['pairs_per_second']:.1f} | {found['checkpoint_share']:.1%} | {found['mib']:.1f} |")
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
