"""Texts that may name a person: dates, record numbers, addresses, names after a title, and names of a list.

A search for the usual forms, not proof that nobody is named: what is found is for a person to look at.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ..core.errors import ClipftError

MONTHS = "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?"
MONTHS_ELSEWHERE = (
    "januar|jänner|februar|märz|mai|juni|juli|august|september|oktober|dezember|janvier|février|mars|avril|juin|juillet|août|septembre|"
    "octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre|gennaio|febbraio|"
    "aprile|maggio|giugno|luglio|settembre|ottobre|dicembre"
)
NAME = r"[^\W\d_a-zß-öø-ÿ][^\W\d_A-ZÀ-ÖØ-Þ]+"  # a word that begins with a capital, and goes on with none
PATTERNS = (
    r"\b(?:19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}\b",
    r"\b\d{1,2}[-/.]\d{1,2}[-/.](?:(?:19|20)\d\d|\d\d)\b",
    r"\b(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\b",
    rf"(?i:\b\d{{1,2}}(?:st|nd|rd|th)?[ .-]+(?:{MONTHS})\b\.?,?[ -]*(?:\d{{4}}|\d{{2}})\b)",
    rf"(?i:\b(?:{MONTHS})\.? +\d{{1,2}}(?:st|nd|rd|th)?,? +\d{{4}}\b)",
    r"(?i:\b(?:(?:mrn|accession|ssn|nhs)(?: ?(?:id|no|nr|number))?|(?:record|patient|case|medical record) ?(?:id|no|nr|number))\b"
    r"[ .:#]*[a-z]{0,3}[- ]?\d{2,})",
    r"\b\d{3}-\d{2}-\d{4}\b",
    r"\b\d{7,}\b",
    r"\b[\w.+-]+@[\w-]+\.[\w.]+\b",
    r"(?<!\w)\+?\(?\d{2,4}\)?[ -]\d{3,4}[ -]\d{3,4}\b",
    r"\b[A-Z][A-Za-z]+\^[A-Z]",
    rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Herrn?|Frau|Mme|Mlle|Madame|Monsieur|Sra?|Señora?|Sig|Signora?|Dhr|Mevr)\b\.? +{NAME}",
    rf"\b(?:[Pp]at(?:ient(?:in|e)?)?|[Nn]ame|[Nn]om|[Nn]ombre|[Pp]t)\b\.?:? +{NAME},? +{NAME}\b",
    r"(?i:\b(?:born|dob|date of birth|geb|geboren|geburtsdatum|née?|né le|nacid[oa]|nat[oa] il|data di nascita)\b[ .:]*(?:on |am |le |el |il )?\d)",
    rf"(?i:\b\d{{1,2}}\.? +(?:de )?(?:{MONTHS_ELSEWHERE})\.? +(?:de )?\d{{4}}\b)",
    r"(?i:\b(?:fall|pat(?:ienten)?|auftrags?)[ .-]*(?:nr|nummer|id|no)\b\.?[ .:#-]*[a-z]{0,3}\d{2,})",
    r"(?i:\b(?:dossier|numéro|nss|svnr|ipp|nhc)[ .:]*(?:n°|nº)?[ .:#]*\d{4,})",
    r"(?:19|20)\d\d年\d{1,2}月\d{1,2}日|患者(?:ID|番号|名)[:： ]*\w+|\w{2,}様(?!\w)",
)
ANY = re.compile("|".join(PATTERNS))


def names_of(path: str) -> frozenset[str]:
    """The names of a file, a name a line. Raises ClipftError where it cannot be read."""
    if not path:
        return frozenset()
    try:
        lines = Path(path).expanduser().read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise ClipftError(
            f"list of names {path}", f"it cannot be read: {error}", "Check data.names_file.", code="source.unreadable_file"
        ) from error
    return frozenset(line.strip().casefold() for line in lines if line.strip())


def names_somebody(text: str, names: Collection[str] = ()) -> bool:
    """Whether a text has a form that identifies somebody, or a name of the list."""
    if ANY.search(text):
        return True
    if not names:
        return False
    words = re.findall(r"\w+", text.casefold())
    longest = max(len(name.split()) for name in names)
    return any(" ".join(words[i : i + n]) in names for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def found(texts: Iterable[str], path: str = "") -> dict[str, bool]:
    """Of each different text whether it may name a person."""
    names = names_of(path)
    return {text: names_somebody(text, names) for text in set(texts)}
