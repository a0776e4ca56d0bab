"""What a suggestion rests on: the server's window and captures, and the champion with its reference."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from .. import tracking
from ..contracts.drift import Capture, DriftSnapshot, WindowRows
from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..data import versioning
from ..data.images import BadImageError, open_image
from ..model.package import WEIGHTS, read_preprocessing, weights_digest
from ..server.client import ServerClient, ServerRefusalError
from .model_search import MAX_IMAGES
from .reference import Reference
from .report import Example

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SHOWN = 8  # images in the report
CONFIDENT = 0.9  # share of an answer, from which on a label that says otherwise is looked at


@dataclass(frozen=True)
class CapturedImage:
    """A capture with its image: `data` as it was sent, `image` as it is read."""

    capture: Capture
    data: bytes
    image: Image.Image


@dataclass(frozen=True)
class Evidence:
    """Attributes:
    champion: the version that is live.
    labels: labeled captures by class.
    images: the captures that are looked at, labeled ones and the newest first.
    """

    snapshot: DriftSnapshot
    window: WindowRows
    champion: "ModelVersion"
    reference: Reference
    labels: Counter[str]
    images: list[CapturedImage]
    gray_bits: int

    @property
    def suspects(self) -> int:
        """Captures whose label contradicts a confident answer: the model is wrong there, or the label."""
        captures = [found.capture for found in self.images if found.capture.label and found.capture.predicted]
        return sum(c.label != c.predicted and c.confidence >= CONFIDENT for c in captures)

    @property
    def newest(self) -> list[int]:
        """Numbers of the images that look newest, which a report shows."""
        return sorted(range(len(self.images)), key=lambda i: -self.images[i].capture.novelty)[:SHOWN]

    def examples(self, nearest: Sequence[str], looked: Mapping[int, Image.Image]) -> list[Example]:
        """The newest images, each with the image of the champion's data set that is most like it, and with where it looked.

        Args:
            nearest: of each of `images`, by sha256; "" where that is not known.
            looked: by number of an image.
        """
        old = _images_of_dataset(self.champion, {nearest[i] for i in self.newest} - {""})
        shown = [(i, self.images[i]) for i in self.newest]
        return [Example(found.capture, found.data, old.get(nearest[i], b""), looked.get(i)) for i, found in shown]


def gather(domain: str) -> Evidence:
    """Ask the server and MLflow.

    Raises: TransientError when one of them is away; ClipftError when nothing of the domain is live, its version is no longer
        registered, or its reference belongs to other weights.
    """
    server = ServerClient()
    snapshot, window, captures = server.drift(domain), server.window(domain), server.captures(domain)
    champion = tracking.resolve_version(f"models:/{tracking.model_name(domain)}/{snapshot.version}")
    package = tracking.fetch_package(champion)
    reference = Reference.load(package, weights_digest(package / WEIGHTS))
    labels, gray_bits = Counter(c.label for c in captures if c.label), read_preprocessing(package).gray_bits
    return Evidence(snapshot, window, champion, reference, labels, _images(server, captures, gray_bits), gray_bits)


def _images(server: ServerClient, captures: Sequence[Capture], gray_bits: int) -> list[CapturedImage]:
    found = []
    for capture in sorted(captures, key=lambda c: (not c.label, -c.time))[:MAX_IMAGES]:
        try:
            data = server.captured_image(capture.domain, capture.id)
            found.append(CapturedImage(capture, data, open_image(data, gray_bits=gray_bits).rgb))
        except (BadImageError, ServerRefusalError):  # damaged, or deleted since it was listed
            continue
    return found


def _images_of_dataset(champion: "ModelVersion", wanted: set[str]) -> dict[str, bytes]:
    """Images of the champion's data set by sha256; none where the data set cannot be had, which a report can do without."""
    tag = champion.tags.get("clipft.dataset", "")
    if not wanted or not tag:
        return {}
    try:
        data = versioning.fetch(versioning.find(tag, tag.partition("/")[0]))
        rows = data.frame[data.frame["sha256"].isin(wanted)].drop_duplicates("sha256")
        return {str(row.sha256): data.image_bytes(row) for row in rows.itertuples()}
    except (ClipftError, TransientError, OSError) as error:
        say(f"The report shows no images of the data set: {error}")
        return {}
