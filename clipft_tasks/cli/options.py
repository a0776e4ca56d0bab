"""The spec on a command line: one option a field, and a YAML file."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import click
import yaml

from ..core.errors import ClipftError
from ..spec import SECTIONS, fields, form
from ..spec.form import JsonSchema
from .values import as_list, as_object, read_yaml

Given: TypeAlias = Any  # what click passes for an option of the spec: text, a number, or None
TYPES = {"integer": int, "number": float, "boolean": bool, "array": str, "object": str, "string": str}


class SpecCommand(click.Command):
    """A command on a spec. The options of its fields are made when it is called: the list of commands has no use for them."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*spec_options(), *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then the fields under the headings of the form."""
        section_of = {f"--{name}": field["section"] for name, field in form().items()}
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                rows.setdefault(section_of.get(parameter.opts[0], "Options"), []).append(record)
        for heading in ("Options", *SECTIONS.values()):
            with formatter.section(heading):
                formatter.write_dl(rows.get(heading, []))


@cache
def spec_options() -> tuple[click.Option, ...]:
    """`--results`, `--spec`, and one option a field of RunSpec, made from its JSON schema."""
    fixed = (
        click.Option(
            ["--results"],
            type=click.Path(file_okay=False, path_type=Path),
            help="folder of the stages' results [default: one a spec, under home]",
        ),
        click.Option(["--spec", "file"], type=click.Path(path_type=Path), help="YAML with the same fields; options win"),
    )
    renamed = tuple(click.Option([f"--{old}", fields.identifier(old)], hidden=True) for old in fields.RENAMED)
    return fixed + tuple(_option(name, field) for name, field in form().items()) + renamed


def _option(name: str, field: JsonSchema) -> click.Option:
    kind = field["type"] if isinstance(field["type"], str) else field["type"][0]
    choices = [c for c in field.get("enum", []) if c is not None]
    shown = "" if field.get("default") in (None, "") else f" [default: {field['default']}]"
    return click.Option(
        [f"--{name}", fields.identifier(name)],
        type=click.Choice(choices) if choices else TYPES[kind],
        help=f"{field.get('description', '')}{shown}",
    )


def read_fields(file: Path | None, options: Mapping[str, Given]) -> dict[str, object]:
    """The fields, by dotted name, of a YAML file (nested or dotted names) and of options by keyword; options win.

    Raises: ClipftError for a file that cannot be read, or a value that is none of its kind.
    """
    flat: dict[str, object] = {}
    if file:
        try:
            content = read_yaml(file.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ClipftError(
                f"spec file {file}", str(error).replace("\n", " "), "Give a YAML file.", code="spec.unreadable_file"
            ) from None
        if not isinstance(content, dict):
            raise ClipftError(
                f"spec file {file}",
                "it holds no fields by name",
                "`clipft spec` prints one that does.",
                code="spec.unreadable_file",
            )
        flat = fields.current(fields.flatten(content, SECTIONS))
    flat |= fields.current({fields.of_identifier(name): value for name, value in options.items() if value is not None})
    for name, field in form().items():
        if name in flat and "array" in field["type"]:
            flat[name] = as_list(flat[name], field.get("separator", ""), field["items"]["type"] == "integer")
        elif name in flat and "object" in field["type"]:
            flat[name] = as_object(name, flat[name])
    return flat
