"""What a data set must meet, as Great Expectations: one suite a domain, run on the frame of rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..contracts.dataset import RowsChecked
from ..domains import Checks, Domain
from ..spec import DataSpec
from . import identifiers, splits

if TYPE_CHECKING:
    from great_expectations.core import ExpectationValidationResult

SMALLEST = 16  # pixels: a set whose images all have one size is made that way, down to here
EVEN_SHARE = 0.1  # of an even share: what a class must have where there are too many for the domain's limit
EXAMPLES = 20  # rows named per failed check


@dataclass(frozen=True)
class Check:
    """One expectation's outcome, in a person's words."""

    title: str
    passed: bool
    observed: str
    limit: str
    rows: list[str]  # names of offending rows, at most EXAMPLES


def look(frame: pd.DataFrame, domain: Domain, options: DataSpec, part: int = 0, of: int = 1) -> RowsChecked:
    """What takes long to find out of rows, or every `of`-th of them: which images are alike, and whether texts may name a person.

    Args:
        frame: the whole manifest, whatever the part.
    Returns: without tokens.
    """
    pairs = splits.near_duplicates(frame["phash"].tolist(), domain.near_duplicate_bits, domain.augment, part, of)
    named: list[int] = []
    if domain.checks.identifiers:
        rows = range(part, len(frame), of)
        said = frame[["caption", "label"]].iloc[rows]
        found = identifiers.found([*said["caption"], *said["label"]], options.names_file)
        either = said["caption"].map(found) | said["label"].map(found)
        named = [row for row, names in zip(rows, either, strict=True) if names]
    return RowsChecked(part=part, of=of, rows=len(frame), pairs=pairs, named=named)


def describe(frame: pd.DataFrame, parts: Sequence[RowsChecked]) -> tuple[pd.DataFrame, int]:
    """The manifest plus the columns that suite and report look at: tokens, truncated, leaks, side, names_somebody, and alike: the group
    of near-duplicates; and how many tokens the start model reads.

    Args:
        parts: what was found out of all rows.
    """
    pairs = sorted(pair for done in parts for pair in done.pairs)
    tokens, named = np.zeros(len(frame), int), np.zeros(len(frame), bool)
    for done in parts:
        tokens[done.part :: done.of] = done.tokens
        named[done.named] = True
    component = splits.components(len(frame), pairs, frame["group"].tolist())
    alike = splits.components(len(frame), pairs, [""] * len(frame))
    across = frame.groupby(component)["split"].transform("nunique") > 1
    context = min(done.context for done in parts)
    described = frame.assign(
        tokens=tokens,
        truncated=tokens > context,
        leaks=across,
        alike=alike,
        side=frame[["width", "height"]].min(axis=1),
        names_somebody=named,
    )
    return described, context


def label_suspects(frame: pd.DataFrame) -> int:
    """How many images look like one that has another class: near-duplicates of which one label is wrong, perhaps.

    Args:
        frame: from `describe`.
    """
    labeled = frame[frame["label"] != ""]
    several = labeled.groupby("alike")["label"].transform("nunique") > 1
    return int(labeled.loc[several, "sha256"].nunique())


def limits_of(domain: Domain, options: DataSpec, frame: pd.DataFrame) -> Checks:
    """The domain's limits as this data set meets them: those that the spec names, and none that shuts out a whole use.

    Images of one small size (28 px) are made so on purpose; 200 classes cannot each have a hundredth of the rows.
    """
    limits = domain.checks
    sides, classes = frame["side"].unique(), frame.loc[frame["label"] != "", "label"].nunique()
    side = int(sides[0]) if len(sides) == 1 and sides[0] >= SMALLEST else limits.min_side
    share = min(limits.min_class_share, EVEN_SHARE / classes if classes else 1.0)
    return replace(
        limits,
        min_side=min(side, limits.min_side) if options.min_side is None else options.min_side,
        min_class_share=share if options.min_class_share is None else options.min_class_share,
    )


def check(
    frame: pd.DataFrame, domain: Domain, context: int, rejected_share: float, options: DataSpec = DataSpec()
) -> list[Check]:
    """Run the domain's suite. `frame` comes from `describe`."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    for noisy in ("great_expectations", "great_expectations.data_context"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    limits = limits_of(domain, options, frame)
    context_gx = gx.get_context(mode="ephemeral")
    context_gx.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    batch = context_gx.data_sources.add_pandas("rows").add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")

    labeled = frame["label"] != ""
    share = frame.loc[labeled, "label"].value_counts(normalize=True)
    summary = frame.assign(rejected_share=rejected_share, smallest_class=share.min() if len(share) else 1.0)
    of_one_image = frame.loc[labeled].groupby("sha256")["label"].transform("nunique") > 1
    summary["contradicts"] = of_one_image.reindex(frame.index, fill_value=False)
    summary["split_rows"] = frame.groupby("split")["split"].transform("size")

    expectations: list[tuple[str, str, gxe.Expectation]] = [
        ("Enough rows", f"at least {limits.min_rows}", gxe.ExpectTableRowCountToBeBetween(min_value=limits.min_rows)),
        ("Every row has a key of its own", "unique", gxe.ExpectColumnValuesToBeUnique(column="key")),
        (
            "Share of rows that were rejected",
            f"at most {limits.max_rejected_share:.0%}",
            gxe.ExpectColumnMaxToBeBetween(column="rejected_share", max_value=limits.max_rejected_share),
        ),
        (
            "Shorter side of the images, pixels",
            f"{limits.min_side} to {limits.max_side} (data.min_side)",
            gxe.ExpectColumnValuesToBeBetween(column="side", min_value=limits.min_side, max_value=limits.max_side),
        ),
        (
            "Color mode of the images",
            ", ".join(limits.modes),
            gxe.ExpectColumnValuesToBeInSet(column="mode", value_set=list(limits.modes)),
        ),
        (
            "Captions are not empty",
            "at least one letter or emoji",
            gxe.ExpectColumnValuesToMatchRegex(column="caption", regex=r"\w|[\u2600-\u27BF\U0001F000-\U0001FAFF]"),
        ),
        (
            f"Captions inside the tokenizer's context of {context}",
            f"at least {1 - limits.max_truncated_share:.0%} of rows",
            gxe.ExpectColumnValuesToBeBetween(column="tokens", max_value=context, mostly=1 - limits.max_truncated_share),
        ),
        *(
            [
                (
                    "Captions and labels name nobody",
                    "no date, record number, address or name (data.names_file adds names)",
                    gxe.ExpectColumnValuesToBeInSet(column="names_somebody", value_set=[False]),
                )
            ]
            if limits.identifiers
            else []
        ),
        (
            "No image in two classes",
            "0 rows (same bytes)",
            gxe.ExpectColumnValuesToBeInSet(column="contradicts", value_set=[False]),
        ),
        (
            "No group and no near-duplicate in two splits",
            f"0 rows (within {domain.near_duplicate_bits} of 256 hash bits)",
            gxe.ExpectColumnValuesToBeInSet(column="leaks", value_set=[False]),
        ),
        (
            "Splits are named as they should be",
            "train, val, test",
            gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=["train", "val", "test"]),
        ),
        (
            "Share of the rarest class",
            f"at least {limits.min_class_share:.2%} (data.min_class_share)",
            gxe.ExpectColumnMinToBeBetween(column="smallest_class", min_value=limits.min_class_share),
        ),
    ]
    suite = gx.ExpectationSuite(name=domain.name)
    for position, (_, _, expectation) in enumerate(expectations):
        expectation.meta = {"position": position}
        suite.add_expectation(expectation)
    result = batch.get_batch({"dataframe": summary.reset_index(drop=True)}).validate(
        suite, result_format={"result_format": "COMPLETE", "include_unexpected_rows": False}
    )
    by_position = {r.expectation_config.meta["position"]: r for r in result.results if r.expectation_config}
    checks = [_outcome(title, limit, by_position[i], frame) for i, (title, limit, _) in enumerate(expectations)]
    if not checks[-1].passed and len(share):  # the rarest class has a name
        checks[-1] = replace(checks[-1], rows=[str(share.idxmin())])
    return checks


def _outcome(title: str, limit: str, result: "ExpectationValidationResult", frame: pd.DataFrame) -> Check:
    if result.exception_info and result.exception_info.get("raised_exception"):
        return Check(title, False, f"could not be checked: {result.exception_info.get('exception_message')}", limit, [])
    found = result.result
    rows: list[str] = []
    if "unexpected_count" in found:
        share = found.get("unexpected_percent") or 0.0
        observed = f"{found['unexpected_count']} rows outside ({share:.2f}%)"
        rows = [frame["name"].iloc[i] for i in (found.get("unexpected_index_list") or [])[:EXAMPLES]]
    else:
        value = found.get("observed_value")
        observed = f"{value:.4g}" if isinstance(value, float) else str(value)
    return Check(title, bool(result.success), observed, limit, rows)
