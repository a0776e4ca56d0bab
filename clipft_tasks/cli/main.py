"""`clipft …`: every stage by hand, with the same spec, the same functions and the same results as in Airflow."""

import inspect
import logging
import os
import sys
import warnings
from typing import Any

import click

from .. import __version__
from ..core.errors import ClipftError, TransientError
from ..core.machine import refusal
from . import domains, drift, erase, indexes, keys, objectives, ops, review, stages, trace, worker


class _Group(click.Group):
    """A group that lists its commands under headings, and prints the sentence of an error that a person is meant to read."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(c.name or "", _sentence(c)) for c in commands])

    def invoke(self, ctx: click.Context) -> Any:  # whatever a command returns
        try:
            return super().invoke(ctx)
        except ClipftError as error:
            raise click.ClickException(error.line) from None
        except TransientError as error:
            raise click.ClickException(f"{error} Try again when it is back.") from None
        except OSError as error:
            if (refused := refusal(error)) is None:
                raise
            raise click.ClickException(refused.line) from None


def _sentence(command: click.Command) -> str:
    """The first sentence of a command's help."""
    return inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="clipft")
def main() -> None:
    """Fine-tune, prove, ship and watch CLIP models.

    The first run: clipft run --domain medical --source IMAGES
    """
    # Libraries that log every query or guess at a terminal stay out of the way of the stages' own lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "" if sys.stderr.isatty() else "1")
    os.environ.setdefault("ALEMBIC_LOG_LEVEL", "WARNING")
    for name in ("mlflow", "alembic", "great_expectations", "open_clip", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


GROUPS: dict[str, tuple[click.Command, ...]] = {
    "From images to a served model": (stages.run,),
    "The same, stage by stage": stages.CHAIN,
    "What there is to choose from": (stages.show_spec, stages.stages, domains.domains, domains.domain, objectives.objective),
    "Versions of data": (stages.diff, review.review, stages.resplit, erase.erase),
    "Models that serve": (
        stages.compare,
        stages.rollback,
        stages.reconcile,
        trace.trace,
        drift.drift,
        drift.label,
        drift.breaker,
    ),
    "Search": (indexes.index,),
    "The installation": (*ops.COMMANDS, worker.worker, keys.key),
}
for _command in (command for commands in GROUPS.values() for command in commands):
    main.add_command(_command)
