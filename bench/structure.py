"""The structure in numbers, of this tree and of an earlier one: python -m bench.structure [--base COMMIT]

dict[str, Any], Any     undeclared types in what is shipped and run (clipft_tasks, serving, deploy, plugins, dags, examples, bench)
files naming a device   of the library and the server: "cuda", "mps" or torch.cuda, torch.mps in code
the chain declared      files (not tests or pages) that name at least ten stages of the chain as data
packages in circles     packages of the library that import one another, directly or around a corner
files over 400 lines    of everything but tests
"""

import argparse
import ast
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[1]
SHIPPED = ("clipft_tasks", "serving", "deploy", "plugins", "dags", "examples", "bench")
DEVICES = {"cuda", "mps"}
STAGES = {
    "ingest", "validate", "version", "plan", "tune", "finetune", "blend", "evaluate", "gate", "register", "rollout", "promote",
    "deploy", "verify",
}  # fmt: skip


def parsed(root: Path, *folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            yield file, ast.parse(file.read_text("utf-8"))


def undeclared(root: Path) -> tuple[int, int]:
    """How often `dict[str, Any]` (or Mapping) is written, and `Any` by itself."""
    dicts = alone = 0
    for _, tree in parsed(root, *SHIPPED):
        inside = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ("dict", "Mapping"):
                values = node.slice.elts[1:] if isinstance(node.slice, ast.Tuple) else []
                if any(isinstance(v, ast.Name) and v.id == "Any" for v in values):
                    dicts += 1
                    inside |= {id(v) for v in values}
        alone += sum(isinstance(n, ast.Name) and n.id == "Any" and id(n) not in inside for n in ast.walk(tree))
    return dicts, alone


def naming_devices(root: Path) -> list[str]:
    found = []
    for file, tree in parsed(root, "clipft_tasks", "serving"):
        literal = any(isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value in DEVICES for n in ast.walk(tree))
        torchs = any(
            isinstance(n, ast.Attribute) and n.attr in DEVICES and ast.unparse(n.value) in ("torch", "torch.backends")
            for n in ast.walk(tree)
        )
        if literal or torchs:
            found.append(str(file.relative_to(root)))
    return found


def declaring_the_chain(root: Path) -> list[str]:
    found = []
    for file, tree in parsed(root, *SHIPPED):
        if file.name == Path(__file__).name:
            continue
        named = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)} & STAGES
        named |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)} & STAGES
        if len(named) >= 10:
            found.append(str(file.relative_to(root)))
    pipeline = root / "dvc.yaml"
    if pipeline.exists() and len(STAGES & set(yaml.safe_load(pipeline.read_text())["stages"])) >= 10:
        found.append("dvc.yaml")
    return found


def in_circles(root: Path) -> list[str]:
    """Packages (or modules) directly under clipft_tasks from which imports lead back to themselves."""
    library = root / "clipft_tasks"
    arrows: dict[str, set[str]] = {}
    for file, tree in parsed(root, "clipft_tasks"):
        parts = file.relative_to(library).with_suffix("").parts
        here = arrows.setdefault(parts[0], set())
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                base = ["clipft_tasks", *parts][: 1 + len(parts) - node.level]
            elif node.module and node.module.split(".")[0] == "clipft_tasks":
                base = []
            else:
                continue
            target = [*base, *(node.module.split(".") if node.module else [])]
            names = [target[1]] if len(target) > 1 else [a.name for a in node.names]
            here |= {n for n in names if (library / n).is_dir() or (library / f"{n}.py").is_file()} - {parts[0]}
    reach = {name: set(to) for name, to in arrows.items()}
    for _ in arrows:
        for name in reach:
            reach[name] |= {far for near in reach[name] for far in reach.get(near, set())}
    return sorted(name for name, far in reach.items() if name in far and not name.startswith("_"))


def measured(root: Path) -> dict[str, int]:
    dicts, alone = undeclared(root)
    return {
        "dict[str, Any]": dicts,
        "Any": alone,
        "files naming a device": len(naming_devices(root)),
        "places that declare the chain": len(declaring_the_chain(root)),
        "packages in circles": len(in_circles(root)),
        "files over 400 lines": sum(len(f.read_text("utf-8").splitlines()) > 400 for f, _ in parsed(root, *SHIPPED)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", help="a commit to compare with")
    parser.add_argument("--names", action="store_true", help="print which files and packages too")
    asked = parser.parse_args()
    trees = {"now": measured(PROJECT)}
    if asked.base:
        packed = subprocess.run(["git", "archive", asked.base], cwd=PROJECT, capture_output=True, check=True).stdout
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=BytesIO(packed)) as archive:
                archive.extractall(folder)  # of our own making: no member leads outside
            trees = {asked.base[:8]: measured(Path(folder)), **trees}
    print("| | " + " | ".join(trees) + " |\n|---|" + "---|" * len(trees))
    for name in trees["now"]:
        print(f"| {name} | " + " | ".join(str(tree[name]) for tree in trees.values()) + " |")
    if asked.names:
        print("\nnaming a device:", *naming_devices(PROJECT), "\ndeclaring the chain:", *declaring_the_chain(PROJECT))
        print("in circles:", *in_circles(PROJECT))
    print(json.dumps(trees))


if __name__ == "__main__":
    main()
