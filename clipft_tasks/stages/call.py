"""A stage as a function from JSON to JSON: how Airflow, the command line and DVC call it alike."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..contracts import VersionedRecord
from ..core.console import say
from ..core.errors import ClipftError
from ..spec import RunSpec
from . import lineage

StageOutput: TypeAlias = dict[str, Any]  # the JSON of a stage's record, as XCom and files hold it: it has no narrower type


def call_stage(name: str, spec: RunSpec, inputs: Mapping[str, object], dag_run: str = "", last_try: bool = True) -> StageOutput:
    """Run a stage on results of other stages as they come out of XCom or a file.

    Args:
        name: `module` or `module.function` of `clipft_tasks.stages`; without a function it is `run`.
        inputs: JSON by parameter name; each becomes what the stage's annotation says. `planned`, the plan's result, and
            `settled`, that part of it, fill what the spec leaves open.
        dag_run: the Airflow run that asks, for stages that note it.
        last_try: whether nobody tries again when it raises TransientError, for stages that then undo what they began.
    Returns: JSON.
    Raises: what the stage raises; ClipftError where an input is not what the stage takes.
    """
    module, _, function = name.partition(".")
    stage = getattr(importlib.import_module(f"{__package__}.{module}"), function or "run")
    hints = get_type_hints(stage)
    known = inspect.signature(stage).parameters
    read = {}
    about = {"last_try": last_try} | ({"dag_run": dag_run} if dag_run else {})
    noted = {key: value for key, value in about.items() if key in known}
    inputs = dict(inputs)
    spec = spec.settled(_settled(inputs.pop("settled", None) or inputs.get("planned")))
    for key, value in (noted | inputs).items():
        try:
            hint = hints.get(key)
            read[key] = TypeAdapter(hint).validate_python(_upgraded(hint, value)) if hint and key in known else value
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in (key, *first["loc"]))
            raise ClipftError(
                f"the input of {name}",
                f"{place}: {first['msg']}",
                "Another release made it: run the stages before it again.",
                code="stage.invalid_input",
            ) from None
    with lineage.told(name, spec, read, dag_run) as telling:
        result = stage(spec, **read)
        output: StageOutput = result.model_dump(mode="json") if isinstance(result, BaseModel) else dict(result)
        if telling:
            telling.returned(output)
    for page, address in (output.get("links") or {}).items():
        if address:
            say(f"{page}: {address}")  # a line of its own, so that a log makes a link of it
    return output


def _settled(found: object) -> Mapping[str, object]:
    """What the plan decided where the spec leaves it open; by itself, or in the plan's result."""
    values = found.get("settled", found) if isinstance(found, Mapping) else {}
    return values if isinstance(values, Mapping) else {}


def _upgraded(hint: object, value: object) -> object:
    """A record, or a list of records, as another release wrote it."""
    if isinstance(value, Mapping) and inspect.isclass(hint) and issubclass(hint, VersionedRecord):
        return hint.from_json(value)
    if isinstance(value, list | tuple) and get_origin(hint) in (list, Sequence):
        return [_upgraded(get_args(hint)[0], item) for item in value]
    return value
