"""How well wrong labels are found, beside cleanlab on the same embeddings: python -m bench.label_errors [--seeds N] [--data NAME …]

5% of a set's labels are given another class at random. Precision at n: the share of the n rows ranked first that are among the n that
were changed. cleanlab gets held-out probabilities of scikit-learn's logistic regression from the same embeddings of the starter in
the same grouped folds, at three strengths (1 is the default of scikit-learn, and of cleanlab's tutorials), and ranks by each of its three scores;
the best of the nine, chosen by the result, which favors it, stands in the table. Then a reviewer who knows the truth corrects the first 2n rows: balanced
accuracy of a linear probe on the test rows' true labels, trained on true, changed and corrected labels of the training rows. It is
weakly regularized (logistic regression on standardized embeddings, C = 1, as in evaluation).

Captions: those of molecules are names and do not repeat the class, so the review compares them too; the last column is with them.
About 6 minutes on one core. The last line is JSON.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections import defaultdict

import numpy as np

DATA = {"elpv": ("industrial", "elpv:mono"), "molecules": ("scientific", "molecules:2000")}
SHARE = 0.05
STRENGTHS = (0.003, 0.01, 1.0)
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
Embedded = dict[str, np.ndarray]


def embedded(name: str) -> Embedded:
    """A set's labeled rows: embeddings of images and captions, zero-shot shares, labels, groups, splits."""
    from clipft_tasks.data import versioning
    from clipft_tasks.evaluate import review
    from clipft_tasks.model import build
    from clipft_tasks.spec import RunSpec
    from clipft_tasks.stages import ingest, version
    from clipft_tasks.train import start_defaults

    domain, source = DATA[name]
    spec = RunSpec.from_flat({"domain": domain, "source": source})
    if not versioning.versions(domain):
        version.run(spec, ingest.run(spec).staging)
    dataset = versioning.fetch(versioning.find("", domain))
    clip = build.load("starter", domain=domain)
    spec = start_defaults.settle(spec, clip)
    found = review.embedded(dataset, build.prepare(clip, spec), spec.resolution.side, 64)
    extra = {"caption": found.embeddings["caption"]} if "caption" in found.embeddings else {}
    return {
        "image": found.embeddings["image"],
        "prompts": found.said["prompts"],
        "labels": found.labels,
        "groups": np.unique(found.groups, return_inverse=True)[1],
        "split": found.frame["split"].to_numpy(dtype=str),
    } | extra


def flipped(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which 5% are another class, and which rows that are."""
    rng, classes = np.random.default_rng(seed), int(labels.max()) + 1
    rows = rng.choice(len(labels), round(SHARE * len(labels)), replace=False)
    changed = labels.copy()
    changed[rows] = (changed[rows] + rng.integers(1, classes, len(rows))) % classes
    return changed, rows


def cleanlab_orders(data: Embedded, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows by how doubtful cleanlab finds them, by the strength of the regression and the score."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from clipft_tasks.evaluate import label_errors

    found = {}
    for strength in STRENGTHS:
        shares = np.zeros((len(labels), int(labels.max()) + 1))
        for train, held in label_errors.folds_of(labels, data["groups"]):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
            model.fit(data["image"][train], labels[train])
            shares[np.ix_(held, model.classes_)] = model.predict_proba(data["image"][held])
        for score in SCORES:
            found[f"C={strength:g} {score}"] = np.argsort(get_label_quality_scores(labels, shares, method=score), kind="stable")
    return found


def linear_probe_score(data: Embedded, labels: np.ndarray) -> float:
    """Balanced accuracy on the test rows' true labels of a linear probe that learned `labels` of the other rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from clipft_tasks.evaluate.metrics import balanced_accuracy

    test = data["split"] == "test"
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(data["image"][~test], labels[~test])
    return balanced_accuracy(data["labels"][test], model.predict(data["image"][test]))


def one(data: Embedded, seed: int) -> dict[str, float]:
    """Every number of one seed."""
    from clipft_tasks.evaluate import label_errors

    changed, rows = flipped(data["labels"], seed)
    n = len(rows)

    def precision(order: np.ndarray) -> float:
        return float(np.isin(order[:n], rows).mean())

    found = {f"cleanlab {name}": precision(order) for name, order in cleanlab_orders(data, changed).items()}
    said = {"prompts": data["prompts"]}
    mine = label_errors.assess(changed, data["groups"], {"image": data["image"]}, said).order
    found["clipft"] = precision(mine)
    if "caption" in data:
        both = {name: data[name] for name in ("image", "caption")}
        mine = label_errors.assess(changed, data["groups"], both, said).order
        found["clipft with captions"] = precision(mine)
    reviewed = changed.copy()
    reviewed[mine[: 2 * n]] = data["labels"][mine[: 2 * n]]
    found |= {
        "true": linear_probe_score(data, data["labels"]),
        "changed": linear_probe_score(data, changed),
        "reviewed": linear_probe_score(data, reviewed),
    }
    found["corrected"] = float(np.isin(rows, mine[: 2 * n]).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    out: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("CLIPFT_HOME", home)
        for name in asked.data:
            data, runs = embedded(name), defaultdict(list)
            for seed in range(asked.seeds):
                for key, value in one(data, seed).items():
                    runs[key].append(value)
            mean = {key: float(np.mean(values)) for key, values in runs.items()}
            best = max((key for key in mean if key.startswith("cleanlab")), key=lambda key: mean[key])
            ahead = np.subtract(runs["clipft"], runs[best])
            lost = mean["true"] - mean["changed"]
            mean |= {
                "rows": float(len(data["labels"])),
                "changed rows": float(round(SHARE * len(data["labels"]))),
                "ahead": float(ahead.mean()),
                "ahead, standard error": float(ahead.std(ddof=1) / len(ahead) ** 0.5) if len(ahead) > 1 else float("nan"),
                "lost": lost,
                "restored share": (mean["reviewed"] - mean["changed"]) / lost,
            }
            out[name] = mean
            shown(name, mean, best, asked.seeds)
    print(json.dumps(out))


def shown(name: str, mean: dict[str, float], best: str, seeds: int) -> None:
    print(f"\n{name}: {mean['rows']:.0f} labels, n = {mean['changed rows']:.0f} changed, {seeds} seeds")
    print("| ranked by | precision at n |\n|---|---|")
    for key in ("clipft", "clipft with captions", best, "cleanlab C=1 self_confidence"):
        if key in mean:
            print(f"| {key} | {mean[key]:.3f} |")
    print(f"ahead of {best}: {mean['ahead']:+.3f} (standard error {mean['ahead, standard error']:.3f})")
    print(
        f"linear probe: {mean['true']:.3f} with true labels, {mean['changed']:.3f} with changed ones, {mean['reviewed']:.3f} after 2n "
        f"reviews: {mean['restored share']:.0%} of what was lost; {mean['corrected']:.0%} of the changed labels corrected",
        flush=True,
    )


if __name__ == "__main__":
    main()
