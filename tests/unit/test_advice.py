"""Before it trains, a run says where its values are not for its start model or its data."""

from fixtures.plans import lab, prepared, start  # noqa: F401

from clipft_tasks.train.advice import advice


def said(lab, steps: int = 1000, **fields: object) -> str:
    spec = lab.spec(**{"train.learning_rate": 2e-4} | fields)
    return " ".join(advice(spec, prepared(lab.start, spec), steps))


def test_the_starters_rate_is_too_high_for_a_transformer_unless_only_updates_train(lab):
    large = {"resolution.train": 96}
    assert "train.learning_rate = 0.0002 is for the starter" in said(lab, **large)
    assert said(lab, **large, **{"train.learning_rate": 1e-5}) == said(lab, **large, **{"train.lora_rank": 4}) == ""


def test_few_steps_and_few_patches_are_said(lab):
    assert "12 steps are few" in said(lab, 12)
    assert "sees 4 x 4 patches" in said(lab) and "patches" not in said(lab, **{"resolution.train": 64})
