"""version: checked rows become an immutable dataset version; unchanged rows are the version that there already is."""

import json
from pathlib import Path
from typing import Any

from ..core.console import say
from ..data import versioning
from ..spec import RunSpec


def run(spec: RunSpec, staging: str) -> dict[str, Any]:
    """Add, push, commit and tag.

    Returns: dataset (`<domain>/v<N>`), revision, new (bool), rows, counts, pushed_bytes.
    Raises: Transient when the remote or the repository's origin is away.
    """
    folder = Path(staging)
    card = json.loads((folder / "datacard.json").read_text())
    before = versioning.remote_bytes()
    version, new = versioning.commit(spec.domain, folder, card)
    pushed = versioning.remote_bytes() - before
    if new:
        say(f"Version {version.tag} at {version.revision[:10]}, {pushed:,} bytes pushed.")
    else:
        say(f"The same rows are already {version.tag}; nothing to push.")
    return {
        "dataset": version.tag,
        "domain": spec.domain,
        "revision": version.revision,
        "new": new,
        "rows": version.card["rows"],
        "counts": version.card["counts"],
        "pushed_bytes": pushed,
    }
