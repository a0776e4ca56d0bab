"""The page that goes with the numbers: what was found, what to look at, what to send."""

from collections.abc import Mapping

from .machine import Facts

SEND = """Send `{name}.json` and this page: open an issue named "bench-mac: {chip}" where you got this project, and attach both. They hold
no name of yours, of this machine or of a folder, and no image; read them before you do. Where a section below says that it failed,
its last line is what we need most."""
PARITY = {"device against host": 1e-4, "parts of 3 against whole": 1e-4, "chunked attention": 1e-4, "sliced attention": 1e-4,
          "blocks run again": 1e-5, "fp16": 0.05, "bf16": 0.3}  # fmt: skip


def findings(found: Mapping[str, Facts]) -> list[str]:
    """What somebody who knows this software would look at first."""
    out = []
    for name, facts in found.items():
        if facts.get("failed"):
            out.append(f"**{name}** failed: {facts['failed']}")
    if missing := found.get("operators", {}).get("without_declared_kernel"):
        out.append(f"operators without a kernel, which run on the CPU: {missing}")
    for name, most in PARITY.items():
        value = found.get("parity", {}).get(name)
        if isinstance(value, float) and not value <= most:
            out.append(f"gradients, {name}: off by {value:.2g}, at most {most:g} is expected")
    if found.get("parity", {}).get("fused AdamW clips and skips by itself") is False:
        out.append("fused AdamW does not skip a step by itself here: training waits for each step's metrics")
    for name in ("fp16", "bf16"):
        ratio = found.get("precision", {}).get(f"{name} image step")
        if isinstance(ratio, float):
            out.append(f"{name} steps are {ratio:.2f} times as fast as fp32's")
    before, after = (found.get(name, {}) for name in ("speed", "speed again"))
    for name, value in after.items():
        first = before.get(name)
        if name.endswith("pairs a second") and isinstance(first, float) and isinstance(value, float) and value < 0.9 * first:
            out.append(f"{name}: {first:.1f} at first, {value:.1f} in the end; the chip was slowed down, or something else ran")
    return out


def write(name: str, found: Mapping[str, Facts], seconds: Mapping[str, float], total: float) -> str:
    """The page, in Markdown."""
    chip = str(found.get("environment", {}).get("chip", "unknown"))
    looked = findings(found)
    lines = [f"# {chip}", "", SEND.format(name=name, chip=chip), "", "## To look at", ""]
    lines += [f"- {line}" for line in looked] or ["- nothing out of the ordinary"]
    for section, facts in found.items():
        lines += [
            "",
            f"## {section[0].upper()}{section[1:]} ({seconds.get(section, 0.0):.0f} s)",
            "",
            "| what | found |",
            "|---|---|",
        ]
        lines += [f"| {key} | {_cell(value)} |" for key, value in facts.items()]
    return "\n".join([*lines, "", f"{total:.0f} s in all.", ""])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    return str(value).replace("|", "/").replace("\n", "<br>") or "–"
