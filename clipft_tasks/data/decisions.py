"""What people decided of rows: kept with each version of a domain, and applied whenever a source is ingested again.

A decision is about an image that a source gives a label: the label stays, is another one, or the image is left out. Decisions apply
in the order in which they were made, so a later one may take back an earlier one. Where the source itself has changed the label since, a
decision does not fit any more, and is counted as such.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import pandas as pd

from ..contracts.review import DecisionsFile, Review
from ..core.errors import ClipftError
from ..domains import spoken

COLUMNS = ("sha256", "was", "action", "label", "captions", "by", "at", "version")
SHOWN = 5  # rows that an error names


@dataclass(frozen=True)
class Applied:
    """What decisions did to rows: the rows that are left, and how many were kept, relabeled, dropped, or are outdated."""

    rows: pd.DataFrame
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def sentence(self) -> str:
        """For the account; "" where no decision concerned a row."""
        if not self.counts.total():
            return ""
        n = self.counts
        said = f"Reviews: {n['relabel']} relabeled, {n['drop']} dropped, {n['keep']} confirmed."
        return f"{said} Of {n['outdated']} images the source changed the label since, which stands." if n["outdated"] else said


@dataclass(frozen=True)
class Decisions:
    """All decisions on a domain's rows in the order in which they were made: a frame of `COLUMNS`.

    `was` is the label at the time, `captions` JSON: what a relabeled image's captions become, by what they were.
    """

    frame: pd.DataFrame

    @classmethod
    def empty(cls) -> Self:
        return cls(pd.DataFrame({column: pd.Series(dtype="str") for column in COLUMNS}))

    @classmethod
    def of(cls, made: DecisionsFile, rows: pd.DataFrame, template: str) -> Self:
        """A person's decisions on a version, as they are kept.

        Args:
            rows: the version's manifest. template: caption of a row that has a label alone.
        Raises: ClipftError where a row is not in the version, or is decided twice.
        """
        keys = [decision.key for decision in made.decisions]
        unknown = sorted(set(keys) - set(rows["key"]))
        if unknown:
            raise ClipftError(
                f"decisions on {made.version}",
                f"{len(unknown)} of {len(keys)} rows are not in that version ({', '.join(unknown[:SHOWN])})",
                "Use the file that the version's own review page wrote.",
                code="review.unknown_rows",
            )
        by_key = rows.set_index("key")
        captions_of = rows.groupby(["sha256", "label"])["caption"].agg(list)
        words = _ClassCaptions.of(rows, template)
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for decision in made.decisions:
            row = by_key.loc[decision.key]
            about, label = (row["sha256"], row["label"]), decision.label
            action = "keep" if label == row["label"] else decision.action
            label = "" if action == "keep" else label
            said = {caption: words.reworded(caption, row["label"], label) for caption in captions_of[about]} if label else {}
            entry = (*about, action, label, json.dumps(said, sort_keys=True), made.by, decision.at, made.version)
            if found.setdefault(about, entry)[2:4] != entry[2:4]:
                raise ClipftError(
                    f"decisions on {made.version}",
                    f"row {row['name']} is decided twice, differently",
                    "Leave one of the two in the file.",
                    code="review.contradiction",
                )
        return cls(pd.DataFrame(list(found.values()), columns=list(COLUMNS)).astype("str"))

    @property
    def digest(self) -> str:
        """Of all of them, without who and when."""
        said = self.frame[["sha256", "was", "action", "label"]].to_csv(index=False)
        return hashlib.sha256(said.encode()).hexdigest()

    def since(self, before: "Decisions") -> Self:
        """Those that `before` does not hold."""
        known = set(before.frame.itertuples(index=False, name=None))
        return type(self)(self.frame[[row not in known for row in self.frame.itertuples(index=False, name=None)]])

    def joined(self, made: "Decisions", meanwhile: "Decisions", names: Mapping[str, str], *, skip: bool = False) -> Self:
        """These and those of another file.

        Args:
            meanwhile: of these, the ones that whoever made `made` did not know of. Where both decided the same of a row it is
                taken once.
            names: of images, by sha256, for errors.
            skip: where they contradict each other the earlier one stands, instead of an error.
        Raises: ClipftError naming the rows on which they contradict each other.
        """
        there = {(r.sha256, r.was): r for r in meanwhile.frame.itertuples()}
        new, against = [], []
        for row in made.frame.itertuples():
            other = there.get((row.sha256, row.was))
            if other is None:
                new.append(row.Index)
            elif (other.action, other.label) != (row.action, row.label):
                against.append(f"{names.get(row.sha256, row.sha256[:12])} ({row.was}): {_said(other)}, {_said(row)}")
        if against and not skip:
            more = f" and {len(against) - SHOWN} more" if len(against) > SHOWN else ""
            raise ClipftError(
                "decisions of two reviews",
                f"they contradict each other on {len(against)} rows: {'; '.join(against[:SHOWN])}{more}",
                "Agree on one, or let the earlier ones stand: --skip-conflicts.",
                code="review.contradiction",
            )
        return type(self)(pd.concat([self.frame, made.frame.loc[new]], ignore_index=True))

    def without(self, images: set[str]) -> Self:
        """These without those on some images (sha256)."""
        return type(self)(self.frame[~self.frame["sha256"].isin(images)].reset_index(drop=True))

    def settled(self, rows: pd.DataFrame) -> list[bool]:
        """Whether a person confirmed the label that a row has now, or gave it: nobody need look at it again."""
        last = {r.sha256: r.label or r.was for r in self.frame.itertuples() if r.action != "drop"}
        return [last.get(sha256) == label for sha256, label in zip(rows["sha256"], rows["label"], strict=True)]

    def applied(self, rows: pd.DataFrame, key_of: Callable[[pd.Series], str]) -> Applied:
        """Apply them to rows with sha256, label, caption and key.

        Args:
            key_of: the key of a row whose texts changed, given its columns.
        """
        of: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
        for r in self.frame.itertuples():
            of[r.sha256].append((r.was, r.action, r.label, r.captions))
        concerned = rows.index[rows["sha256"].isin(of.keys())]
        if not len(concerned):
            return Applied(rows)
        rows, counts, dropped = rows.copy(), Counter[str](), []
        fits: dict[str, bool] = {}
        for i in concerned:
            row = rows.loc[i]
            label, caption, done = row["label"], row["caption"], ""
            for was, action, new, captions in of[row["sha256"]]:
                if label == was:
                    done = action
                    if action == "relabel":
                        label, caption = new, json.loads(captions).get(caption, caption)
                elif action == "relabel" and label == new:
                    done = done or "keep"  # the source says by now what the review said
            fits[row["sha256"]] = fits.get(row["sha256"], False) or bool(done)
            counts[done] += bool(done)
            if done == "drop":
                dropped.append(i)
            elif (label, caption) != (row["label"], row["caption"]):
                rows.loc[i, ["label", "caption"]] = [label, caption]
                rows.loc[i, "key"] = key_of(rows.loc[i])
        counts["outdated"] = sum(not fitting for fitting in fits.values())
        left = rows.drop(index=dropped)
        return Applied(left[~left["key"].duplicated()].reset_index(drop=True), counts)

    def reviews(self) -> list[Review]:
        """Counted by version and person, in the order in which they came."""
        found = []
        for (version, by), own in self.frame.groupby(["version", "by"], sort=False):
            n = Counter(own["action"])
            found.append(
                Review(version=version, by=by, at=own["at"].max(), kept=n["keep"], relabeled=n["relabel"], dropped=n["drop"])
            )
        return found


def _said(row: object) -> str:
    """A decision in words, with who made it."""
    what = {"keep": "keep", "drop": "drop"}.get(row.action, f"relabel to {row.label!r}")  # type: ignore[attr-defined]
    return f"{row.by or 'somebody'}: {what}"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _ClassCaptions:
    """How captions word classes, so that none goes on to say the old one when its image's label changes.

    Attributes:
        shared: captions of several images: they say the class, and nothing of the image.
        usual: the caption that more than half of a class's rows have, by class.
    """

    template: str
    shared: set[str]
    usual: dict[str, str]

    @classmethod
    def of(cls, rows: pd.DataFrame, template: str) -> Self:
        spread = rows.groupby("caption")["sha256"].nunique()
        usual = {}
        for label, captions in rows.groupby("label")["caption"]:
            counts = captions.value_counts()
            if counts.iloc[0] > max(1, len(captions) / 2):
                usual[str(label)] = str(counts.index[0])
        return cls(template, set(spread.index[spread > 1]), usual)

    def reworded(self, caption: str, was: str, now: str) -> str:
        """What a caption becomes; the same where it does not speak of the class."""
        if caption in self.shared or caption == self.template.replace("{}", spoken(was)):
            return self.usual.get(now, self.template.replace("{}", spoken(now)))
        for word in {was, spoken(was)} - {""}:
            caption = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: spoken(now), caption, flags=re.IGNORECASE)
        return caption
