"""Domains: what a template does to an image is what its reasons say, and a new one is a file that works at once."""

import hashlib
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import write_images
from fixtures.errors import refuses

from clipft_tasks import domains
from clipft_tasks.cli.main import main
from clipft_tasks.data import augment
from clipft_tasks.domains import Augment, Checks, Domain, get_domain, scaffold
from clipft_tasks.spec import RunSpec, form
from clipft_tasks.stages import ingest

FERNS = """
from clipft_tasks.domains import Domain
DOMAIN = Domain(name="ferns", title="Ferns", prompts=("a frond of {}.",), caption="a frond of {}.",
                defaults={"train.epochs": 3, "objective.name": "info_nce"})
"""
SHIPPED = ["industrial", "medical", "scientific", "general"]

# Templates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_every_choice_has_its_reason(name):
    domain = get_domain(name)
    unexplained = set(domain.choices()) - {field for field, reason in domain.why.items() if len(reason.split()) > 1}
    assert domain.choices() and not unexplained


@pytest.mark.parametrize("name", SHIPPED)
def test_every_reason_is_about_a_field_that_there_is(name):
    known = {f.name for f in fields(Domain)} | set(form())
    known |= {f"augment.{f.name}" for f in fields(Augment)} | {f"checks.{f.name}" for f in fields(Checks)}
    assert set(get_domain(name).why) <= known


def test_choices_are_what_differs_from_the_general_default():
    own = Domain(
        "own", "Own", ("{}",), "{}", augment=Augment(rotate90=True), checks=Checks(min_side=32), defaults={"train.epochs": 3}
    )
    assert own.choices() == {"prompts": ("{}",), "augment.rotate90": True, "train.epochs": 3}


@pytest.mark.parametrize("name", SHIPPED)
def test_no_default_repeats_the_general_one(name):
    general = RunSpec().flat()
    assert not [field for field, value in get_domain(name).defaults.items() if general[field] == value]


@pytest.mark.parametrize("name", SHIPPED)
def test_prompts_are_an_ensemble_with_a_source(name):
    domain = get_domain(name)
    assert len(set(domain.prompts)) == len(domain.prompts) >= 6
    assert "https://" in domain.why["prompts"]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("industrial", "86b9a47fea530986"),
        ("medical", "398526b360dad59e"),
        ("scientific", "56458ad4cbd4d172"),
        ("general", "78bc535596184f1b"),
    ],
)
def test_templates_are_data_and_change_only_on_purpose(name, digest):
    """Another word in a template is another class embedding, and with it another score and another answer of the server."""
    domain = get_domain(name)
    assert hashlib.sha256(json.dumps([*domain.prompts, domain.caption]).encode()).hexdigest()[:16] == digest


def drawn(name: str) -> augment.Geometry:
    return augment.draw(500, get_domain(name).augment, 0, 0)


@pytest.mark.parametrize("name", ["medical", "scientific"])
def test_where_laterality_matters_nothing_is_mirrored_or_turned(name):
    theta = drawn(name).theta
    assert bool((theta[:, 0, 0] > 0).all() and (theta[:, 1, 1] > 0).all())
    assert not theta[:, 0, 1].any() and not theta[:, 1, 0].any()


def test_where_orientation_means_nothing_every_orientation_is_drawn():
    theta = drawn("industrial").theta[:, :, :2]
    assert len({tuple(t.sign().flatten().int().tolist()) for t in theta}) == 8


@pytest.mark.parametrize("name", ["industrial", "medical", "scientific"])
def test_where_intensity_is_a_measurement_it_is_left_alone(name):
    assert bool((drawn(name).gain == 1).all() and (drawn(name).spread == 1).all())


@pytest.mark.parametrize("bits", [-1, 1, 7, 17, 32])
def test_a_depth_of_gray_that_no_file_has_is_refused(bits):
    with pytest.raises(ValueError, match="gray_bits"):
        Domain("own", "Own", ("{}",), "{}", gray_bits=bits)


def test_the_list_shows_each_choice_with_its_value_and_reason(home):
    said = re.sub(r"\s+", " ", CliRunner().invoke(main, ["domains"]).output)
    for name in SHIPPED:
        domain = get_domain(name)
        assert f"{name}: {domain.title}" in said
        assert all(reason in said for reason in domain.why.values())
    assert "augment.flip_horizontal = False: left and right are part of the finding" in said


# A domain of one's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("like", SHIPPED)
def test_a_new_domain_is_the_one_that_it_is_like(tmp_path, own_domains, like):
    own_domains(scaffold.write("weaves", like, tmp_path / "weaves.py"))
    own, model = get_domain("weaves"), get_domain(like)
    assert (own.name, own.title) == ("weaves", "Weaves")
    for each in fields(Domain):
        if each.name not in ("name", "title"):
            assert getattr(own, each.name) == getattr(model, each.name), each.name


def test_a_new_domain_says_what_each_field_is_and_is_formatted(tmp_path, home):
    import subprocess
    import sys

    path = scaffold.write("weaves", "medical", tmp_path / "weaves.py")
    lines = [line.strip() for line in path.read_text().splitlines()]
    for part in (Domain, Augment, Checks):
        for each in fields(part):
            (at,) = [i for i, line in enumerate(lines) if line.startswith(f"{each.name}=")]
            assert lines[at - 1].startswith("# "), each.name
    ruff = [sys.executable, "-m", "ruff", "format", "--check", "--isolated", "--line-length", "128", str(path)]
    assert subprocess.run(ruff, capture_output=True, check=False).returncode == 0


def test_the_commands_that_follow_work_as_they_are_said(tmp_path, own_domains, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["domain", "new", "my_weaves", "--like", "industrial"])
    assert done.exit_code == 0, done.output
    export, command = [line.strip() for line in done.output.splitlines() if line.startswith("  ")]
    (_, setting), words = shlex.split(export), shlex.split(command)
    variable, _, value = setting.partition("=")
    assert variable == "CLIPFT_DOMAINS_PATH" and words[:2] == ["clipft", "ingest"]
    own_domains(Path(value))
    assert "my_weaves" in form()["domain"]["enum"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    result = ingest.run(
        RunSpec.from_flat({"domain": given["--domain"], "source": str(write_images(tmp_path / given["--source"], 10))})
    )
    card = json.loads((Path(result.staging) / "datacard.json").read_text())
    assert (card["domain"], card["rows"]) == ("my_weaves", 20)


def test_paths_that_are_set_already_stay_and_a_folder_that_is_read_already_is_enough(tmp_path, own_domains, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    own_domains(other)
    monkeypatch.chdir(tmp_path)
    assert f"={other}:{tmp_path}/here.py\n" in CliRunner().invoke(main, ["domain", "new", "here"]).output
    there = CliRunner().invoke(main, ["domain", "new", "there", "--path", "other/there.py"]).output
    assert f"CLIPFT_DOMAINS_PATH={other}\n" in there


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("grey_bits=0", "gray_bits"),
        ("captures=0.1", "capture_share"),
        ('retention="everyday"', "general_set"),
        ("augment=Augment(reworded=0.5)", "prompt_share"),
    ],
)
def test_a_file_with_a_field_of_before_is_refused_with_its_name_of_now(tmp_path, own_domains, before, now):
    path = tmp_path / "weaves.py"
    path.write_text(
        "from clipft_tasks.domains import Augment, Domain\n"
        f'DOMAIN = Domain("weaves", "Weaves", ("a {{}}.",), "a {{}}.", {before})\n'
    )
    own_domains(path)
    with refuses("domain.renamed_field", "weaves.py", before.split("(")[-1].split("=")[0], f"`{now}`"):
        get_domain("weaves")


@pytest.mark.parametrize("name", ["My Weaves", "Weaves", "weaves-2", "2weaves", "class", "", "../weaves", "wèaves"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path, home, name):
    with refuses("domain.invalid_name", name):
        scaffold.write(name, "general", tmp_path / "x.py")
    assert not list(tmp_path.glob("*.py"))


def test_a_name_that_is_taken_is_refused(tmp_path, home):
    with refuses("domain.name_taken", "medical"):
        scaffold.write("medical", "general", tmp_path / "x.py")


def test_a_file_that_is_there_is_left_as_it_is(tmp_path, home):
    (tmp_path / "weaves.py").write_text("precious")
    with refuses("domain.file_exists", "weaves.py"):
        scaffold.write("weaves", "general", tmp_path / "weaves.py")
    assert (tmp_path / "weaves.py").read_text() == "precious"


@pytest.mark.parametrize(("path", "code"), [("gone/weaves.py", "domain.not_writable"), ("weaves.txt", "domain.invalid_path")])
def test_a_place_where_it_cannot_be_or_would_not_be_read_is_refused(tmp_path, home, path, code):
    with refuses(code, path):
        scaffold.write("weaves", "general", tmp_path / path)


def test_a_domain_to_be_like_that_is_not_there_is_answered_with_those_that_are(tmp_path, home):
    with refuses("domain.not_found", "culinary", "industrial"):
        scaffold.write("weaves", "culinary", tmp_path / "weaves.py")
    assert domains.domain_names() == SHIPPED


# Files and folders ----------------------------------------------------------------------------------------------------


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
    assert get_domain("general").title == "Ferns"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("x = 1", "domain.not_defined"),
        ("DOMAIN = 'ferns'", "domain.not_defined"),
        ("def (:", "domain.unreadable_file"),
        ("import nothing_of_that_name", "domain.unreadable_file"),
        (FERNS.replace("{}.", "it"), "domain.unreadable_file"),
        (FERNS.replace('"ferns"', '"My Ferns"'), "domain.unreadable_file"),
    ],
    ids=["no domain", "not a domain", "syntax", "import", "template", "name"],
)
def test_a_broken_domain_file_is_named(tmp_path, own_domains, content, code):
    (tmp_path / "ferns.py").write_text(content)
    own_domains(tmp_path / "ferns.py")
    with refuses(code, "ferns.py"):
        domains.domain_names()


def test_a_domain_file_that_is_not_there_is_named(tmp_path, own_domains):
    own_domains(tmp_path / "gone.py")
    with refuses("domain.unreadable_file", "gone.py"):
        domains.domain_names()


def test_a_domain_that_does_not_exist_is_answered_with_those_that_do():
    with refuses("domain.not_found", "culinary", "industrial, medical, scientific, general"):
        get_domain("culinary")
