"""Variables of the surroundings that have no effect are told, with the setting that decides."""

from __future__ import annotations

from neumann.config import RunConfig, ignored_variables


def test_what_lightning_would_take_from_the_surroundings_is_told() -> None:
    given = {
        "PL_TRAINER_MAX_EPOCHS": "3",
        "PL_TRAINER_LIMIT_TRAIN_BATCHES": "0.1",
        "PL_TRAINER_PRECISION": "",
        "WANDB_PROJECT": "other",
    }
    trainer = [sentence for sentence in ignored_variables(RunConfig(), given) if "PL_" in sentence]
    assert trainer == [
        "PL_TRAINER_LIMIT_TRAIN_BATCHES=0.1 has no effect: a run's configuration decides",
        "PL_TRAINER_MAX_EPOCHS=3 has no effect: trainer.max_epochs decides",
    ]
    assert any("WANDB_PROJECT" in sentence for sentence in ignored_variables(RunConfig(), given))
