"""docker-compose.yaml and the Dockerfile as Compose and a container engine read them."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<how>:?[-?])(?P<text>[^}]*))?\}|(?P<bare>\w+))")


class MissingError(Exception):
    """A variable that compose insists on."""


def interpolate(value: Any, env: dict[str, str]) -> Any:
    """A parsed tree with its variables filled in. Raises Missing with compose's own words."""
    if isinstance(value, dict):
        return {k: interpolate(v, env) for k, v in value.items()}
    if isinstance(value, list):
        return [interpolate(v, env) for v in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name, how = match["name"] or match["bare"], match["how"] or ""
        found = env.get(name)
        lacking = found is None or (":" in how and not found)
        if lacking and how.endswith("?"):
            raise MissingError(f"{name}: {match['text']}")
        return (match["text"] if how else "") if lacking else str(found)

    return VARIABLE.sub(fill, value)


def raw() -> dict[str, Any]:
    return yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())


def read(env: dict[str, str]) -> dict[str, Any]:
    """The file with an environment (a `.env`) filled in, as strings where compose makes strings."""
    tree = interpolate({k: v for k, v in raw().items() if not k.startswith("x-")}, env)
    for service in tree["services"].values():
        service["environment"] = {k: "" if v is None else str(v) for k, v in (service.get("environment") or {}).items()}
    return tree


def variables(text: str) -> dict[str, set[str]]:
    """Every variable of the file by name, with the ways in which it is asked for (`:?`, `:-`, `-`, "")."""
    found: dict[str, set[str]] = {}
    for match in VARIABLE.finditer(text):
        if not match["escaped"]:
            found.setdefault(match["name"] or match["bare"], set()).add(match["how"] or "")
    return found


def dotenv(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def images() -> dict[str, dict[str, Any]]:
    """The Dockerfile's stages: `from`, `env`, `copies` (of the checkout), `user`, own and inherited."""
    text = re.sub(r"\\\n", " ", (PROJECT / "deploy" / "images" / "Dockerfile").read_text())
    stages: dict[str, dict[str, Any]] = {}
    now: dict[str, Any] = {}
    for line in (line.strip() for line in text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            parent = stages.get(base, {"env": {}, "copies": [], "user": ""})
            now = {"from": base, "env": dict(parent["env"]), "copies": list(parent["copies"]), "user": parent["user"]}
            stages[name] = now
        elif word == "ENV":
            pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
            now["env"] |= {k: v.replace("$PATH", now["env"].get("PATH", "")) for k, v in pairs.items()}
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            now["copies"] += sources
        elif word == "USER":
            now["user"] = rest
    return stages
