"""The stages as they are declared: a file and an entry each, and what they take of one another is there."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, get_type_hints

import pytest
from fixtures.errors import refuses

from clipft_tasks.contracts import Record, StageResult, VersionedRecord
from clipft_tasks.spec import RunSpec, form
from clipft_tasks.stages import chain
from clipft_tasks.stages.call import call_stage

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "clipft_tasks" / "stages"
LINKED_IN = {"tune": [FOLDER.parent / "tuning" / "search.py"]}  # of stages whose results are made elsewhere
TAKEN = [(c, name, *pair) for c in ("CHAIN", "ROLLBACK") for name, s in getattr(chain, c).items() for pair in s.inputs.items()]


def function(name: str):
    return importlib.import_module(f"clipft_tasks.stages.{name}").run


def test_a_stage_is_a_file_and_an_entry():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "call", "chain", "champion", "lineage"}
    assert files == set(chain.STAGES)


def test_the_declaration_imports_no_stage():
    code = "import sys; from clipft_tasks.stages import chain; print([m for m in sys.modules if m.startswith('clipft_tasks.stages.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert [name.rpartition(".")[2] for name in ast.literal_eval(done.stdout)] == ["lineage", "call", "chain"]


@pytest.mark.parametrize(("declared", "name", "parameter", "source"), TAKEN, ids=lambda part: part)
def test_what_a_stage_takes_is_a_parameter_of_its_and_a_field_of_an_earlier_result(declared, name, parameter, source):
    assert parameter == "settled" or parameter in inspect.signature(function(name)).parameters  # call_stage takes that
    earlier, _, key = source.partition(".")
    order = list(getattr(chain, declared))
    assert order.index(earlier) < order.index(name)
    each = getattr(chain, declared)[earlier].each
    result = get_type_hints(function(earlier))["return"]
    if each:
        assert key == each.collected
    elif key and inspect.isclass(result) and issubclass(result, Record):
        assert key in result.model_fields


def test_each_run_of_a_stage_takes_one_value():
    for name, stage in chain.CHAIN.items():
        if stage.each:
            assert stage.each.parameter in inspect.signature(function(name)).parameters
            spec = RunSpec.from_flat({"resolution.evaluate": [96, 128]})
            assert list(stage.each.values(spec)) == spec.resolution.evaluated == [96, 128]


def test_what_a_stage_depends_on_are_fields_of_the_spec():
    names = set(form()) | {name.partition(".")[0] for name in form()}
    for stage in chain.CHAIN.values():
        assert set(stage.params or ()) <= names
        assert set(stage.pinned) <= set(RunSpec.model_fields)


@pytest.mark.parametrize("name", chain.STAGES)
def test_a_page_that_a_stage_links_to_is_declared(name):
    """Airflow shows a link as a button only when the plugin knows its name beforehand."""
    source = (FOLDER / f"{name}.py").read_text() + "".join(path.read_text() for path in LINKED_IN.get(name, ()))
    found = set(re.findall(r"links[\"']?\s*[:=]\s*\{\s*[\"']([^\"']+)[\"']", source))
    assert found <= set(chain.STAGES[name].links) and bool(found) == bool(chain.STAGES[name].links)


@pytest.mark.parametrize(
    ("given", "skipped"),
    [
        ({"dataset": "general/v1"}, {"ingest", "validate", "version", "tune"}),
        ({"source": "x.csv"}, {"tune"}),
        ({"source": "x.csv", "tune.trials": 3}, set()),
    ],
)
def test_a_run_takes_the_stages_that_its_spec_asks_for(given, skipped):
    assert chain.stages_of(RunSpec.from_flat(given)) == [name for name in chain.CHAIN if name not in skipped]


def test_a_stage_gets_what_was_made_before_it_and_asks_for_nothing_else(monkeypatch):
    """`plan` trains on the version that this run made, not on whatever is newest; without a source it asks nobody."""
    seen = []

    def call(name, spec, inputs, dag_run=""):
        seen.append((name, spec.dataset, dict(inputs)))
        return {"made_by": name}

    monkeypatch.setattr(chain, "call_stage", call)
    done = {
        "version": {"dataset": "general/v7"},
        "plan": {"p": 1},
        "tune": {"t": 1},
        "ingest": {"staging": "s"},
        "validate": {},
    }
    chain.run_stage("plan", RunSpec.from_flat({"source": "x.csv"}), done.__getitem__)
    chain.run_stage("plan", RunSpec.from_flat({"source": "x.csv", "dataset": "general/v2"}), {}.__getitem__)
    chain.run_stage("plan", RunSpec(), {}.__getitem__)
    chain.run_stage("finetune", RunSpec(), {"plan": {"p": 1}}.__getitem__)
    chain.run_stage("finetune", RunSpec.from_flat({"tune.trials": 2}), done.__getitem__)
    assert seen == [
        ("plan", "general/v7", {}),
        ("plan", "general/v2", {}),
        ("plan", "", {}),
        ("finetune", "", {"planned": {"p": 1}}),
        ("finetune", "", {"planned": {"p": 1}, "tuned": {"t": 1}}),
    ]
    spec = RunSpec.from_flat({"resolution.evaluate": [32, 48]})
    assert len(chain.run_stage("evaluate", spec, lambda name: {"run_id": "r", "settled": {}})["evaluations"]) == 2
    with pytest.raises(KeyError, match="validate"):  # rows that nobody checked make no version
        chain.run_stage("version", RunSpec.from_flat({"source": "x.csv"}), {"ingest": {"staging": "s"}}.__getitem__)


class Noted(VersionedRecord):
    """A record that was `words` in format 0."""

    FORMAT: ClassVar[int] = 1
    text: str

    @classmethod
    def upgraded(cls, data, written):
        return {"text": data["words"]} if written == 0 else data


@pytest.fixture
def own_stage(monkeypatch):
    def run(spec: RunSpec, one: Noted, more: Sequence[Noted] = (), number: int = 0, dag_run: str = "") -> StageResult:
        assert isinstance(one, Noted) and all(isinstance(note, Noted) for note in more)
        return StageResult(links={"said": " ".join([one.text, *(note.text for note in more), dag_run])})

    module = ModuleType("clipft_tasks.stages.own")
    module.run = run
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_stage_takes_and_returns_json_and_reads_what_an_earlier_release_wrote(own_stage):
    new, old = Noted(text="new").to_json(), {"words": "old"}
    said = call_stage("own", RunSpec(), {"one": new, "more": [old, new]}, dag_run="dag/run")
    assert said == {"seconds": 0.0, "links": {"said": "new old new dag/run"}}
    assert call_stage("own.run", RunSpec(), {"one": old})["links"] == {"said": "old "}


@pytest.mark.parametrize(
    ("inputs", "code", "named"),
    [
        ({"one": {"text": "x", "format": 2}}, "record.newer_format", "format 2"),
        ({"one": {"text": "x", "format": 1}, "number": "many"}, "stage.invalid_input", "the input of own: number"),
        ({"one": {"format": 1}}, "record.invalid", "text: Field required"),
    ],
)
def test_an_input_of_another_shape_is_refused_with_its_place_and_the_way_out(own_stage, inputs, code, named):
    with refuses(code, named) as refused:
        call_stage("own", RunSpec(), inputs)
    assert refused.value.fix
