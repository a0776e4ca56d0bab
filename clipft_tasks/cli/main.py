"""`clipft …`: every stage by hand, with the same spec, the same functions and the same results as in Airflow."""

import logging
import os
import sys
import warnings
from typing import Any

import click

from .. import __version__
from ..core.errors import ClipftError, Transient
from . import domains, drift, objectives, ops, stages, worker


class _Group(click.Group):
    """A group that prints the sentence of an error that a person is meant to read, and no traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # whatever a command returns
        try:
            return super().invoke(ctx)
        except ClipftError as error:
            raise click.ClickException(error.line) from None
        except Transient as error:
            raise click.ClickException(f"{error} Try again when it is back.") from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="clipft")
def main() -> None:
    """Fine-tune, prove, ship and watch CLIP models."""
    # Libraries that log every query or guess at a terminal stay out of the way of the stages' own lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "" if sys.stderr.isatty() else "1")
    os.environ.setdefault("ALEMBIC_LOG_LEVEL", "WARNING")
    for name in ("mlflow", "alembic", "great_expectations", "open_clip", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


for _command in (
    *stages.COMMANDS,
    domains.domains,
    domains.domain,
    drift.drift,
    drift.label,
    drift.breaker,
    objectives.objective,
    worker.worker,
    *ops.COMMANDS,
):
    main.add_command(_command)
