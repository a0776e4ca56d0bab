"""What stages run by hand returned, as files that the next one reads."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from ..contracts.evaluation import EvaluationResult
from ..contracts.stages import EvaluateResult
from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import settings
from ..spec import RunSpec
from ..stages import chain
from ..stages.call import StageOutput

MEASURED = "evaluate"  # the stage whose numbers DVC shows


class StageResults:
    """The results of the stages of one spec: `<stage>.json` in a folder, and what `dvc metrics` and `dvc plots` show."""

    def __init__(self, spec: RunSpec, folder: Path | None) -> None:
        self._taken = chain.stages_of(spec)
        self.folder = folder or settings().folder("runs", spec.identity("run", *RunSpec.model_fields))
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, stage: str) -> StageOutput:
        """The result of a stage. Raises ClipftError when there is none."""
        try:
            return dict(json.loads(self._file(stage).read_text()))
        except FileNotFoundError:
            until = self._taken[: self._taken.index(stage) + 1] if stage in self._taken else [stage]
            missing = [f"`clipft {name}`" for name in until if not self._file(name).exists()]
            raise ClipftError(
                f"the result of {stage}",
                f"there is none in {self.folder}",
                f"Run with the same options first, in this order: {', '.join(missing)}; or all of it: `clipft run`.",
                code="cli.no_result",
            ) from None

    def _file(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"

    def keep(self, stage: str, result: StageOutput) -> None:
        atomic_write(self._file(stage), json.dumps(result, indent=1, sort_keys=True) + "\n")
        if stage == MEASURED:
            _keep_metrics(self.folder, EvaluateResult.model_validate(result).evaluations)


def _keep_metrics(folder: Path, evaluations: Sequence[EvaluationResult]) -> None:
    roles = evaluations[0].roles
    metrics = {role: {str(r.size): r.models[role].intervals[r.metric].value for r in evaluations} for role in roles}
    atomic_write(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(["model", "resolution", *evaluations[0].candidate.intervals])
    for r in evaluations:
        rows.writerows([role, r.size, *(round(i.value, 6) for i in r.models[role].intervals.values())] for role in roles)
    atomic_write(folder / "resolutions.csv", table.getvalue())
