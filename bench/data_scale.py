"""How the data stages grow: seconds, peak memory and bytes of ingest, validate and version, and of one percent more rows.

    python -m bench.data_scale --sizes 1000 4000                    # three minutes on two cores
    python -m bench.data_scale                                      # 1k, 4k, 16k and 64k of 128 px, and 4k of 12 megapixels
    python -m bench.data_scale --sizes 4000 16000 --large 0 --in FOLDER     # made images stay in FOLDER for the next time

Each step is a process of its own, so that its peak memory is its own (that of the largest process, where it starts more). A row of the table is a step; its growth is the exponent
between the smallest and the largest size (1 is linear). The last line is JSON.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

STEPS = ("ingest", "validate", "version")
CLASSES = 50


def image(path: Path, number: int, size: tuple[int, int]) -> None:
    """A smooth field of its own; no two are alike."""
    coarse = Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16, 3)).astype(np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=85)


def table(folder: Path, rows: int, size: tuple[int, int]) -> Path:
    """Images and a table of the first `rows` of them; those that are there stay."""
    lines = ["image,caption,label"]
    for number in range(rows):
        path = folder / f"{size[0]}" / f"{number // 1000:03d}" / f"{number}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            image(path, number, size)
        lines.append(f"{path.relative_to(folder)},a photo of thing {number},class {number % CLASSES:02d}")
    written = folder / f"{size[0]}-{rows}.csv"
    written.write_text("\n".join(lines) + "\n")
    return written


def step(name: str, source: str, staging: str) -> dict[str, object]:
    """One stage, in this process."""
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import ingest, validate, version

    # The tokenizer alone is used, and that of an open_clip model needs no weights.
    spec = RunSpec.from_flat({"domain": "general", "source": source, "model.start": "ViT-B-32"})
    began = time.perf_counter()
    if name == "ingest":
        staging = ingest.run(spec).staging
    more: dict[str, object] = {"staging": staging}
    if name == "validate":
        validate.run(spec, staging)
    if name == "version":
        more["bytes"] = version.run(spec, staging).pushed_bytes
    else:
        more["bytes"] = sum(f.stat().st_size for f in Path(staging).rglob("*") if f.is_file())
    # Of this process, or of one that it started, whichever took more.
    of = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = max(of) * (1 if sys.platform == "darwin" else 1024)
    return more | {"seconds": round(time.perf_counter() - began, 2), "peak_bytes": peak}


def measure(home: Path, source: Path, timeout: float) -> dict[str, dict[str, float]]:
    """All steps of a source; those after one that fails or takes too long are left out."""
    found: dict[str, dict[str, float]] = {}
    staging = ""
    for name in STEPS:
        command = [sys.executable, "-m", "bench.data_scale", "--step", name, "--source", str(source), "--staging", staging]
        try:
            done = subprocess.run(
                command, env=os.environ | {"CLIPFT_HOME": str(home)}, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            print(f"{source.name}: {name} took more than {timeout:.0f} s", file=sys.stderr)
            break
        if done.returncode:
            print(f"{source.name}: {name} failed\n{done.stderr[-2000:]}", file=sys.stderr)
            break
        values = json.loads(done.stdout.splitlines()[-1])
        staging = values.pop("staging")
        found[name] = values
        shown = f"{values['seconds']:9.1f} s {values['peak_bytes'] / 1e6:9.0f} MB peak {values['bytes'] / 1e6:9.1f} MB written"
        print(f"| {source.stem:>14} | {name:<8} | {shown} |", flush=True)
    return found


def growth(found: dict[int, dict[str, dict[str, float]]]) -> dict[str, float]:
    """Exponent of each step's seconds between the smallest and the largest size that have it."""
    out = {}
    for name in STEPS:
        sizes = sorted(size for size, steps in found.items() if name in steps)
        if len(sizes) > 1:
            few, many = found[sizes[0]][name]["seconds"], found[sizes[-1]][name]["seconds"]
            out[name] = round(math.log(many / few) / math.log(sizes[-1] / sizes[0]), 3)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 4_000, 16_000, 64_000], help="rows of 128 px")
    parser.add_argument("--large", type=int, default=4_000, help="rows of 12 megapixels; 0 for none")
    parser.add_argument("--in", dest="folder", type=Path, help="where made images stay; else they are made anew")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds a step may take")
    for hidden in ("--step", "--source", "--staging"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, options.source, options.staging)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or Path(place, "images")
        folder.mkdir(parents=True, exist_ok=True)
        first: dict[int, dict[str, dict[str, float]]] = {}
        again: dict[int, dict[str, dict[str, float]]] = {}
        for size in options.sizes:
            home = Path(place, f"home-{size}")
            first[size] = measure(home, table(folder, size, (128, 128)), options.timeout)
            again[size] = measure(home, table(folder, size + size // 100, (128, 128)), options.timeout)
        large = {}
        if options.large:
            large = measure(Path(place, "home-large"), table(folder, options.large, (4000, 3000)), options.timeout)
    from clipft_tasks.devices.hardware import usable_cores  # loads torch, which is no part of a step

    result = {"first": first, "one_percent_more": again, "large": large, "growth": growth(first)}
    print(json.dumps(result | {"cores": usable_cores(), "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
