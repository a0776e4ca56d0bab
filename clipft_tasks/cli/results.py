"""What stages run by hand returned, as files that the next one reads."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import settings
from ..spec import RunSpec
from ..spec.metric_catalog import WHO
from ..stages.call import StageOutput

MEASURED = "evaluate"  # the stage whose numbers DVC shows


class StageResults:
    """The results of the stages of one spec: `<stage>.json` in a folder, and what `dvc metrics` and `dvc plots` show."""

    def __init__(self, spec: RunSpec, folder: Path | None) -> None:
        self.folder = folder or settings().folder("runs", spec.identity("run", *RunSpec.model_fields))
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, stage: str) -> StageOutput:
        """The result of a stage. Raises ClipftError when there is none."""
        try:
            return dict(json.loads((self.folder / f"{stage}.json").read_text()))
        except FileNotFoundError:
            raise ClipftError(
                f"the result of {stage}",
                f"there is none in {self.folder}",
                f"Run `clipft {stage}` with the same options first.",
            ) from None

    def keep(self, stage: str, result: StageOutput) -> None:
        atomic_write(self.folder / f"{stage}.json", json.dumps(result, indent=1, sort_keys=True) + "\n")
        if stage == MEASURED:
            _keep_metrics(self.folder, result["evaluations"])


def _keep_metrics(folder: Path, evaluations: Sequence[Mapping[str, Any]]) -> None:  # the evaluate stage's JSON
    metrics = {w: {str(r["resolution"]): r[w][r["metric"]]["value"] for r in evaluations if w in r} for w in WHO}
    atomic_write(folder / "metrics.json", json.dumps({w: f for w, f in metrics.items() if f}, indent=1) + "\n")
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(["model", "resolution", *evaluations[0]["after"]])
    for r in evaluations:
        for w in WHO:
            if w in r:
                rows.writerow([w, r["resolution"], *(round(m["value"], 6) for m in r[w].values())])
    atomic_write(folder / "resolutions.csv", table.getvalue())
