"""Captured traffic with labels, beside the newest dataset version: what a re-adaptation trains on.

The old rows are replayed whole, so nothing that the champion knows is left out; `train.sampling` balances old and new by class.
"""

from collections.abc import Iterator
from functools import partial

from ...core.errors import ClipftError
from ...server.client import ServerClient, ServerRefusalError
from ...spec import DataSpec
from .. import versioning
from ..images import BadImageError
from .base import Reader, Row, Source
from .version_rows import rows_again

CAPTURED = "captures/"  # before a capture's id, in the name of its row


class Captures(Reader):
    """A domain's newest version and its labeled captures, fetched from the server."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the captures of a domain.

        Raises:
            ClipftError: there is no version, or no capture has a label. TransientError: the server is away.
        """
        domain = argument
        known = versioning.versions(domain)
        if not known:
            raise ClipftError(
                f"source captures:{domain}",
                "the domain has no dataset version yet",
                "Ingest one first.",
                code="dataset.no_version",
            )
        judged = [c for c in ServerClient().captures(domain) if c.label]
        if not judged:
            raise ClipftError(
                f"source captures:{domain}",
                "no captured image has a label",
                "Label some: `clipft label`, or send feedback.",
                code="source.no_labels",
            )
        newest = known[-1]

        def rows() -> Iterator[Row]:
            dataset = versioning.fetch(newest)
            # An image that was sent twice, or that the version has already, is taken once; the newest judgment counts.
            known_bytes = set(dataset.frame["sha256"])
            known_names = set(dataset.frame["name"])  # what was said beside the pixels was dropped, so bytes may differ
            once = {c.sha256: c for c in judged if c.sha256 not in known_bytes and f"{CAPTURED}{c.id}" not in known_names}
            yield from rows_again(dataset, splits=True)
            for capture in once.values():
                yield Row(
                    where=f"capture {capture.id}",
                    image_bytes=partial(_image, domain, capture.id),
                    key=f"{CAPTURED}{capture.id}",
                    label=capture.label,
                )

        card = newest.card
        return Source(rows, license=card.license, origin=card.origin, consent=card.consent, name=f"captures:{domain}")


def _image(domain: str, name: str) -> bytes:
    try:
        return ServerClient().captured_image(domain, name)
    except ServerRefusalError as error:  # deleted since it was listed
        raise BadImageError(f"the server no longer keeps it ({error.status})") from error
