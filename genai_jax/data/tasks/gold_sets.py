"""Sets of the preferences of a judge whose reward is known: to learn from, and held out."""

import dataclasses

from genai_jax.data.conversations import Preference
from genai_jax.data.tasks.gold_preferences import SHARPNESS, GoldPreferences


@dataclasses.dataclass(frozen=True)
class GoldConfig:
    """Which of the embedded preferences.

    Attributes:
        preferences: How many are learnt from.
        held_out: How many are held out, to prompts that no other has.
        answers: To each prompt, from 2 to 8, in the order of the judge.
        sharpness: How sure the judge is, in nats of the odds per unit of gold reward.
    """

    preferences: int = 6000
    held_out: int = 1000
    answers: int = 2
    sharpness: float = SHARPNESS

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("preferences", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1; got {getattr(self, name)}.")
        self.held_out_by(0)

    def learnt_by(self, seed: int) -> GoldPreferences:
        """Give random access to the preferences to learn from."""
        return GoldPreferences(seed, "train", self.answers, self.sharpness)

    def held_out_by(self, seed: int) -> GoldPreferences:
        """Give random access to those that are held out."""
        return GoldPreferences(seed, "held out", self.answers, self.sharpness)


def gold_sides(config: GoldConfig, seed: int) -> tuple[list[Preference], list[Preference]]:
    """Draw the preferences to learn from, and those that are held out.

    Args:
        config: How many.
        seed: Of prompts, answers and judgements.
    """
    learnt, held_out = config.learnt_by(seed), config.held_out_by(seed)
    return (
        [learnt[i] for i in range(config.preferences)],
        [held_out[i] for i in range(config.held_out)],
    )
