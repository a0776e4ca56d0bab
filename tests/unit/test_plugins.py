"""Names of what ships, what packages offer, and `module:attribute`, in one registry a kind."""

from importlib.metadata import EntryPoint

import pytest
from fixtures.errors import refuses

from clipft_tasks.core import plugins
from clipft_tasks.core.plugins import classes, instances


class Base:
    pass


class Shipped(Base):
    pass


OFFERED = Base()
OTHER = "not a class"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers things of this module as entry points."""
    entries = [
        EntryPoint(name, f"{__name__}:{attribute}", group)
        for name, attribute, group in (
            ("theirs", "Shipped", "clipft.kinds"),
            ("mine", "OTHER", "clipft.kinds"),
            ("gone", "Absent", "clipft.kinds"),
            ("offered", "OFFERED", "clipft.qualities"),
        )
    ]

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [e for e in entries if e.group == group and name in (None, e.name)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)


def test_what_ships_is_found_by_name_and_imported_when_it_is_asked_for():
    kinds = classes("kind", Base, {"now": Shipped, "later": f"{__name__}:Shipped", "nowhere": "no_such_module:X"})
    assert kinds.load("now") is kinds.load("later") is Shipped
    with refuses("plugin.not_importable", "nowhere", "no_such_module"):
        kinds.load("nowhere")


def test_packages_offer_theirs_and_cannot_replace_what_ships(packages):
    kinds = classes("kind", Base, {"mine": Shipped})
    assert kinds.names() == ["mine", "theirs", "gone"]
    assert kinds.load("theirs") is Shipped and kinds.load("mine") is Shipped
    assert instances("quality", Base, {}).offered() == [OFFERED]


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("other", "plugin.not_found", "known, theirs, mine, gone"),
        ("gone", "plugin.not_importable", "Absent"),
        ("mine", "plugin.wrong_kind", "subclass of test_plugins.Base"),
        (f"{__name__}:OTHER", "plugin.wrong_kind", "subclass of test_plugins.Base"),
        (f"{__name__}:OFFERED", "plugin.wrong_kind", "subclass of test_plugins.Base"),
        (f"{__name__}:Absent", "plugin.not_importable", "Absent"),
        ("no_such_module:X", "plugin.not_importable", "no_such_module"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(packages, name, code, named):
    with refuses(code, name, named):
        classes("kind", Base, {"known": Shipped}).load(name)


def test_an_instance_is_no_class_and_a_class_no_instance():
    with refuses("plugin.wrong_kind", "instance of test_plugins.Base"):
        instances("kind", Base, {}).load(f"{__name__}:Shipped")
    assert instances("kind", Base, {}).load(f"{__name__}:OFFERED") is OFFERED
