"""Which home and which domain a command works on: found, and said."""

from collections.abc import Mapping

import click

from ..core.errors import ClipftError
from ..core.settings import settings
from ..domains import domain_names
from ..spec import RunSpec


def open_spec(flat: Mapping[str, object]) -> RunSpec:
    """The spec of fields by dotted name, with its domain; says which domain and which home they are.

    A stack that runs in this home is spoken with; else the files of the home serve alone.
    Raises: ClipftError for a field that is wrong, or a domain that is neither given nor plain.
    """
    stack = use_running_stack()
    domain, why = find_domain(flat)
    spec = RunSpec.from_flat({**flat, "domain": domain})
    state = " (its stack runs)" if stack else "" if settings().root.exists() else " (new)"
    settings().folder()  # refused where nobody named a home
    click.echo(f"home {settings().root}{state} · domain {domain}{why}", err=True)
    return spec


def use_running_stack() -> bool:
    """Speak with the stack of this home from here on, if one runs and nobody named another; whether that is so."""
    from ..ops import installation

    if settings().mlflow_uri is not None or not installation.stack_answers():
        return False
    installation.use_stack_settings()
    return True


def find_domain(flat: Mapping[str, object]) -> tuple[str, str]:
    """The domain that is meant, and why where nobody said it. Raises ClipftError where it is not plain."""
    if given := flat.get("domain"):
        return str(given), ""
    if dataset := flat.get("dataset"):
        return str(dataset).partition("/")[0], f" (of {dataset})"
    there = [name for name in domain_names() if (settings().working_copy / name / "datacard.json").exists()]
    if len(there) == 1:
        return there[0], " (the only one with data)"
    known = f"{' and '.join(there)} have data" if there else "none has data yet"
    raise ClipftError(
        "the domain", f"none is given, and {known}", f"Say --domain: {', '.join(domain_names())}.", code="domain.not_given"
    )
