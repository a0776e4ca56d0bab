"""What `clipft ops chaos` compares with: the same work, one stage after the other, without Airflow, server and strikes.

A program of its own, so that it has a home of its own: `python -m clipft_tasks.cli.undisturbed FOLDER ROUNDS`.
"""

import json
import sys
from pathlib import Path

from ..ops.chaos import made, state
from ..spec import RunSpec
from ..stages import chain
from ..stages.call import StageOutput

LAST = ("version", "promote")  # of the data set, of the training


def main(folder: Path, rounds: int) -> None:
    for number in range(1, rounds + 1):
        for form, last in zip(made.forms(folder, number), LAST, strict=True):
            spec, results = RunSpec.from_flat(form), dict[str, StageOutput]()
            names = chain.stages_of(spec)
            for name in names[: names.index(last) + 1]:
                results[name] = chain.run_stage(name, spec, results.__getitem__)
    print(state.STATE + json.dumps(state.found()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
