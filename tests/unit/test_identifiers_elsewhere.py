"""What identifies somebody, as other languages write it; and what reads alike and does not."""

import pytest

from clipft_tasks.data.identifiers import names_somebody


@pytest.mark.parametrize(
    "text",
    [
        "Befund von Frau Özdemir",
        "Dr. Müller hat befundet",
        "Pat. Jäger, Heinz: Erguss",
        "Patientin Änne Groß",
        "geb. 12. Mai 1956",
        "né le 3 mars 1961",
        "Mme Lefèvre, thorax",
        "nacida el 4 de julio de 1970",
        "Sig. Rossi, torace",
        "Fall-Nr. 20391",
        "Dossier n° 445566",
        "患者番号：8842",
        "1956年3月12日 胸部",
    ],
)
def test_forms_of_other_languages_are_found(text):
    assert names_somebody(text)


@pytest.mark.parametrize(
    "text",
    [
        "patient CT scan of the chest",
        "Patient nach Sturz, Fraktur links",
        "a fall 2 m from a ladder",
        "thorax de face",
        "Erguss links, 3 cm",
        "née de la cavité",
        "胸部X線写真",
        "a patient with Fibrosis",
    ],
)
def test_what_only_reads_alike_is_not(text):
    assert not names_somebody(text)
