"""version: checked rows become an immutable dataset version; unchanged rows are the version that there already is."""

from ..contracts.stages import VersionResult
from ..core.console import say
from ..data import ingest_pipeline, repository, staged, versioning
from ..domains import get_domain
from ..spec import RunSpec


def run(spec: RunSpec, staging: str) -> VersionResult:
    """Add, push, commit and tag. Where another run made a version since the rows were staged, they are split again on that one.

    Raises: TransientError when the remote or the repository's origin is away.
    """
    before, folder = repository.remote_bytes(), staged.fetch(staging)
    while True:
        try:
            version, new = versioning.commit(spec.domain, folder, ingest_pipeline.read_card(folder))
            break
        except versioning.ParentMovedError as moved:
            say(f"Splitting the rows again ({moved}).")
            folder = ingest_pipeline.rebase(spec.data, get_domain(spec.domain), folder)
            card = ingest_pipeline.read_card(folder)
            say(f"{card.rows} rows ({', '.join(f'{s} {n}' for s, n in card.counts.items())}), rejected {card.rejected}.")
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
