"""What makes two trainings the same work: everything that changes what comes out, and nothing else."""

from types import SimpleNamespace

import pytest

from clipft_tasks.spec import RunSpec
from clipft_tasks.train import recipe

MINE = """
from clipft_tasks.domains import Augment, Domain
DOMAIN = Domain("mine", "Mine", prompts=("a photo of a {}.", "%(prompt)s {}"), caption="a {}.", gray_bits=%(gray)s,
                augment=Augment(crop_min=%(crop)s, prompt_share=0.5), general_set="%(general)s", drift_tolerance=%(drift)s)
"""
FIRST = {"prompt": "x", "gray": 8, "crop": 0.9, "general": "everyday", "drift": 1.0}


@pytest.fixture
def key(home, tmp_path, own_domains):
    def of(**edited: object) -> str:
        file = tmp_path / f"mine_{len(list(tmp_path.glob('*.py')))}.py"
        file.write_text(MINE % (FIRST | edited))
        own_domains(file)
        return recipe.work_key(RunSpec.from_flat({"domain": "mine"}), SimpleNamespace(revision="r"), "digest")

    return of


@pytest.mark.parametrize("edited", [{"prompt": "y"}, {"gray": 0}, {"crop": 0.2}, {"general": "mine/v1"}], ids=str)
def test_an_edited_domain_makes_other_work_under_the_same_name(key, edited):
    assert key() != key(**edited)


def test_what_training_does_not_look_at_makes_no_other_work(key):
    assert key() == key() == key(drift=2.0)
