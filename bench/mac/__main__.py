"""Everything that only a Mac can show, in at most 15 minutes: python -m bench.mac [--quick] [--only SECTION …] [--out FOLDER]

Environment, operators, parity with the host, precisions, pairs a second at three sizes, memory of attention, AdamW's ways, the server, and
whether the chip is slowed down. Writes one JSON file and one page, which says what to send where. The page's numbers are of one
machine; those that compare are ratios within the run. With --quick it takes small models, three minutes on two CPU cores, and runs
wherever PyTorch does: `--device` names another device than the fastest.
"""

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from clipft_tasks.devices import hardware

from . import machine, measure, page
from .machine import Facts
from .measure import Kit

SECTIONS: dict[str, Callable[[Kit], Facts]] = {
    "environment": lambda kit: machine.environment(kit.device),
    "temperatures": lambda kit: machine.temperatures(),
    "operators": measure.operators,
    "parity": measure.parity,
    "precision": measure.precision,
    "speed": measure.speed,
    "memory": measure.memory,
    "optimizer": measure.optimizer,
    "serving": measure.serving,
    "suite": measure.suite,
    "speed again": measure.speed,
    "temperatures afterwards": lambda kit: machine.temperatures(),
}
MOST_SECONDS = 14 * 60  # after which no further section begins


def run(kit: Kit, names: list[str]) -> tuple[dict[str, Facts], dict[str, float]]:
    """Each section's facts and seconds. One that fails says so, and the others go on."""
    found: dict[str, Facts] = {}
    seconds: dict[str, float] = {}
    began = time.monotonic()
    for name in names:
        at = time.monotonic()
        if at - began > MOST_SECONDS:
            found[name] = {"passed over": "the time is up"}
            continue
        print(f"{name} …", flush=True)
        try:
            found[name] = SECTIONS[name](kit)
        except Exception as error:  # what a Mac does not do is what this is for
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            found[name] = {"failed": without_places(f"{type(error).__name__} in {place}: {error}")}
        seconds[name] = time.monotonic() - at
    return found, seconds


def without_places(text: str) -> str:
    """A text without the folders that say whose machine this is."""
    for place, name in ((machine.PROJECT, "<project>"), (Path(tempfile.gettempdir()), "<tmp>"), (Path.home(), "~")):
        text = text.replace(str(place), name)
    return text[:2000]


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models and few repeats")
    parser.add_argument("--device", default="auto", help="auto, mps, cuda or cpu")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--out", type=Path, default=machine.PROJECT / "build" / "bench-mac")
    options = parser.parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    device = hardware.set_up(options.device).device
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = run(Kit(device, options.quick, Path(folder)), options.only)
    total = time.monotonic() - began
    name = f"{device}-{datetime.now(UTC):%Y%m%d-%H%M}"
    record = {"format": 1, "quick": options.quick, "sections": found, "seconds": seconds, "total_seconds": total}
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    written = out / f"{name}.md"
    written.write_text(page.write(name, found, seconds, total))
    print("\n".join(f"- {line}" for line in page.findings(found)) or "- nothing out of the ordinary")
    print(f"{total:.0f} s. Read, and send: {written} and {name}.json beside it.")
    print(json.dumps({"json": str(out / f"{name}.json"), "page": str(written), "seconds": round(total, 1)}))
    return written


if __name__ == "__main__":
    main()
