"""RunSpec: what a form, a command line or a file says becomes one spec, or an error that names the field."""

import json

import pytest
from pydantic import BaseModel

from clipft_tasks import domains
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.objectives import make
from clipft_tasks.spec import SECTIONS, RunSpec, form

DOMAINS = ["industrial", "medical", "scientific", "general"]


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


FERNS = """
from clipft_tasks.domains import Domain
DOMAIN = Domain(name="ferns", title="Ferns", prompts=("a frond of {}.",), caption="a frond of {}.",
                defaults={"train.epochs": 3, "objective.name": "info_nce"})
"""

# from_flat ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["train.epoch", "trian.epochs", "epochs", "train.epochs.more", "domain.name", "source.path", "."]
)
@pytest.mark.parametrize("domain", [{}, {"domain": "general", "source": "a.csv"}])
def test_an_unknown_field_is_refused_by_its_name(name, domain):
    with pytest.raises(ClipftError) as caught:
        RunSpec.from_flat({**domain, name: 3})
    assert name.strip(".").split(".")[0] in str(caught.value)


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
        ("resolution.evaluate", []),
        ("gate.metric", "beauty"),
        ("gate.rules", []),
        ("gate.rules", ["gain(beauty) >= 0"]),
        ("gate.rules", ["balanced_accuracy at 512 >= 0.5"]),
        ("dataset", "industrial-3"),
        ("domain", "culinary"),
    ],
)
def test_a_wrong_value_is_refused_by_the_fields_name(name, value):
    with pytest.raises(ClipftError, match=name.replace(".", r"\.")):
        RunSpec.from_flat({name: value})


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(ClipftError) as caught:
        RunSpec.from_flat({"train.epochs": 0, "train.batch": 1, "memory.device": "tpu"})
    assert all(name in str(caught.value) for name in ("train.epochs", "train.batch", "memory.device"))


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ClipftError, match="val_share"):
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
    fields = form()
    decided = {name for d in DOMAINS for name in domains.get_domain(d).defaults}
    assert decided
    for name in decided:
        assert fields[name]["default"] is None and "null" in fields[name]["type"], name
        assert None in fields[name].get("enum", [None]), name
    for name in set(fields) - decided:  # elsewhere empty means "planned", and the description says so
        assert fields[name]["default"] is not None or "empty:" in fields[name]["description"], name


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {"distillation.features": 15}),
        ({"objective.also": []}, {}),
        ({"objective.also": ["distillation=0.5", "cyclic=1"]}, {"distillation.features": 15}),
        ({"objective.options": {"distillation.temperature": 3}}, {"distillation.temperature": 3}),
        ({"objective.name": "info_nce"}, {"distillation.features": 15}),
    ],
)
def test_a_templates_options_go_with_the_objectives_that_they_are_for(asked, options):
    spec = RunSpec.from_flat({"domain": "industrial", **asked})
    assert spec.objective.options == options
    make(spec.objective, ["crack", "cell"])  # every one of them can be trained with


def test_the_defaults_of_the_form_are_valid_under_their_own_schema():
    import jsonschema

    for name, field in form().items():
        problems = [e.message for e in jsonschema.Draft202012Validator(field).iter_errors(field["default"])]
        assert problems == [], name


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


# domains of one's own -------------------------------------------------------------------------------------------------


def test_a_domain_of_your_own_is_one_file(tmp_path, own_domains):
    (tmp_path / "ferns.py").write_text(FERNS)
    own_domains(tmp_path / "ferns.py")
    assert "ferns" in form()["domain"]["enum"]
    assert RunSpec.from_flat({"domain": "ferns"}).train.epochs == 3
    assert RunSpec.from_flat({"domain": "ferns", "dataset": "ferns/v2"}).dataset == "ferns/v2"


def test_a_folder_of_domains_is_read_whole_and_may_replace_one_that_ships(tmp_path, own_domains):
    (tmp_path / "ferns.py").write_text(FERNS)
    (tmp_path / "general.py").write_text(FERNS.replace('"ferns"', '"general"'))
    own_domains(tmp_path)
    assert RunSpec.from_flat({"domain": "ferns"}).train.epochs == 3
    assert domains.get_domain("general").title == "Ferns"


@pytest.mark.parametrize(
    "content",
    [
        "x = 1",
        "DOMAIN = 'ferns'",
        "def (:",
        "import nothing_of_that_name",
        FERNS.replace("{}.", "it"),
        FERNS.replace('"ferns"', '"My Ferns"'),
    ],
    ids=["no domain", "not a domain", "syntax", "import", "template", "name"],
)
def test_a_broken_domain_file_is_named(tmp_path, own_domains, content):
    (tmp_path / "ferns.py").write_text(content)
    own_domains(tmp_path / "ferns.py")
    with pytest.raises(ClipftError, match=r"ferns\.py"):
        domains.domain_names()


def test_a_domain_file_that_is_not_there_is_named(tmp_path, own_domains):
    own_domains(tmp_path / "gone.py")
    with pytest.raises(ClipftError, match=r"gone\.py"):
        domains.domain_names()


def test_a_domain_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ClipftError, match="culinary.*industrial, medical, scientific, general"):
        domains.get_domain("culinary")


def test_an_objectives_options_are_written_as_names_and_values(monkeypatch):
    from clipft_tasks.cli.options import read_spec

    for written in ("text_weight=0.4, distillation.weight=1", '{"text_weight": 0.4, "distillation.weight": 1}'):
        spec = read_spec(None, {"objective__options": written})
        assert spec.objective.options == {"text_weight": 0.4, "distillation.weight": 1}
        assert RunSpec.from_flat(spec.flat()) == spec
    with pytest.raises(ClipftError, match=r"objective\.options .*name=value"):
        read_spec(None, {"objective__options": "text_weight"})
