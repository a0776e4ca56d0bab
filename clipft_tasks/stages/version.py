"""version: checked rows become an immutable dataset version; unchanged rows are the version that there already is."""

from pathlib import Path

from ..contracts.stages import VersionResult
from ..core.console import say
from ..data import repository, versioning
from ..data.ingest_pipeline import read_card
from ..spec import RunSpec


def run(spec: RunSpec, staging: str) -> VersionResult:
    """Add, push, commit and tag.

    Raises: Transient when the remote or the repository's origin is away.
    """
    before = repository.remote_bytes()
    version, new = versioning.commit(spec.domain, Path(staging), read_card(Path(staging)))
    pushed = repository.remote_bytes() - before
    if new:
        say(f"Version {version.tag} at {version.revision[:10]}, {pushed:,} bytes pushed.")
    else:
        say(f"The same rows are already {version.tag}; nothing to push.")
    return VersionResult(
        dataset=version.tag,
        domain=spec.domain,
        revision=version.revision,
        new=new,
        rows=version.card.rows,
        counts=version.card.counts,
        pushed_bytes=pushed,
    )
