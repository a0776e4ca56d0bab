"""How much of an evaluation is spent in the models: python -m bench.evaluation [--pairs N]

The starter and a copy of it on the test rows of molecules, whose captions all differ, at four sizes, as the stage evaluates
them: reading, every figure, intervals, comparisons, retention. What is not in the towers is ours to keep small.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

SIDES = [96, 128, 160, 192]


class Watch:
    """Adds up the seconds that wrapped functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*inputs: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*inputs, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as home:
        os.environ["CLIPFT_HOME"] = home
        from clipft_tasks.data import versioning
        from clipft_tasks.domains import get_domain
        from clipft_tasks.evaluate import together, zero_shot
        from clipft_tasks.model import build
        from clipft_tasks.spec import RunSpec
        from clipft_tasks.stages import ingest, version
        from clipft_tasks.train import hardware

        hardware.use_threads(hardware.usable_cores())
        hardware.keep_freed_memory()
        spec = RunSpec.from_flat(
            {"domain": "scientific", "source": f"molecules:{2 * pairs}", "data.test_share": 0.5, "resolution.evaluate": SIDES}
        )
        made = version.run(spec, ingest.run(spec)["staging"])
        dataset = versioning.fetch(versioning.find(made["dataset"], "scientific"))
        rows, names = len(dataset.split("test")), zero_shot.metrics(dataset)
        models = {who: build.load("starter") for who in ("after", "before")}
        watch, found = Watch(), []
        for clip in models.values():
            clip.image_features = watch.around(clip.image_features)  # type: ignore[method-assign]
            clip.text_features = watch.around(clip.text_features)  # type: ignore[method-assign]
        for side in SIDES:
            watch.seconds, began = 0.0, time.perf_counter()
            together.evaluate(models, dataset, get_domain("scientific"), spec, side, names[-1], names)
            found.append({"side": side, "seconds": time.perf_counter() - began, "in_models": watch.seconds})
    print(f"{rows} pairs, two models, {hardware.usable_cores()} threads")
    print("| size | seconds | in the models |\n|---|---|---|")
    for f in found:
        print(f"| {f['side']} px | {f['seconds']:.1f} | {f['in_models'] / f['seconds']:.1%} |")
    share = sum(f["in_models"] for f in found) / sum(f["seconds"] for f in found)
    print(f"{share:.1%} of the time is spent in the models.")
    print(json.dumps({"pairs": rows, "sizes": found, "share_in_models": share}))


if __name__ == "__main__":
    main()
