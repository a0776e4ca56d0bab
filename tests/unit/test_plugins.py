"""Names of what ships, what packages offer, and `module:attribute`, in one registry a kind."""

from importlib.metadata import EntryPoint

import pytest

from clipft_tasks.core import plugins
from clipft_tasks.core.errors import ClipftError
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
    with pytest.raises(ClipftError, match="no_such_module"):
        kinds.load("nowhere")


def test_packages_offer_theirs_and_cannot_replace_what_ships(packages):
    kinds = classes("kind", Base, {"mine": Shipped})
    assert kinds.names() == ["mine", "theirs", "gone"]
    assert kinds.load("theirs") is Shipped and kinds.load("mine") is Shipped
    assert instances("quality", Base, {}).offered() == [OFFERED]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other", "none of that name"),
        ("gone", "Absent"),
        ("mine", "not a subclass of .*Base"),
        (f"{__name__}:OTHER", "not a subclass of .*Base"),
        (f"{__name__}:OFFERED", "not a subclass of .*Base"),
        (f"{__name__}:Absent", "Absent"),
        ("no_such_module:X", "no_such_module"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(packages, name, reason):
    with pytest.raises(ClipftError, match=reason) as refused:
        classes("kind", Base, {"known": Shipped}).load(name)
    assert name in str(refused.value)


def test_an_instance_is_no_class_and_a_class_no_instance():
    with pytest.raises(ClipftError, match="not an instance of"):
        instances("kind", Base, {}).load(f"{__name__}:Shipped")
    assert instances("kind", Base, {}).load(f"{__name__}:OFFERED") is OFFERED
