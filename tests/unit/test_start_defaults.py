"""What a run leaves open follows from its start model."""

import pytest
from fixtures.models import IMAGE, OF_ONE_SIDE, TEXTS, write_model

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.model import build
from clipft_tasks.spec import RunSpec
from clipft_tasks.train.start_defaults import decide, settle

TEXT = TEXTS["of CLIP"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    made = {}

    def of(kind: str) -> build.Clip:
        if kind not in made:
            folder = tmp_path_factory.mktemp("start") / "model"
            vision, _ = (IMAGE | OF_ONE_SIDE)[kind]
            made[kind] = write_model(folder, vision, TEXT)
        return build.load(str(made[kind]))

    return of


@pytest.mark.parametrize(
    ("kind", "side", "evaluated", "rate", "beta2"),
    [
        ("vision transformer", 64, [48, 64, 80], 1e-5, 0.98),
        ("resnet with attention pool", 64, [32, 64, 96], 1e-5, 0.999),
        ("timm transformer, map pool (SigLIP)", 160, [112, 160, 208], 1e-5, 0.98),
        ("timm transformer, rotary (EVA02)", 224, [168, 224, 280], 1e-5, 0.98),
        ("convolutional, batch norm (starter)", 160, [112, 160, 208], 2e-4, 0.999),
        ("relative positions", 160, [160], 1e-5, 0.98),
    ],
)
def test_sizes_rate_and_beta_are_those_of_the_kind(start, kind, side, evaluated, rate, beta2):
    spec = settle(RunSpec.from_flat({"domain": "general"}), start(kind))
    assert (spec.resolution.side, spec.resolution.evaluated) == (side, evaluated)
    assert (spec.train.peak_rate, spec.train.betas, spec.train.epsilon) == (rate, (0.9, beta2), 1e-6 if beta2 == 0.98 else 1e-8)


def test_every_value_has_its_reason_and_a_given_one_stays(start):
    given = {"resolution.train": 96, "resolution.evaluate": [96], "train.learning_rate": 3e-5, "train.beta2": 0.95}
    clip = start("vision transformer")
    assert decide(RunSpec.from_flat(given), clip) == {}
    decided = decide(RunSpec(), clip)
    assert set(decided) == set(given) and all(decision.reason for decision in decided.values())
    assert "arxiv.org" in decided["train.learning_rate"].reason


def test_a_rule_of_the_gate_names_a_size_that_is_evaluated_too(start):
    spec = RunSpec.from_flat({"gate.rules": ["score at 128 >= 0.2"]})
    assert settle(spec, start("vision transformer")).resolution.evaluated == [48, 64, 80, 128]


def test_low_rank_updates_learn_faster(start):
    assert settle(RunSpec.from_flat({"train.lora_rank": 4}), start("vision transformer")).train.peak_rate == 2e-4


def test_another_patch_sets_what_sides_are_multiples_of(start):
    spec = settle(RunSpec.from_flat({"model.patch": 14}), start("vision transformer"))
    assert spec.resolution.side == 70 and all(size % 14 == 0 for size in spec.resolution.evaluated)


def test_a_domains_factor_is_in_the_rate_once(start):
    """Settled again, or read from a file, it does not grow."""
    clip = start("convolutional, batch norm (starter)")
    spec = settle(RunSpec.from_flat({"domain": "scientific"}), clip)
    again = settle(RunSpec.model_validate(spec.model_dump(mode="json")), clip)
    assert spec.train.peak_rate == again.train.peak_rate == 4e-4 and again == spec
    assert settle(RunSpec.from_flat({"domain": "scientific", "train.learning_rate": 1e-3}), clip).train.peak_rate == 1e-3


def test_work_of_earlier_releases_is_found_again(start):
    """Their specs hold what these fields were by default, and had no others."""
    clip = start("convolutional, batch norm (starter)")
    spec = settle(RunSpec.from_flat({"domain": "scientific", "resolution.train": 128}), clip)
    stored = spec.model_dump(mode="json")
    del stored["train"]["rate_factor"], stored["train"]["beta2"]
    old = RunSpec.model_validate(stored).settled({"train.beta2": 0.999})
    assert spec.identity("finetune", "train") == old.identity("finetune", "train")


def test_an_open_field_is_never_guessed():
    for read in (lambda spec: spec.resolution.side, lambda spec: spec.resolution.evaluated, lambda spec: spec.train.peak_rate):
        with pytest.raises(ClipftError) as refused:
            read(RunSpec())
        assert refused.value.code == "spec.open"
