"""Addresses of sources: which of them may be asked, and how one is shown.

Only places that settings allow (`CLIPFT_SOURCES_ALLOWED`) are: a form is filled in by people who must not reach what this machine can.
"""

import fnmatch
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from ..core.errors import ClipftError
from ..core.settings import settings

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec"}
PORTS = {"http": 80, "https": 443}
WAY_OUT = "Whoever runs this installation allows places: CLIPFT_SOURCES_ALLOWED='s3://bucket/folder https://host/folder'."


def not_allowed(address: str, why: str) -> ClipftError:
    return ClipftError(f"source {shown(address)}", why, WAY_OUT, code="source.not_allowed")


def is_remote(source: str) -> bool:
    """Is it an address, and no path here?"""
    return bool(re.match(r"(?:\w+::)*[A-Za-z][A-Za-z0-9+.-]*://", source)) and not source.lower().startswith("file://")


def shown(address: str) -> str:
    """An address without what may be a secret in it: user, password and query."""
    return re.sub(r"(?<=://)[^/@\s]*@|[?#][^\s'\"]*", "", address)


def check(address: str) -> str:
    """The address as stores take it. Raises ClipftError where it may not be asked."""
    parts = urlsplit(address)
    scheme = {"gcs": "gs", "s3a": "s3"}.get(parts.scheme.lower(), parts.scheme.lower())
    if scheme not in PACKAGES:
        raise not_allowed(address, f"{parts.scheme}:// is none of {', '.join(f'{name}://' for name in PACKAGES)}")
    if "@" in parts.netloc:
        why = "it holds a name or a password, which would stand in forms and logs; put them into the environment"
        raise not_allowed(address, why)
    if ".." in unquote(parts.path).split("/") or "\\" in unquote(parts.path):
        raise not_allowed(address, "its path leads out of itself")
    whole = f"{scheme}://{address.partition('://')[2]}"
    if not any(_covers(entry, whole) for entry in _allowed()):
        raise not_allowed(address, "it is none of the places that settings allow")
    if scheme in PORTS and _is_number(parts.hostname or ""):
        check_number(parts.hostname or "", parts.hostname or "")
    return whole


def _allowed() -> Sequence[str]:
    """Addresses that settings allow: those of `sources_allowed`, and the store of data sets."""
    own = settings().remote
    return [*re.split(r"[\s,]+", settings().sources_allowed.strip()), *([own] if own.startswith(("s3://", "gs://")) else [])]


def _covers(entry: str, address: str) -> bool:
    """Whether an address lies at or below one that is allowed; the host of that may hold `*`."""
    if "://" not in entry:
        return False
    given, asked = urlsplit(entry), urlsplit(address)
    scheme = {"gcs": "gs", "s3a": "s3"}.get(given.scheme.lower(), given.scheme.lower())
    if scheme != asked.scheme:
        return False
    if scheme in PORTS:
        if not fnmatch.fnmatchcase((asked.hostname or "").rstrip("."), (given.hostname or "").lower()):
            return False
        try:
            if (given.port or PORTS[scheme]) != (asked.port or PORTS[scheme]):
                return False
        except ValueError:  # no number
            return False
    elif not fnmatch.fnmatchcase(asked.netloc, given.netloc or "*"):
        return False
    path = unquote(given.path).rstrip("/")
    return unquote(asked.path) == path or unquote(asked.path).startswith(f"{path}/") or not path


def _named_host(host: str) -> bool:
    """Whether settings name a host itself, and not by a pattern."""
    return any("://" in entry and (urlsplit(entry).hostname or "") == host for entry in _allowed())


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:  # a name, which is looked up; also a number written in another way
        return False
    return True


def check_number(host: str, number: str) -> None:
    """Raises ClipftError for a host whose number is this machine's, a cloud's own, or a private one that nobody named."""
    found = ipaddress.ip_address(number.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    named = _named_host(host)
    own = found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast
    if host in ("localhost", number) and named:  # somebody meant just that
        return
    if own or str(found) in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16") or (not found.is_global and not named):
        raise not_allowed(f"//{host}", f"{host} is {number}, an address of this machine or of its own network")
