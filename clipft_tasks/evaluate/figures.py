"""The evaluation as a table and a plot."""

import io
from typing import Any

COLOURS = {"before": "#8a94a0", "champion": "#b8860b", "after": "#1769aa"}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a resolution, one column a model, values with 95% intervals."""
    who = [w for w in COLOURS if any(w in r for r in results)]
    metric = results[0]["metric"]
    lines = [f"| {metric} at | " + " | ".join(who) + " | gain |", "|---|" + "---|" * (len(who) + 1)]
    for r in results:
        cells = [
            f"{r[w][metric]['value']:.3f} [{r[w][metric]['low']:.3f}, {r[w][metric]['high']:.3f}]" if w in r else ""
            for w in who
        ]
        gain = r.get("gain_over_champion") or r["gain_over_before"]
        lines.append(
            f"| {r['resolution']} px | "
            + " | ".join(cells)
            + f" | {gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]]) -> bytes:
    """PNG: the gate's metric over picture size, one line a model, bars for 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metric = results[0]["metric"]
    figure, axes = pyplot.subplots(figsize=(6.4, 4), dpi=140)
    for who, colour in COLOURS.items():
        rows = [r for r in results if who in r]
        if rows:
            value = [r[who][metric]["value"] for r in rows]
            spread = [
                [r[who][metric]["value"] - r[who][metric]["low"] for r in rows],
                [r[who][metric]["high"] - r[who][metric]["value"] for r in rows],
            ]
            axes.errorbar([r["resolution"] for r in rows], value, yerr=spread, marker="o", capsize=3, color=colour, label=who)
    axes.set(
        xlabel="picture side, pixels", ylabel=metric.replace("_", " "), ylim=(0, 1), title=f"{results[0]['rows']} test rows"
    )
    axes.set_xticks([r["resolution"] for r in results])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, format="png")
    pyplot.close(figure)
    return out.getvalue()
