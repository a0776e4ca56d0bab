"""What `clipft ops chaos` compares with: the same work, one stage after the other, without Airflow, server and strikes.

A program of its own, so that it has a home of its own: `python -m clipft_tasks.cli.undisturbed FOLDER ROUNDS`.
"""

import json
import sys
from pathlib import Path

from .. import tracking
from ..ops.chaos import made, state
from ..spec import RunSpec
from ..stages import chain
from ..stages.call import StageOutput

LAST = {"clipft_dataset": "version", "clipft_finetune": "promote", "clipft_rollback": "promote"}  # what follows needs a server


def main(folder: Path, rounds: int) -> None:
    for number in range(1, rounds + 1):
        for dag, form in made.forms(folder, number).items():
            spec, results = RunSpec.from_flat(form), dict[str, StageOutput]()
            stages = chain.ROLLBACK if dag == "clipft_rollback" else chain.CHAIN
            names = [*stages] if stages is chain.ROLLBACK else chain.stages_of(spec)
            for name in names[: names.index(LAST[dag]) + 1]:
                results[name] = chain.run_stage(name, spec, results.__getitem__, stages)
            if promoted := results.get("promote"):
                tracking.confirm(spec.domain, promoted["version"])  # what `verify` ends with
    print(state.STATE + json.dumps(state.found()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
