"""Names of licenses as SPDX writes them (https://spdx.org/licenses): other tools know what they mean."""

import re

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

# One word that begins as licenses that everybody knows do: CC-BY-4, GPLv3, Apache2.
IDENTIFIER = re.compile(r"(cc0|cc-|ccby|gpl|lgpl|agpl|apache|bsd|mpl|odbl|odc-|pddl|eupl)[a-z0-9.+-]*", re.IGNORECASE)


def canonical_license(text: str) -> str:
    """An SPDX expression in its usual spelling; a sentence as it is. Raises ValueError for what reads like an identifier and is none."""
    text = " ".join(text.split())
    try:
        return str(canonicalize_license_expression(text)) if text else ""
    except InvalidLicenseExpression:
        if not IDENTIFIER.fullmatch(text):
            return text
    raise ValueError(
        f"{text!r} is no SPDX identifier: write one of https://spdx.org/licenses, such as CC-BY-4.0 or CC0-1.0, LicenseRef- and a "
        "name of your own, or a sentence"
    )
