"""OpenLineage events of each stage: that it began, and how it ended; what it took and what it made. Off unless `CLIPFT_LINEAGE` says where to.

    CLIPFT_LINEAGE=/var/log/clipft/lineage.jsonl                   an event a line
    CLIPFT_LINEAGE=https://marquez.example.org/api/v1/lineage      each is posted, with CLIPFT_LINEAGE_KEY as bearer token

What goes wrong here never fails a stage.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel

from .. import __version__
from ..core.errors import BusyError, ClipftError
from ..core.settings import settings
from ..ops.notify import without_secrets
from ..spec import RunSpec

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent
    from openlineage.client.facet_v2 import DatasetFacet, RunFacet

log = logging.getLogger("clipft")
NAMESPACE = "clipft"
SECONDS = 4.0  # that a receiver may take
# What a stage makes, by fields of its result; whatever else of the kind stands in its inputs or its result it took.
MADE = {
    "ingest": "staging",
    "version": "dataset",
    "review.apply": "dataset",
    "finetune": "run_id",
    "blend": "run_id",
    "register": "version",
}
DATASET, MODEL = re.compile(r"([^/]+)/v(\d+)"), re.compile(r"models:/([^/@]+)/(\d+)")
ROWS = "rows"


@dataclass(frozen=True)
class Thing:
    """What a stage takes or makes: a name in the namespace, and which version of it. rows: how many it has, where that is known."""

    name: str
    version: str = ""
    rows: int | None = field(default=None, compare=False)


class Telling:
    """The events of one stage that runs.

    Args:
        stage: `module` or `module.function`, as `call_stage` takes it.
        dag_run: the Airflow run that it belongs to, `<dag>/<run>`; "" for none.
    """

    def __init__(self, stage: str, spec: RunSpec, inputs: Mapping[str, object], dag_run: str) -> None:
        from openlineage.client.uuid import generate_new_uuid

        self._stage, self._domain, self._dag_run = stage, spec.domain, dag_run
        self._run_id = str(generate_new_uuid())
        self._taken = things(inputs, spec.domain)
        if spec.source and stage == "ingest":
            self._taken.append(Thing(f"source/{without_secrets(spec.source)}"))
        self._made: list[Thing] = []

    def returned(self, result: Mapping[str, object]) -> None:
        """Take what the stage made, and what it says it worked on, from its result."""
        named, made = things(result, self._domain), MADE.get(self._stage, "")
        own = things({made: result[made], ROWS: result.get(ROWS)}, self._domain) if made in result else []
        self._made = [thing for thing in own if thing not in self._taken]
        self._taken += [thing for thing in named if thing not in own]

    def send(self, state: str, error: str = "") -> None:
        """Send an event. Raises whatever goes wrong."""
        from openlineage.client.serde import Serde

        _deliver(Serde.to_json(self._event(state, error)))

    def _event(self, state: str, error: str) -> "RunEvent":
        from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
        from openlineage.client.facet_v2 import error_message_run, job_type_job, parent_run

        facets: dict[str, RunFacet] = {}
        if self._dag_run:
            dag, _, _ = self._dag_run.partition("/")
            facets["parent"] = parent_run.ParentRunFacet(
                run=parent_run.Run(runId=str(uuid5(NAMESPACE_URL, f"clipft:{self._dag_run}"))),
                job=parent_run.Job(namespace=NAMESPACE, name=dag),
            )
        if error:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message=error, programmingLanguage="PYTHON")
        kind = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="CLIPFT", jobType="STAGE")
        return RunEvent(
            eventTime=datetime.now(UTC).isoformat(),
            producer=f"https://pypi.org/project/clipft/{__version__}",
            eventType=RunState[state],
            run=Run(runId=self._run_id, facets=facets),
            job=Job(namespace=NAMESPACE, name=f"{self._domain}.{self._stage}", facets={"jobType": kind}),
            inputs=_inputs(self._taken),
            outputs=_outputs(self._made),
        )


@contextmanager
def told(stage: str, spec: RunSpec, inputs: Mapping[str, object], dag_run: str) -> "Iterator[Telling | None]":
    """Tell of a stage that runs inside; hands out what its result is to be given to, None where nobody is told.

    A stage that waits for another run is aborted, not failed.
    """
    telling = _begin(stage, spec, inputs, dag_run) if settings().lineage else None
    try:
        yield telling
    except BaseException as error:
        said = error.line if isinstance(error, ClipftError) else f"{type(error).__name__}: {error}"
        _safely(telling, "ABORT" if isinstance(error, BusyError) else "FAIL", without_secrets(said))
        raise
    _safely(telling, "COMPLETE")


def things(values: Mapping[str, object], domain: str) -> list[Thing]:
    """The staged rows, dataset versions, MLflow runs and model versions that inputs or a result name, each once."""
    found: list[Thing] = []
    for key, value in values.items():
        if isinstance(value, BaseModel | Mapping):
            found += things(dict(value), domain)
        elif isinstance(value, str) and value:
            found += _thing(key, value, domain, values)
    return list(dict.fromkeys(found))


def _thing(key: str, value: str, domain: str, beside: Mapping[str, object]) -> list[Thing]:
    if key == "staging":
        return [Thing(f"staging/{Path(value).name}")]
    if key == "run_id":
        return [Thing(f"runs/{value}")]
    if key == "version" and value.isdecimal():
        return [Thing(f"models/clipft-{domain}", value)]
    if key == "dataset" and (match := DATASET.fullmatch(value)):
        rows = beside.get(ROWS)
        return [Thing(f"datasets/{match[1]}", match[2], rows if isinstance(rows, int) else None)]
    if key == "start" and (match := MODEL.fullmatch(value)):
        return [Thing(f"models/{match[1]}", match[2])]
    return []


def _inputs(found: Sequence[Thing]) -> "list[InputDataset]":
    from openlineage.client.event_v2 import InputDataset

    return [InputDataset(NAMESPACE, thing.name, facets=_facets(thing)) for thing in dict.fromkeys(found)]


def _outputs(found: Sequence[Thing]) -> "list[OutputDataset]":
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

    return [
        OutputDataset(
            NAMESPACE,
            thing.name,
            facets=_facets(thing),
            outputFacets={}
            if thing.rows is None
            else {"outputStatistics": statistics.OutputStatisticsOutputDatasetFacet(rowCount=thing.rows)},
        )
        for thing in found
    ]


def _facets(thing: Thing) -> "dict[str, DatasetFacet]":
    from openlineage.client.facet_v2 import dataset_version_dataset

    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(thing.version)} if thing.version else {}


def _begin(stage: str, spec: RunSpec, inputs: Mapping[str, object], dag_run: str) -> Telling | None:
    try:
        telling = Telling(stage, spec, inputs, dag_run)
    except ImportError:
        log.warning("CLIPFT_LINEAGE is set, but openlineage-python is not installed (the extra `lineage`): nobody is told.")
        return None
    _safely(telling, "START")
    return telling


def _safely(telling: Telling | None, state: str, error: str = "") -> None:
    try:
        if telling:
            telling.send(state, error)
    except Exception as problem:  # whatever it is, the stage matters more
        log.warning("A lineage event was not delivered: %s", type(problem).__name__)


def _deliver(event: str) -> None:
    where = settings().lineage
    if not where.startswith(("http://", "https://")):
        path = Path(where).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{event}\n")  # in one write, so that lines of several processes stay whole
        return
    import httpx

    key = settings().lineage_key
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key.get_secret_value()}"} if key else {})
    httpx.post(where, content=event, headers=headers, timeout=SECONDS).raise_for_status()
