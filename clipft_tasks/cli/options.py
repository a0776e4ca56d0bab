"""The spec on a command line: one option a field, and a YAML file."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import click
import yaml

from ..core.errors import ClipftError
from ..spec import RunSpec, form
from .values import as_list, as_object

Given: TypeAlias = Any  # what click passes for an option of the spec: text, a number, or None
TYPES = {"integer": int, "number": float, "boolean": bool, "array": str, "object": str, "string": str}


class SpecCommand(click.Command):
    """A command on a spec. The options of its fields are made when it is called: the list of commands has no use for them."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*spec_options(), *super().get_params(ctx)]


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
    return fixed + tuple(_option(name, field) for name, field in form().items())


def _option(name: str, field: Mapping[str, Any]) -> click.Option:  # a JSON schema
    kind = field["type"] if isinstance(field["type"], str) else field["type"][0]
    choices = [c for c in field.get("enum", []) if c is not None]
    shown = "" if field.get("default") in (None, "") else f" [default: {field['default']}]"
    return click.Option(
        [f"--{name}", name.replace(".", "__")],
        type=click.Choice(choices) if choices else TYPES[kind],
        help=f"{field.get('description', '')}{shown}",
    )


def read_spec(file: Path | None, options: Mapping[str, Given]) -> RunSpec:
    """The spec of a YAML file (nested or dotted names) and options by `section__field`; options win.

    Raises: ClipftError for a file that cannot be read, or a field that is wrong.
    """
    flat: dict[str, Given] = {}
    if file:
        try:
            content = yaml.safe_load(file.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ClipftError(f"spec file {file}", str(error).replace("\n", " "), "Give a YAML file.") from None
        for name, value in content.items():
            flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    flat |= {name.replace("__", "."): value for name, value in options.items() if value is not None}
    for name, field in form().items():
        if name in flat and "array" in field["type"]:
            flat[name] = as_list(flat[name], field.get("separator", ""), field["items"]["type"] == "integer")
        elif name in flat and "object" in field["type"]:
            flat[name] = as_object(name, flat[name])
    return RunSpec.from_flat(flat)
