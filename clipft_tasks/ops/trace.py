"""From an answer to the images behind it: the version that gave it, what that was trained from, and the rows of those data sets."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from .. import tracking
from ..core.errors import ClipftError
from ..data import versioning
from ..domains import domain_names
from ..server.client import ServerClient, ServerRefusalError

NAMED = re.compile(r"models:/(clipft-[^/@]+)/(\d+)")
SHORT = re.compile(r"([^/@:]+)(?:@(\w+)|/(\d+))?")
SEEN = ("train", "val")  # splits that a training looks at: val chooses epochs and calibrates
COLUMNS = ["name", "dataset", "split", "label", "caption", "group", "width", "height", "sha256", "key"]


@dataclass(frozen=True)
class Ancestor:
    """A version, and what its training used.

    Attributes:
        dataset, revision: of the data; "" where nobody noted it. counts: its rows by split; None where it is not here any more.
        start: what training started from. run_id: MLflow run. dag_run: Airflow run; "" where there was none.
    """

    model: str
    version: str
    dataset: str
    revision: str
    start: str
    run_id: str
    dag_run: str
    link: str
    counts: dict[str, int] | None


def ancestors(asked: str) -> list[Ancestor]:
    """The version behind an answer, then the one that it was trained from, and so on, to the first that started from no version of ours.

    Args:
        asked: `X-Clipft-Answer-Id` of an answer, `models:/clipft-industrial/3`, `industrial/3`, `industrial@champion` or `industrial`.
    Raises: ClipftError where nothing of that name is known; TransientError where server or MLflow are away.
    """
    return list(_chain(_named(asked)))


def images(found: Sequence[Ancestor]) -> pd.DataFrame:
    """The rows that the trainings of these versions looked at, each image and caption once, of the newest data set first.

    Raises: as `versioning.read_manifest`.
    """
    tables = []
    for tag in dict.fromkeys(each.dataset for each in found if each.counts is not None):
        rows = versioning.read_manifest(versioning.find(tag, ""))
        tables.append(rows[rows["split"].isin(SEEN)].assign(dataset=tag))
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(tables).drop_duplicates("key")[COLUMNS].reset_index(drop=True)


def _named(asked: str) -> str:
    """The registry's name of the version that is meant."""
    if asked.startswith("models:/"):
        return asked
    short = SHORT.fullmatch(asked)
    if short and short[1] in domain_names():
        model = tracking.model_name(short[1])
        return f"models:/{model}/{short[3]}" if short[3] else f"models:/{model}@{short[2] or tracking.CHAMPION}"
    try:
        answer = ServerClient().answer(asked)
    except ServerRefusalError as error:
        if error.status != 404:
            raise
        raise ClipftError(
            f"answer {asked!r}",
            "the server remembers none of that name",
            "Give the X-Clipft-Answer-Id of an answer of the last 90 days, or a version: industrial/3, industrial@champion.",
            code="trace.not_found",
        ) from None
    return f"models:/{tracking.model_name(answer.domain)}/{answer.version}"


def _chain(uri: str) -> Iterator[Ancestor]:
    seen: set[str] = set()
    while uri not in seen:
        seen.add(uri)
        with tracking.retryable():
            found = tracking.resolve_version(uri)
        known, start = tracking.lineage(found), found.tags.get("clipft.start", "")
        tag = known.get("dataset", "")
        yield Ancestor(
            model=found.name,
            version=str(found.version),
            dataset=tag,
            revision=known.get("revision", ""),
            start=start,
            run_id=known["run_id"],
            dag_run=known.get("dag_run", ""),
            link=tracking.version_link(found),
            counts=_counts(tag),
        )
        if not NAMED.fullmatch(start):
            return
        uri = start


def _counts(tag: str) -> dict[str, int] | None:
    try:
        return dict(versioning.find(tag, "").card.counts) if tag else None
    except ClipftError:  # that version is not here any more
        return None
