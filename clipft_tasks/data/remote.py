"""Sources that lie elsewhere (S3, GCS, HTTP): brought to this machine, and then read as any other.

Only places that settings allow are asked (addresses.py). Credentials come from the environment, as each store's own programs take them; an address that holds some is refused.

Files come into folders under home (`cache/sources`), several at a time. What is known by its tag, or by size and time, is not
fetched again, so a source that was brought halfway goes on from there.
"""

import errno
import hashlib
import html
import importlib
import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from ..core.console import progress, say
from ..core.errors import ClipftError, TransientError
from ..core.files import atomic_path, atomic_write
from ..core.settings import settings
from .addresses import PACKAGES, PORTS, check, check_number, not_allowed, shown

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from fsspec import AbstractFileSystem

WEB = ("http://", "https://")
AT_ONCE = 8  # files
TRIES, PAUSE = 4, 0.3  # seconds before the second
REMEMBER = 64  # files between two writes to the index
MOST_ENTRIES, MOST_DEPTH = 5_000_000, 32  # of pages that list files
MOST_BYTES = 2**29  # of an image that a table names
TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest")
TIMES = ("LastModified", "updated", "mtime", "Last-Modified", "created")


@dataclass(frozen=True)
class Failure:
    """Why a file did not come. passing: whether it may come another time."""

    why: str
    passing: bool = True


@dataclass(frozen=True)
class Brought:
    """A source on this machine. left_out: files of the store that no file here can be called after."""

    path: Path
    files: int = 0
    left_out: int = 0


def bring(address: str) -> Brought:
    """Bring a folder (all below an address) or a file.

    Raises:
        ClipftError: it is not allowed, or there is nothing. TransientError: the store does not answer.
    """
    if urlsplit(address).query:
        raise not_allowed(address, "it has a query; a signed address is a secret, and a source is written down")
    address = check(address)
    store = _store(address)
    try:
        if _is_file(store, address):
            base, _, name = address.rpartition("/")
            mirror = Mirror(base)
            failed = mirror.bring({name: address})
            if failed:
                raise _unread(address, failed[name])
            return Brought(mirror.folder / name, 1)
        found = _listed(store, address)
    except (ClipftError, TransientError):
        raise
    except Exception as error:  # a store's own library raises what it likes
        raise _unread(address, _failure(error)) from error
    if not found:
        fix = "Check the address. A page must link its files; else name a table of them."
        raise ClipftError(f"source {address}", "there is no file below it", fix, code="source.not_found")
    wanted = {name: entry for name, entry in found.items() if _fits(name, found)}
    mirror = Mirror(address)
    known = {name: entry for name, entry in wanted.items() if "size" in entry}
    if failed := mirror.bring({name: str(entry["address"]) for name, entry in wanted.items()}, known):
        said = f"{len(failed)} of {len(wanted)} files of {address} did not come, e.g. {min(failed)}: {failed[min(failed)].why}"
        raise TransientError(f"{said}.")
    mirror.keep_only(wanted)
    return Brought(mirror.folder, len(wanted), len(found) - len(wanted))


class Mirror:
    """A folder under home with files of one place.

    Args:
        base: the address that names in it are relative to.
    """

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self.place = settings().folder("cache", "sources", hashlib.sha256(self.base.encode()).hexdigest()[:16])
        last = re.sub(r"[^\w.-]+", "_", unquote(self.base.rpartition("/")[2])).strip(".")[:100]
        self.folder = self.place / "files" / (last or "source")
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.place / "address", self.base)  # also says when it was last used

    @classmethod
    def of(cls, path: Path) -> "Mirror | None":
        """The mirror that a path lies in, if it lies in one."""
        whole, home = path.absolute(), settings().root / "cache" / "sources"
        if not whole.is_relative_to(home) or len(whole.relative_to(home).parts) < 3:
            return None
        told = home / whole.relative_to(home).parts[0] / "address"
        return cls(told.read_text("utf-8")) if told.is_file() else None

    def bring(
        self, wanted: Mapping[str, str], known: Mapping[str, Mapping[str, object]] | None = None, limit: int = 0
    ) -> dict[str, Failure]:
        """Fetch files that are not here, or not as the store has them now.

        Args:
            wanted: address by name. known: what the store says of them, where it was asked already.
            limit: bytes of one; 0 for none.
        Returns: those that did not come, by name.
        Raises: ClipftError for an address that is not allowed. TransientError where the disk is full.
        """
        failed: dict[str, Failure] = {}
        pool = ThreadPoolExecutor(AT_ONCE)
        with FileLock(f"{self.place}.lock"), closing(sqlite3.connect(self.place / "index.db")) as index:
            index.execute("create table if not exists files (name text primary key, stamp text) without rowid")
            here = dict(index.execute("select name, stamp from files"))

            def one(name: str) -> tuple[str, str | Failure]:
                return name, self._one(name, wanted[name], (known or {}).get(name), here.get(name, ""), limit)

            try:
                done = pool.map(one, wanted)
                told = progress(done, "files brought", len(wanted)) if len(wanted) > AT_ONCE else done
                for number, (name, came) in enumerate(told):
                    if isinstance(came, Failure):
                        failed[name] = came
                    elif came != here.get(name, ""):
                        index.execute("insert or replace into files values (?, ?)", (name, came))
                    if number % REMEMBER == 0:
                        index.commit()
            finally:
                index.commit()
                pool.shutdown(cancel_futures=True)
        return failed

    def _one(self, name: str, address: str, entry: Mapping[str, object] | None, before: str, limit: int) -> str | Failure:
        """What the file is known by, or why it did not come."""
        address = check(address)
        for tried in range(1, TRIES + 1):
            try:
                return self._fetched(self.folder / name, address, entry, before, limit)
            except (ClipftError, TransientError):
                raise
            except Exception as error:  # a store's own library raises what it likes
                failure = _failure(error)
                if tried == TRIES or not failure.passing:
                    return failure
                time.sleep(PAUSE * 4 ** (tried - 1))
        raise AssertionError

    def _fetched(self, target: Path, address: str, entry: Mapping[str, object] | None, before: str, limit: int) -> str:
        store = _store(address)
        entry = entry or store.info(address)
        size, stamp = entry.get("size"), _stamp(entry)
        if limit and isinstance(size, int) and size > limit:
            raise _TooLargeError(f"{size:,} bytes, more than the limit of {limit:,}")
        if stamp and stamp == before and target.is_file() and size in (None, target.stat().st_size):
            return stamp
        with atomic_path(target) as part:
            store.get_file(address, str(part), callback=_limited(limit))
            if isinstance(size, int) and part.stat().st_size != size and not address.startswith(WEB):
                raise OSError(f"{part.stat().st_size:,} of {size:,} bytes came")
        return stamp

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove what the store does not hold any more."""
        kept = set(names)
        gone = 0
        with FileLock(f"{self.place}.lock"):
            for path in self.folder.rglob("*"):
                if path.is_file() and not path.name.endswith(".part") and path.relative_to(self.folder).as_posix() not in kept:
                    path.unlink(missing_ok=True)
                    gone += 1
        if gone:
            say(f"{gone} files are not in {self.base} any more.")


def of_addresses() -> Mirror:
    """The mirror of images that tables name by their whole address."""
    return Mirror("addresses")


def name_of(address: str) -> str:
    """What an address's file is called there."""
    suffix = PurePosixPath(urlsplit(address).path).suffix
    digest = hashlib.sha256(address.encode()).hexdigest()
    return f"{digest[:2]}/{digest[:32]}{suffix if re.fullmatch(r'[.][A-Za-z0-9]{1,8}', suffix) else ''}"


# Stores ---------------------------------------------------------------------------------------------------------------


def _store(address: str) -> "AbstractFileSystem":
    """Raises ClipftError where the package for a store is not installed."""
    scheme = address.partition("://")[0]
    try:
        import fsspec

        importlib.import_module(PACKAGES[scheme])
    except ImportError:
        extra = "gcs" if scheme == "gs" else "data"
        raise ClipftError(
            f"source {address}", f"{PACKAGES[scheme]} is not installed", f"Install `clipft[{extra}]`.", code="source.missing_package"
        ) from None  # fmt: skip
    options = {"get_client": _client} if scheme in PORTS else {}
    return fsspec.filesystem(scheme, use_listings_cache=False, **options)


async def _client(**options: object) -> "ClientSession":
    """A session for HTTP that looks at every request, redirects included, and at the number of every host."""
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
    from aiohttp.resolver import ThreadedResolver
    from yarl import URL

    class Resolver(AbstractResolver):
        def __init__(self) -> None:
            self.own = ThreadedResolver()

        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
            found = await self.own.resolve(host, port, family)
            for entry in found:
                if host not in proxies:
                    check_number(host, entry["host"])
            return found

        async def close(self) -> None:
            await self.own.close()

    async def before(session: object, context: object, request: aiohttp.TraceRequestStartParams) -> None:
        check(str(request.url))

    async def redirected(session: object, context: object, request: aiohttp.TraceRequestRedirectParams) -> None:
        to = request.response.headers.get("Location") or request.response.headers.get("URI") or ""
        check(str(request.response.url.join(URL(to))))

    from urllib.request import getproxies

    proxies = {urlsplit(address).hostname for address in getproxies().values()}
    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(before)
    trace.on_request_redirect.append(redirected)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=Resolver()),
        trace_configs=[trace],
        trust_env=True,  # proxies, and names and passwords of ~/.netrc
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120),
    )


def _is_file(store: "AbstractFileSystem", address: str) -> bool:
    if address.endswith("/"):
        return False
    if address.startswith(WEB):
        return bool(PurePosixPath(urlsplit(address).path).suffix)
    return bool(store.info(address).get("type") == "file")


def _listed(store: "AbstractFileSystem", address: str) -> dict[str, dict[str, object]]:
    """Every file below an address by its name relative to it, with what the store says of it and its whole address."""
    if address.startswith(WEB):
        return _pages(store, address.rstrip("/") + "/")
    scheme, _, prefix = address.rstrip("/").partition("://")
    found = store.find(address.rstrip("/"), detail=True)
    out: dict[str, dict[str, object]] = {}
    for path, entry in found.items():
        name = path.removeprefix(store._strip_protocol(address.rstrip("/"))).lstrip("/")
        if name and entry.get("type") != "directory":
            out[name] = dict(entry) | {"address": f"{scheme}://{prefix}/{name}"}
    return out


def _pages(store: "AbstractFileSystem", base: str) -> dict[str, dict[str, object]]:
    """The files that pages of links list, from one page downwards and never beside it."""
    waiting, seen = [(base, 0)], {base}
    out: dict[str, dict[str, object]] = {}
    while waiting:
        page, depth = waiting.pop()
        for entry in store.ls(page, detail=False):
            link = html.unescape(str(entry))
            if (
                not link.startswith(base)
                or link in seen
                or "?" in link
                or "#" in link
                or ".." in unquote(link).split("/")
                or len(seen) > MOST_ENTRIES
            ):
                continue
            seen.add(link)
            if not link.endswith("/"):
                out[unquote(link.removeprefix(base))] = {"address": link}
            elif depth < MOST_DEPTH:
                waiting.append((link, depth + 1))
    return out


def is_name(name: str) -> bool:
    """Whether a store's name can be that of a file here."""
    return not any(
        part in ("", ".", "..") or len(part.encode()) > 250 or "\\" in part or "\0" in part for part in name.split("/")
    )


def _fits(name: str, names: Mapping[str, object]) -> bool:
    """Whether it can be, and lies below none of the files."""
    parts = name.split("/")
    return is_name(name) and not any("/".join(parts[:i]) in names for i in range(1, len(parts)))


def _stamp(entry: Mapping[str, object]) -> str:
    """What a file is known again by; "" where the store says nothing of the kind."""
    tag = next((str(entry[name]) for name in TAGS if entry.get(name)), "")
    when = next((str(entry[name]) for name in TIMES if entry.get(name)), "")
    return json.dumps([entry.get("size"), tag, when]) if tag or when else ""


class _TooLargeError(OSError):
    pass


def _limited(limit: int) -> object:
    """What ends a download that is longer than it may be, whatever the store said."""
    from fsspec.callbacks import Callback

    class Limited(Callback):  # type: ignore[misc]  # fsspec is not typed
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if limit and self.value > limit:
                raise _TooLargeError(f"more than the limit of {limit:,} bytes")

    return Limited()


def _unread(address: str, failure: Failure) -> ClipftError | TransientError:
    if failure.passing:
        return TransientError(f"{address} does not answer: {failure.why}.")
    fix = "Check the address, and the credentials in the environment."
    return ClipftError(f"source {address}", failure.why, fix, code="source.not_found")


def _failure(error: BaseException) -> Failure:
    """An error of a store's library in words, without what may be a secret in an address.

    Raises: ClipftError where it comes of one. TransientError where the disk is full.
    """
    chain = [e for e in (error, error.__cause__, error.__context__) if e is not None]
    for each in chain:
        if isinstance(each, ClipftError):
            raise each
    if getattr(error, "errno", None) == errno.ENOSPC:
        raise TransientError("a source does not fit on the disk of CLIPFT_HOME: make space.") from error
    status = next((int(s) for e in chain if isinstance(s := getattr(e, "status", None), int)), 0)
    whole = f"{type(chain[-1]).__name__}: {chain[-1]}" if not str(error) or isinstance(error, FileNotFoundError) else str(error)
    if isinstance(error, _TooLargeError) or "credentials" in whole.lower():
        return Failure(shown(whole)[:300], passing=False)
    if isinstance(error, FileNotFoundError) and (len(chain) == 1 or status in (404, 410)):
        return Failure("there is no such file", passing=False)
    return Failure(shown(whole)[:300], passing=not (isinstance(error, PermissionError) or 400 <= status < 500))
