"""Names of groups: which are one patient, part or lot, though they are spelled in two ways."""

import re
import unicodedata

KIN = "kin:"  # before what a row belongs to beside its group, in a ledger
BETWEEN = re.compile(r"(?<=[^\W\d_])[\s_-]+|[\s_-]+(?=[^\W\d_])")  # what separates, but not two numbers: 1-11 is not 11-1
ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def same_group(name: str) -> str:
    """A group's name as all its spellings have it: case, spaces, how letters are composed, leading zeros, `7.0` for `7`.

    To take two groups for one puts them into one split, which costs little; to take one for two tests on what was trained on.
    """
    plain = unicodedata.normalize("NFKC", name.removeprefix(KIN)).casefold().strip()
    plain = re.sub(r"(\d)\.0+", r"\1", plain) if re.fullmatch(r"\d+\.0+", plain) else plain
    return ZEROS.sub("", BETWEEN.sub("", plain))
