"""RunSpec: what a form, a command line or a file says becomes one spec, or an error that names the field."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from fixtures.errors import refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from clipft_tasks import domains
from clipft_tasks.cli.main import main
from clipft_tasks.cli.options import read_fields
from clipft_tasks.cli.values import write_yaml
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.spec import SECTIONS, RunSpec, fields, form

PROJECT = Path(__file__).resolve().parents[2]
DOMAINS = ["industrial", "medical", "scientific", "general"]


def read_spec(file: Path | None, options: dict[str, object]) -> RunSpec:
    return RunSpec.from_flat(read_fields(file, options))


def leaves() -> list[str]:
    """Every field of RunSpec by dotted name, read off the models rather than off the form."""
    out: list[str] = []
    for name, info in RunSpec.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            out += [f"{name}.{leaf}" for leaf in kind.model_fields]
        else:
            out.append(name)
    return out


def test_a_field_that_there_is_not_is_said_with_the_one_that_was_meant():
    with refuses("spec.invalid", "train.epochz: there is no such field; did you mean train.epochs?"):
        RunSpec.from_flat({"train.epochz": 3})
    with refuses("spec.invalid", "verison: there is no such field."):
        RunSpec.from_flat({"verison": 3})


# from_flat ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["train.epoch", "trian.epochs", "epochs", "train.epochs.more", "domain.name", "source.path", "."]
)
@pytest.mark.parametrize("domain", [{}, {"domain": "general", "source": "a.csv"}])
def test_an_unknown_field_is_refused_by_its_name(name, domain):
    with refuses("spec.invalid", name.strip(".").split(".")[0]):
        RunSpec.from_flat({**domain, name: 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.epochs", 0),
        ("train.epochs", "many"),
        ("train.epochs", 2.5),
        ("train.learning_rate", float("nan")),
        ("memory.memory_gb", -1),
        ("memory.device", "tpu"),
        ("resolution.train", 101),
        ("resolution.evaluate", [101]),
        ("gate.metric", "beauty"),
        ("gate.rules", []),
        ("gate.rules", ["gain(beauty) >= 0"]),
        ("dataset", "industrial-3"),
        ("domain", "culinary"),
    ],
)
def test_a_wrong_value_is_refused_by_the_fields_name(name, value):
    with refuses("spec.invalid", name):
        RunSpec.from_flat({name: value})


def test_every_wrong_field_is_named_at_once():
    with refuses("spec.invalid", "train.epochs", "train.batch", "memory.device"):
        RunSpec.from_flat({"train.epochs": 0, "train.batch": 1, "memory.device": "tpu"})


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with refuses("spec.invalid", "data.val_share"):
        RunSpec.from_flat({"data.val_share": 0.4, "data.test_share": 0.4})


@pytest.mark.parametrize("empty", [None, ""])
@pytest.mark.parametrize("domain", DOMAINS)
def test_null_and_the_empty_string_mean_not_given(domain, empty):
    nothing = {name: empty for name in leaves() if name != "domain"}
    assert RunSpec.from_flat({"domain": domain, **nothing}) == RunSpec.from_flat({"domain": domain})


def test_zero_and_false_are_values():
    spec = RunSpec.from_flat({"train.sampling": "shuffled", "train.weight_decay": 0})
    assert spec.train.sampling == "shuffled" and spec.train.weight_decay == 0


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_domain_fills_what_was_not_given(domain):
    flat = RunSpec.from_flat({"domain": domain}).flat()
    for name, value in domains.get_domain(domain).defaults.items():
        assert flat[name] == value


def test_what_was_given_wins_over_the_domain():
    assert RunSpec.from_flat({"domain": "medical"}).objective.positives == "label"
    spec = RunSpec.from_flat({"domain": "medical", "objective.positives": "pair"})
    assert spec.objective.positives == "pair" and spec.objective.name == "multi_positive"


def test_text_from_a_command_line_is_read_as_its_type():
    spec = RunSpec.from_flat({"train.epochs": "3", "train.learning_rate": "1e-3", "train.sampling": "spread"})
    assert (spec.train.epochs, spec.train.learning_rate, spec.train.sampling) == (3, 1e-3, "spread")


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_spec_survives_its_flat_form_and_json(domain):
    spec = RunSpec.from_flat({"domain": domain, "train.epochs": 5, "memory.micro_batch": 4})
    assert RunSpec.from_flat(json.loads(json.dumps(spec.flat()))) == spec


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        RunSpec().train.epochs = 3


# form -----------------------------------------------------------------------------------------------------------------


def test_the_form_shows_every_field_of_the_spec():
    assert sorted(form()) == sorted(leaves())
    assert {field["section"] for field in form().values()} == set(SECTIONS.values())


def test_every_field_of_the_form_can_be_drawn():
    for name, field in form().items():
        assert "anyOf" not in field and "$ref" not in field, name
        assert field["type"] and field["title"] and field["description"] and "default" in field, name


def test_fields_that_some_domain_decides_may_stay_empty():
    shown = form()
    decided = {name for d in DOMAINS for name in domains.get_domain(d).defaults}
    assert decided
    for name in decided:
        assert shown[name]["default"] is None and "null" in shown[name]["type"], name
        assert None in shown[name].get("enum", [None]), name
    for name in set(shown) - decided - {"domain"}:  # elsewhere empty means "planned", and the description says so
        assert shown[name]["default"] is not None or "empty:" in shown[name]["description"], name


def test_one_option_is_a_field_by_its_own_dotted_name():
    spec = RunSpec.from_flat({"domain": "industrial", "objective.options.distillation.features": 3})
    assert spec.objective.options == {"distillation.features": 3} and spec.objective.auxiliary == ["distillation=0.02"]
    changed = spec.changed({"objective.options.text_weight": 0.4, "train.epochs": 3})
    assert changed.objective.options == {"distillation.features": 3, "text_weight": 0.4} and changed.train.epochs == 3
    for wrong in ({"objective.options": "x"}, {"objective.options_x": 1}):
        with refuses("spec.invalid", next(iter(wrong))):
            RunSpec.from_flat(wrong | {"objective.options.text_weight": 0.4})


# an earlier release ---------------------------------------------------------------------------------------------------


def test_a_field_by_the_name_of_before_is_read_and_the_name_of_now_is_said(tmp_path):
    with pytest.warns(UserWarning, match="objective.also is called objective.auxiliary now"):
        spec = RunSpec.from_flat({"domain": "industrial", "objective.also": ["cyclic=2"]})
    assert spec.objective.auxiliary == ["cyclic=2"] and spec.objective.options == {}
    with refuses("spec.given_twice", "objective.also", "objective.auxiliary"):
        RunSpec.from_flat({"objective.also": [], "objective.auxiliary": []})

    (tmp_path / "run.yaml").write_text("domain: general\nobjective: {also: [cyclic = 2]}\n")
    command = ["spec", "--spec", str(tmp_path / "run.yaml")]
    for options, expected in (([], "cyclic=2"), (["--objective.also", "alignment = 1"], "alignment=1")):
        with pytest.warns(UserWarning, match="objective.auxiliary"):
            done = CliRunner().invoke(main, [*command, *options])
        assert yaml.safe_load(done.stdout)["objective"]["auxiliary"] == [expected]


def test_a_stored_spec_of_before_is_read():
    stored = RunSpec.from_flat({"domain": "industrial"}).model_dump(mode="json")
    stored["objective"]["also"] = stored["objective"].pop("auxiliary")
    assert RunSpec.model_validate(stored) == RunSpec.from_flat({"domain": "industrial"})


# What follows from the starter where a spec leaves it open.
STARTER = {
    "resolution.train": 128,
    "resolution.evaluate": [96, 128, 160],
    "train.learning_rate": 2e-4,
    "train.beta2": 0.999,
}


ODD = {
    "domain": "general",
    "source": "/data/a.csv",
    "dataset": "general/v3",
    "train.epochs": 5,
    "memory.micro_batch": 4,
    "train.learning_rate": 1e-3,
    "objective.auxiliary": ["cyclic", "distillation=1>0.2"],
    "objective.options": {"text_weight": 0.4, "distillation.features": 10, "cyclic.weight": 2},
    "gate.rules": ["gain(score)  >= 0", "balanced_accuracy at 96 >= 0.5"],
}
TREE = {"objective.name": "soft_target", "objective.options": {"tree": {"a": "b"}, "softness": 0.3}}


@pytest.mark.parametrize(
    ("flat", "whole", "training"),
    [
        ({"domain": "industrial"}, "3dd5a3260d7530d2", "c47ebb71842cb502"),
        ({"domain": "medical"}, "11f78601d496d660", "887c853922c277e8"),
        ({"domain": "scientific"}, "306bf0eb4e3f7f80", "624f576ac898c7a9"),
        ({"domain": "general"}, "fc6918955ab57b4b", "2660c25683e928fb"),
        (ODD, "916849153b289597", "cde1416310189daa"),
        ({"domain": "industrial", "objective.auxiliary": ["distillation=0.5"], **TREE}, "87d0c99ff5ffb864", "25d326122feb64d9"),
    ],
)
def test_work_of_the_release_before_is_found_by_its_identity(flat, whole, training):
    spec = RunSpec.from_flat(flat)
    spec = spec.settled(STARTER | {"train.learning_rate": 2e-4 * spec.train.rate_factor})
    assert spec.identity("run", *RunSpec.model_fields) == whole
    sections = ("domain", "objective", "train", "memory")
    resolution, model = spec.resolution.model_dump(exclude={"evaluate"}), spec.model.model_dump(exclude={"start"})
    inputs = {"resolution": resolution, "model": model, "dataset": "r", "start": "d", "recipe": 1, "code": {}}
    assert spec.identity("finetune", *sections, metric=spec.gate.metric, **inputs) == training


# form: limits and defaults ---------------------------------------------------------------------------------------------


def test_the_defaults_of_the_form_are_valid_under_their_own_schema():
    import jsonschema

    for name, field in form().items():
        problems = [e.message for e in jsonschema.Draft202012Validator(field).iter_errors(field["default"])]
        assert problems == [] or name == "domain", name


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_untouched_form_is_the_domains_own_run(domain):
    untouched = {name: field["default"] for name, field in form().items()}
    assert RunSpec.from_flat(untouched | {"domain": domain}) == RunSpec.from_flat({"domain": domain})


def test_a_form_of_some_sections_shows_only_those():
    assert set(form(["run", "gate"])) == {n for n in leaves() if n.startswith("gate.") or "." not in n}


def test_the_form_offers_every_domain():
    assert set(form()["domain"]["enum"]) >= set(DOMAINS)


# identity -------------------------------------------------------------------------------------------------------------


def test_the_same_spec_has_the_same_identity_however_it_was_written():
    one = RunSpec.from_flat({"domain": "general", "train.epochs": 4, "train.batch": 8})
    two = RunSpec.from_flat({"train.batch": "8", "train.epochs": 4.0, "domain": "general", "source": ""})
    assert one.identity("finetune", "train", dataset="general/v1") == two.identity("finetune", "train", dataset="general/v1")


def test_a_named_section_changes_the_identity_and_an_unnamed_one_does_not():
    def identity(**flat):
        return RunSpec.from_flat({"domain": "general", **flat}).identity("finetune", "domain", "train", dataset="general/v1")

    plain = identity()
    assert identity(**{"train.epochs": 9}) != plain
    assert identity(**{"train.seed": 1}) != plain
    assert identity(domain="scientific") != plain
    assert identity(**{"gate.rules": ["gain(score) > 0"], "approval.required": True, "source": "x.csv"}) == plain


def test_stage_and_inputs_are_part_of_the_identity():
    spec = RunSpec()
    seen = {spec.identity("a", "train"), spec.identity("b", "train"), spec.identity("a", "train", dataset="v1")}
    assert len(seen) == 3


def test_an_objectives_options_are_written_as_names_and_values(monkeypatch):
    for written in ("text_weight=0.4, distillation.weight=1", '{"text_weight": 0.4, "distillation.weight": 1}'):
        spec = read_spec(None, {"objective__options": written})
        assert spec.objective.options == {"text_weight": 0.4, "distillation.weight": 1}
        assert RunSpec.from_flat(spec.flat()) == spec
    quoted = read_spec(None, {"objective__options": '{"a": "1", "b": 1, "c": 1e-3}'})
    assert quoted.objective.options == {"a": "1", "b": 1, "c": 0.001}  # in quotes it is text
    assert read_spec(None, {"objective__options": "a=1e-3,b='1e-3'"}).objective.options == {"a": 0.001, "b": "1e-3"}
    with refuses("cli.invalid_value", "objective.options", "name=value"):
        read_spec(None, {"objective__options": "text_weight"})


# what it stands on ----------------------------------------------------------------------------------------------------


def test_importing_the_spec_loads_no_heavy_library():
    heavy = ["torch", "mlflow", "pandas", "numpy", "open_clip", "optuna"]
    code = f"import sys, clipft_tasks.spec, clipft_tasks.domains.scaffold; print(set({heavy}) & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# in general -----------------------------------------------------------------------------------------------------------

WORD = st.text("abcexyz_019-/", min_size=1, max_size=8)
# What a schema alone does not tell: values of lists and mappings, and of text that is looked at.
VALUES = {
    "domain": st.sampled_from(DOMAINS),
    "dataset": st.builds("{}/v{}".format, st.sampled_from(DOMAINS), st.integers(1, 99)),
    "data.caption_template": st.builds("{} {{}} {}".format, WORD, WORD),
    "data.levels": st.lists(st.sampled_from(["split", "class", "group", "-"]), max_size=4).map("/".join),
    "data.separator": st.sampled_from([";", "|"]),
    "data.val_share": st.floats(0.02, 0.3),
    "data.test_share": st.floats(0.02, 0.3),
    "resolution.train": st.integers(16, 512).map(lambda half: 2 * half),
    "resolution.sizes": st.lists(st.integers(16, 512).map(lambda half: 2 * half), max_size=8),
    "resolution.evaluate": st.lists(st.integers(16, 512).map(lambda half: 2 * half), min_size=1, max_size=8),
    "objective.options": st.dictionaries(WORD, st.integers() | st.booleans() | WORD | st.floats(-9, 9)),
    "objective.auxiliary": st.lists(
        st.builds("{}={}>{}".format, st.sampled_from(["cyclic", "alignment", "a.b:C"]), st.floats(0, 9), st.floats(0, 9)),
        max_size=3,
        unique_by=lambda text: text.partition("=")[0],
    ),
    "objective.dimensions": st.lists(st.integers(1, 512), max_size=8),
    "train.rules": st.lists(st.builds("{}*={}".format, WORD, st.sampled_from(["freeze", "0.1"])), max_size=3),
    "gate.rules": st.lists(st.sampled_from(["gain(score) >= 0", "accuracy on every slice > 0.5"]), min_size=1, max_size=3),
}


def value_of(name: str, field: dict) -> st.SearchStrategy:
    """Values that a field takes, as its JSON schema says."""
    if name in VALUES:
        return VALUES[name]
    if "enum" in field:
        return st.sampled_from([choice for choice in field["enum"] if choice is not None])
    kind = field["type"] if isinstance(field["type"], str) else field["type"][0]
    if kind == "boolean":
        return st.booleans()
    if kind == "array":
        return st.lists(WORD, min_size=field.get("minItems", 0), max_size=3)
    if kind == "integer":
        return st.integers(field.get("minimum", 0), field.get("maximum", 10**6))
    if kind == "number":
        low, high = (
            field.get("minimum", field.get("exclusiveMinimum", 0)),
            field.get("maximum", field.get("exclusiveMaximum", 1e6)),
        )
        edges = {"exclude_min": "exclusiveMinimum" in field, "exclude_max": "exclusiveMaximum" in field}
        return st.floats(low, high, **edges)
    return WORD


WITHOUT_SHOTS = {
    "tune.trials",
    "blend.points",
    "train.lora_rank",
    "objective.dimensions",
}  # refused beside train.method = few_shot
FLAT = st.fixed_dictionaries({}, optional={name: value_of(name, field) for name, field in form().items()}).map(
    lambda flat: flat if flat.get("train.method") != "few_shot" else {n: v for n, v in flat.items() if n not in WITHOUT_SHOTS}
)


def typed(value: object) -> str:
    """A value as a person types it on a command line."""
    if isinstance(value, dict):
        return json.dumps(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@given(FLAT)
def test_a_spec_is_the_same_in_each_of_its_forms(flat):
    spec = RunSpec.from_flat(flat)
    as_flat, as_nested = spec.flat(), spec.model_dump(mode="json")
    assert fields.flatten(fields.nest(as_flat, SECTIONS), SECTIONS) == as_flat
    assert fields.flatten(as_nested, SECTIONS) == as_flat and fields.nest(as_flat, SECTIONS) == as_nested
    assert RunSpec.model_validate(json.loads(json.dumps(as_nested))) == spec
    assert RunSpec.from_flat(json.loads(json.dumps(as_flat))) == spec
    assert RunSpec.from_flat({name: as_flat[name] for name in form()}) == spec  # the form, filled in by hand
    assert spec.changed({}) == spec


@given(flat=FLAT)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spec_is_the_same_as_a_file_and_as_options(flat, tmp_path):
    spec = RunSpec.from_flat(flat)
    file = tmp_path / "run.yaml"
    file.write_text(write_yaml(spec.model_dump(mode="json")))
    assert read_spec(file, {}) == spec
    file.write_text(write_yaml(spec.flat()))
    assert read_spec(file, {}) == spec
    lists = {name: typed(value) for name, value in flat.items() if isinstance(value, list | dict) and value}
    lists |= {"gate.rules": ";".join(flat["gate.rules"])} if "gate.rules" in flat else {}
    assert read_spec(None, {fields.identifier(name): value for name, value in (flat | lists).items()}) == spec


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [*form(), *fields.RENAMED, "objective.options.a", "objective.options.cyclic.weight", "train", "objective"]
)


@given(st.dictionaries(NAMES | st.text(max_size=12), ANYTHING, max_size=5))
@pytest.mark.filterwarnings("ignore:The field ")
def test_whatever_a_form_holds_is_a_spec_or_a_refusal(flat):
    try:
        assert isinstance(RunSpec.from_flat(flat), RunSpec)
    except ClipftError as refused:
        assert str(refused)
