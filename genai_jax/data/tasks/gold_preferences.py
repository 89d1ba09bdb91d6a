r"""Preferences of a judge whose reward is known: orders drawn from Bradley-Terry or Plackett-Luce.

The judge prefers answer 1 to answer 2 with $p = \sigma(s (r_1 - r_2))$, with r the gold reward and
s a sharpness: so the best accuracy that any reward model can have, $E \max(p, 1 - p)$, is known
exactly, and so is what one that does not read all of a text can have.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from genai_jax.data.conversations import Example, Preference, said
from genai_jax.data.tasks.draws import Draws
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.replies import REPLIES, draw_answer
from genai_jax.data.tasks.split import Side, tasks
from genai_jax.data.tasks.task import Difficulty, Task

SHARPNESS = 1.5

_MOST_ANSWERS = 8
_MOST_TRIES = 64  # for each answer: the writer repeats himself once in thirty times
_UNIT = 1 << 53
_ANSWER_PENALTY = 0.01  # inverse strength of the ridge; more fits names


class Judgement(NamedTuple):
    """Answers to a prompt in the order that the judge drew, with what he knows of them.

    Attributes:
        task: What was asked.
        answers: The best first.
        rewards: Gold reward of each.
    """

    task: Task
    answers: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def preference(self) -> Preference:
        """What a reward model is shown."""
        return Preference((said("user", self.task.prompt),), self.answers)


@dataclass(frozen=True)
class GoldPreferences:
    """Preferences by number, without end: number i is a function of these fields and i.

    Attributes:
        seed: Of prompts, answers and judgements.
        side: train or held out; no prompt is on both.
        answers: K, answers to a prompt, from 2 to 8.
        sharpness: s, in nats of the odds per unit of gold reward; above 0.
        difficulty: Of the prompts.
    """

    seed: int
    side: Side
    answers: int = 2
    sharpness: float = SHARPNESS
    difficulty: Difficulty = "easy"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 2 <= self.answers <= _MOST_ANSWERS:
            raise ValueError(f"`answers` must be from 2 to {_MOST_ANSWERS}; got {self.answers}.")
        if not 0 < self.sharpness < math.inf:
            raise ValueError(
                f"`sharpness` must be above 0; got {self.sharpness}. {SHARPNESS} agrees with the "
                "gold reward in 5 pairs of 6."
            )

    def judgement(self, i: int) -> Judgement:
        """Draw answers, no two the same, and the order in which the judge puts them."""
        task = tasks((REPLIES,), self.difficulty, self.side, self.seed)[i]
        found: list[str] = []
        for number in range(self.answers * _MOST_TRIES):
            answer = draw_answer(task, self.seed, i * _MOST_ANSWERS * _MOST_TRIES + number)
            if answer not in found:
                found.append(answer)
            if len(found) == self.answers:
                break
        else:
            raise AssertionError(f"{self.answers * _MOST_TRIES} answers, of which too few differ")
        rewards = [gold_reward(task, answer) for answer in found]
        draws = Draws(self.seed, "judge", i)
        uniform = [(draws.below(_UNIT) + 0.5) / _UNIT for _ in found]
        utilities = self.sharpness * np.array(rewards)
        order = plackett_luce_order(utilities, np.array(uniform)).tolist()
        return Judgement(task, tuple(found[k] for k in order), tuple(rewards[k] for k in order))

    def __getitem__(self, i: int) -> Preference:
        """Draw preference i, from 0 on, without end."""
        return self.judgement(i).preference


def plackett_luce_order(
    utilities: Float[np.ndarray, "*n k"], uniform: Float[np.ndarray, "*n k"]
) -> Int[np.ndarray, "*n k"]:
    r"""Draw orders from Plackett-Luce, the best first; of two, that is Bradley-Terry.

    $P(1 > 2 > ...) = \prod_i e^{u_i} / \sum_{j \ge i} e^{u_j}$, by sorting $u_i$ + Gumbel noise.

    Args:
        utilities: u, in nats.
        uniform: Random numbers between 0 and 1, both excluded.

    Returns:
        Numbers of what is put in order.

    Reference: Yellott, "The relationship between Luce's choice axiom, Thurstone's theory of
        comparative judgment, and the double exponential distribution" (1977).
    """
    return np.argsort(-(utilities - np.log(-np.log(uniform))), axis=-1, kind="stable")


def gold_preferences(
    seed: int, side: Side, answers: int = 2, sharpness: float = SHARPNESS
) -> GoldPreferences:
    """Give random access to preferences of one side; fields of `GoldPreferences`."""
    return GoldPreferences(seed, side, answers, sharpness)


def reply_examples(
    seed: int, side: Side, count: int, difficulty: Difficulty = "easy"
) -> list[Example]:
    """Make demonstrations: prompts of a side, each with an answer of the writer's."""
    asked = tasks((REPLIES,), difficulty, side, seed)
    each = [asked[i] for i in range(count)]
    return [Example.of(task.prompt, draw_answer(task, seed, i)) for i, task in enumerate(each)]


class Share(NamedTuple):
    """A mean over prompts.

    Attributes:
        mean: Of the shares of each prompt.
        error: Its standard error.
    """

    mean: float
    error: float


def expected_accuracy(
    judgements: Sequence[Judgement],
    scores: Float[np.ndarray, "n k"],
    sharpness: float = SHARPNESS,
) -> Share:
    r"""Compute how often scores agree with the judge, over all the judge's chances.

    The mean over pairs of p where the score of the first is higher, 1 - p where it is lower, and
    half where both are equal, $p = \sigma(s (r_1 - r_2))$: what accuracy on labels is in
    expectation, without their noise.

    Args:
        judgements: With K answers each; of rankings all pairs count, which for Plackett-Luce have
            the same chances as pairs alone.
        scores: Of each answer, in the same order.
        sharpness: s of the judge.
    """
    rewards = np.array([judgement.rewards for judgement in judgements])
    first, second = np.triu_indices(rewards.shape[1], 1)
    p = _sigmoid(sharpness * (rewards[:, first] - rewards[:, second]))
    side = np.sign(scores[:, first] - scores[:, second])
    agreed = (0.5 + side * (p - 0.5)).mean(1)
    error = agreed.std(ddof=1) / math.sqrt(len(agreed)) if len(agreed) > 1 else math.nan
    return Share(float(agreed.mean()), float(error))


def ceiling(seed: int, count: int, side: Side = "held out") -> Share:
    r"""Compute the accuracy of the best of all reward models, $E \max(p, 1 - p)$.

    Exact for these pairs, but for the noise of their labels; the error is that of the choice of
    pairs.

    Args:
        seed: Of the pairs.
        count: Pairs, numbered from 0 on.
        side: Of their prompts.
    """
    pairs = gold_preferences(seed, side)
    judgements = [pairs.judgement(i) for i in range(count)]
    return expected_accuracy(judgements, np.array([each.rewards for each in judgements]))


def length_baseline(train: Sequence[Judgement], held_out: Sequence[Judgement]) -> Share:
    """Compute what a judge achieves who prefers by length alone.

    A logistic regression on the difference of lengths without intercept agrees with its sign times
    the sign of the mean difference, which is that of the gradient at 0 of a convex loss.

    Args:
        train: Rankings to learn the sign from, all pairs of each.
        held_out: Rankings to be measured on.
    """
    lengths = np.array([[len(answer) for answer in each.answers] for each in train])
    better, worse = np.triu_indices(lengths.shape[1], 1)
    sign = np.sign((lengths[:, better] - lengths[:, worse]).sum())
    scores = [[float(sign * len(answer)) for answer in each.answers] for each in held_out]
    return expected_accuracy(held_out, np.array(scores))


def answer_baseline(train: Sequence[Judgement], held_out: Sequence[Judgement]) -> Share:
    """Compute what a judge achieves who reads the answers, but not what was asked.

    A logistic regression on the differences of the numbers of words.

    Args:
        train: Rankings to learn from, all pairs of each.
        held_out: Rankings to be measured on.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = DictVectorizer()
    words = vectorizer.fit_transform([Counter(x.split()) for each in train for x in each.answers])
    k = len(train[0].answers)
    places = np.triu_indices(k, 1)
    better, worse = ((k * np.arange(len(train))[:, None] + place).ravel() for place in places)
    # Every other pair is turned round: a regression wants two classes.
    side = np.where(np.arange(len(better)) % 2, -1, 1)
    differences = (words[better] - words[worse]).multiply(side[:, None]).tocsr()
    fitted = LogisticRegression(C=_ANSWER_PENALTY, fit_intercept=False).fit(differences, side)
    words = vectorizer.transform([Counter(x.split()) for each in held_out for x in each.answers])
    return expected_accuracy(held_out, fitted.decision_function(words).reshape(-1, k))


def _sigmoid(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return 0.5 * (1 + np.tanh(x / 2))
