"""Erasing rows: from every version of the data, and from every place where the installation keeps copies or traces of them.

First everything new is made and pushed; then the versions change, in one step; then the old goes. A process that is killed before
that step has changed nothing, after it the rest is finished by the next `clipft erase`, by what its journal says.
"""

import secrets
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from ... import tracking
from ...contracts.erasure import ErasureAccount, PlaceSearched, SeenIn
from ...core.console import say
from ...core.errors import ClipftError
from ...core.files import atomic_write, link_or_copy
from ...core.settings import settings
from ...data import erased_copies, erasing, history, repository, shards
from ...domains import domain_names, get_domain
from ...search import index
from ..installation import maintenance_lock
from . import backups, captured, registry, traces
from .choice import Choice, Found, alike, find
from .journal import Journal, remove_leftovers, unfinished
from .traces import Traces

__all__ = ["Choice", "backups_that_hold", "erase", "finish_all", "look", "prune_backups", "unfinished"]

NAMES = 20  # of rows that an account lists
PASSED_BY = ("backups", "datasets", "dvc-remote", "erasing", "mlflow", "captures", "cache", "airflow")  # looked at otherwise


def look(choice: Choice) -> ErasureAccount:
    """What an erasure would do; changes nothing. Raises as `erase`."""
    _refuse_reader()
    with maintenance_lock("erase"), repository.opened() as repo:
        work = settings().folder("erasing", "look")
        try:
            found = find(repo, choice, _domains(repo), work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return _account(found)


def erase(choice: Choice, *, packages: bool = True, while_running: bool = False) -> ErasureAccount:
    """Erase what was chosen; finishes first what an erasure before left.

    Args:
        packages: pack models again whose packages hold erased rows; otherwise they are only named.
        while_running: although runs are at work on versions that hold the rows.
    Raises:
        ClipftError: nothing of it is there; a run is at work on it; the origin takes no new history.
        TransientError: the remote, the origin or MLflow does not answer: the next try goes on.
    """
    _refuse_reader()
    with maintenance_lock("erase"):
        for journal in unfinished():
            _carry_out(journal)
        remove_leftovers()
        with repository.opened() as repo:
            journal, account = _begun(repo, choice, packages, while_running)
            _change_versions(repo, journal)
            return _finish(repo, journal, account)


def finish_all() -> list[ErasureAccount]:
    """Finish what erasures left that were cut short. Raises as `erase`."""
    with maintenance_lock("erase"):
        return [_carry_out(journal) for journal in unfinished()]


def backups_that_hold(more: Iterable[Path] = ()) -> dict[str, str]:
    """Backups that hold rows which were erased since they were made: by folder, when that was and what they hold.

    Args:
        more: folders of backups, or backups, beside those under home.
    """
    with repository.opened() as repo:
        return backups.Holding(erased_copies.Named.now(repo)).among(backups.places(more))


def prune_backups(more: Iterable[Path] = ()) -> dict[str, str]:
    """Delete them. Returns as `backups_that_hold`."""
    with maintenance_lock("erase"):
        held = backups_that_hold(more)
        backups.prune(held)
        return held


def _refuse_reader() -> None:
    if settings().reads_only:
        why = "this machine reads data over HTTP and cannot change any"
        raise ClipftError("an erasure", why, "Do it on the control plane.", code="dataset.read_only")


def _carry_out(journal: Journal) -> ErasureAccount:
    say(f"Erasure {journal.id} of {journal.at} was cut short: it is finished now.")
    with repository.opened() as repo:
        _change_versions(repo, journal)
        return _finish(repo, journal, ErasureAccount())


def _begun(repo: Path, choice: Choice, packages: bool, while_running: bool) -> tuple[Journal, ErasureAccount]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    id = secrets.token_hex(6)
    work = settings().folder("erasing", id)
    found = find(repo, choice, _domains(repo), work)
    account = _account(found)
    if account.running and not while_running:
        shutil.rmtree(work, ignore_errors=True)
        fix = "Wait, or stop them; a run that is lost is deleted in MLflow. `--while-running` goes on regardless."
        raise ClipftError("the rows to erase", f"they are in use: {account.running[0]}", fix, code="erase.in_use")
    chosen = found.chosen
    journal = Journal(
        id=id,
        at=now,
        by=tracking.whoever(),
        how=choice.how,
        images={domain: sorted(what.images) for domain, what in chosen.items()},
        groups={domain: sorted(what.groups) for domain, what in chosen.items()},
        captures=found.captures,
        requests=list(choice.requests),
        traces=_names(found),
        rows=_by_split(found),
        models=account.models,
        packages=packages,
    )
    journal.write()
    return journal, account


def _change_versions(repo: Path, journal: Journal) -> None:
    """Put the new history in the place of the old, unless that is done."""
    domains = sorted(journal.images)
    if not domains or erasing.is_recorded(repo, domains[0], journal.id):
        return
    chosen = {d: erasing.Chosen(frozenset(journal.images[d]), frozenset(journal.groups.get(d, ()))) for d in domains}
    done = erasing.prepare(repo, chosen, journal.folder)
    looks = sorted({look for domain in domains for look in _looks(repo, domain, chosen[domain].images, journal.folder)})
    known = journal.traces.model_copy(update={"looks": looks})
    journal.model_copy(update={"old": sorted(done.old), "traces": known}).write()
    erasing.record(repo, chosen, done, journal.id, journal.at, journal.by, journal.how, journal.folder)
    with repository.references():
        history.take_place(repo)


def _finish(repo: Path, journal: Journal, account: ErasureAccount) -> ErasureAccount:
    """Delete everything old. Safe to repeat."""
    [journal] = [each for each in unfinished() if each.id == journal.id]  # as the step before wrote it
    with repository.references():
        history.forget_old(repo)
    named = erased_copies.Named.now(repo)
    for path in (journal.folder / "shards").glob("*.tar"):
        target = settings().folder("cache", "shards") / path.name
        if path.name in named.shards and not target.exists():
            link_or_copy(path, target)
    places = captured.delete(journal.captures, journal.requests)
    places += erased_copies.delete_here(repo, named, journal.old)
    places += [erased_copies.delete_stored(repo, named, journal.old), erased_copies.delete_handed_over(named)]
    if repository.git(repo, "remote"):
        note = "it keeps old commits (numbers of rows and names of classes, no image) until it collects garbage itself"
        places.append(PlaceSearched(place=f"origin {settings().datasets}", looked_at=1, note=note))
    models = journal.models
    if registry.is_there():
        places.append(registry.redact(set(journal.images), journal.traces))
        models = _packed(journal)
        places.append(
            PlaceSearched(place="packages of models", looked_at=len(models), held=sum(bool(m.packed) for m in models))
        )
    places += [_files(journal.traces), _cached_models(journal), _search_indexes(journal)]
    erased = {domain: len(images) for domain, images in journal.images.items()}
    rows = {tag: sum(by_split.values()) for tag, by_split in journal.rows.items()}
    journal.remove()
    return ErasureAccount(
        id=journal.id,
        done=True,
        images=erased,
        rows=rows,
        captures=len(journal.captures),
        alike=account.alike,
        places=places,
        models=models,
        backups=backups.Holding(named).among(backups.places()),
    )


def _packed(journal: Journal) -> list[SeenIn]:
    """Pack models again, and say what became of each."""
    out = {seen.model: seen for seen in journal.models}
    for kept in registry.packages(journal.rows):
        try:
            said = registry.repack(kept, journal.traces, dry=not journal.packages)
        except ClipftError as error:
            said = error.why
        for name in kept.name.split(", "):
            if said:
                out[name] = out.get(name, SeenIn(model=name)).model_copy(update={"packed": said})
    return list(out.values())


def _files(known: Traces) -> PlaceSearched:
    """Pages, records and logs under home."""
    root, looked, held = settings().root, 0, 0
    for path in root.rglob("*"):
        if path.relative_to(root).parts[0] in PASSED_BY or path.is_symlink() or not path.is_file():
            continue
        if path.suffix not in (*traces.TEXTS, ".parquet"):
            continue
        looked += 1
        with suppress(OSError, ValueError):
            if (content := traces.without(path, known)) is not None:
                atomic_write(path, content, mode=path.stat().st_mode & 0o777)
                held += 1
    return PlaceSearched(place="results, work folders and logs under home", looked_at=looked, held=held)


def _cached_models(journal: Journal) -> PlaceSearched:
    """Copies of packages that this machine fetched: gone where the package holds erased rows, to be fetched anew."""
    looked = held = 0
    for path in (settings().root / "cache" / "models").glob("*/reference.json"):
        looked += 1
        if any(image in path.read_text() for images in journal.images.values() for image in images):
            shutil.rmtree(path.parent, ignore_errors=True)
            held += 1
    note = "copies on other machines are fetched anew when they are opened next; a server that runs, when it loads the version next"
    return PlaceSearched(place="models fetched here", looked_at=looked, held=held, note=note if held else "")


def _search_indexes(journal: Journal) -> PlaceSearched:
    """Indexes know rows by what their source calls them; a row that is called the same as an erased one goes with it."""
    looked = sum(len(index.cards(domain)) for domain in journal.images)
    held = sum(index.forget(journal.traces.rows, domain) for domain in journal.images)
    note = "`clipft index build` brings back what other rows of the same name say" if held else ""
    return PlaceSearched(place="search indexes", looked_at=looked, held=held, note=note)


def _account(found: Found) -> ErasureAccount:
    rows = _by_split(found)
    names = sorted({name for frame in found.rows.values() for name in frame.loc[frame["erased"], "name"]})
    there = registry.is_there()
    return ErasureAccount(
        images={domain: len(what.images) for domain, what in found.chosen.items()},
        rows={tag: sum(by_split.values()) for tag, by_split in rows.items()},
        names=names[:NAMES],
        alike=alike(found),
        captures=len(found.captures),
        models=registry.seen_in(rows) if there else [],
        running=registry.running(rows) if there else [],
        backups={
            str(folder): f"made {made.made}: it may hold them" if made else "it is not whole, and may hold them"
            for folder, made in backups.found(backups.places())
        },
    )


def _by_split(found: Found) -> dict[str, dict[str, int]]:
    """Erased rows by version and split."""
    out: dict[str, dict[str, int]] = {}
    for frame in found.rows.values():
        for (tag, split), count in Counter(
            zip(*(frame.loc[frame["erased"], n] for n in ("version", "split")), strict=True)
        ).items():
            if tag:
                out.setdefault(tag, {})[split] = count
    return out


def _names(found: Found) -> Traces:
    """What the rows are known by, but for how they look."""
    every = pd.concat(list(found.rows.values())) if found.rows else pd.DataFrame()
    if every.empty:
        return Traces(images=[c.sha256 for c in found.captures], names=[c.id for c in found.captures])
    gone, left = every[every["erased"]], every[~every["erased"]]
    only = {column: traces.distinct(gone[column], left[column]) for column in ("name", "caption", "group")}
    return Traces(
        keys=sorted(set(gone["key"])),
        images=sorted({*gone["sha256"], *(c.sha256 for c in found.captures)}),
        names=sorted({*only["name"], *only["caption"], *only["group"], *(c.id for c in found.captures)}),
        captions=only["caption"],
        rows=sorted(set(gone["name"])),
    )


def _looks(repo: Path, domain: str, images: Iterable[str], work: Path) -> set[str]:
    """How the images look, from the shards that were just packed without them."""
    bits = get_domain(domain).gray_bits if domain in domain_names() else 16
    found: set[str] = set()
    for state in erasing.states(repo, domain):
        rows = erasing.manifest_of(repo, state, work)
        for row in rows[rows["sha256"].isin(set(images))].drop_duplicates("sha256").itertuples():
            if (work / "old" / str(row.shard)).exists():
                place = shards.Place(str(row.shard), int(row.offset), int(row.length))
                found |= set(traces.looks_of(shards.read(work / "old", place), bits))
    return found


def _domains(repo: Path) -> list[str]:
    return erased_copies.domains(repo)
