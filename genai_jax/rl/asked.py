"""What a policy is asked, and what its answers earn, as the options of a run say."""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from genai_jax.data.chat_turns import ChatRenderer
from genai_jax.data.conversation_files import read_prompts
from genai_jax.data.conversations import Messages, digest_of_messages, opening_of
from genai_jax.data.prompt_sides import validation_side
from genai_jax.data.tasks.gold_reward import gold_reward
from genai_jax.data.tasks.replies import REPLIES
from genai_jax.data.tasks.split import Side, tasks
from genai_jax.data.tasks.task import Task
from genai_jax.data.tasks.task_sets import MixedTasks
from genai_jax.data.tokenizers import digest_of
from genai_jax.evaluation.reward_runs import RewardRun
from genai_jax.evaluation.task_accuracy import grade
from genai_jax.rl.experience import Prompts
from genai_jax.rl.learned_reward import LearnedReward
from genai_jax.rl.policy_config import PolicyConfig
from genai_jax.rl.prompts import ConversationPrompts, TaskPrompts
from genai_jax.rl.rewards import Reward, graded, length_penalty, mixture, per_sample

_HELD_OUT = 0.1  # of prompts of one's own


class Asked(NamedTuple):
    """Prompts of a run.

    Attributes:
        train: To learn from.
        held_out: To be measured by.
        digest: SHA-256 of all that they depend on but the options, in hexadecimal.
    """

    train: Prompts
    held_out: Prompts
    digest: str


def load_prompts(config: PolicyConfig, renderer: ChatRenderer) -> Asked:
    """Read, or make, what is asked.

    Raises:
        ValueError: If a record is not as it must be, or there are too few.
        FileNotFoundError: If no file matches.
    """
    if config.ask == "data":
        return _own_prompts(config, renderer)

    def side(name: Side, seed: int) -> TaskPrompts:
        if config.ask == "replies":
            return TaskPrompts(renderer, tasks((REPLIES,), "easy", name, seed).__getitem__)
        return TaskPrompts(renderer, MixedTasks(config.tasks, name, seed).__getitem__)

    # What is held out is the same for every run, whatever its seed.
    return Asked(side("train", config.seed), side("held out", 0), digest_of(config.ask))


def _own_prompts(config: PolicyConfig, renderer: ChatRenderer) -> Asked:
    source = config.data if ":" in config.data else f"files:{config.data}"
    read = list(read_prompts(source))
    if config.rewards.grade and any(answer is None for _, answer in read):
        raise ValueError(
            "a weight on grades needs the right `answer` of every prompt; some records of "
            f"{config.data} have none. Add it, or give --rewards.grade 0."
        )
    # By its opening, as demonstrations and preferences are: what they learn is not held out here.
    validation = validation_side([opening_of(messages) for messages, _ in read], _HELD_OUT)
    _check_lengths(config, [len(ids) for ids in renderer.prompts([x for x, _ in read])])

    def side(chosen: np.ndarray) -> ConversationPrompts:
        some = [read[i] for i in np.flatnonzero(chosen).tolist()]
        conversations: list[Messages] = [messages for messages, _ in some]
        return ConversationPrompts(
            renderer, conversations, config.seed, [answer for _, answer in some]
        )

    digest = digest_of(*(digest_of_messages(x).hex() + str(answer) for x, answer in read))
    return Asked(side(~validation), side(validation), digest)


def _check_lengths(config: PolicyConfig, lengths: list[int]) -> None:
    room = config.length - config.rollouts.max_tokens
    if too_long := [length for length in lengths if length > room]:
        raise ValueError(
            f"a prompt must leave room for an answer; {len(too_long):,} of {len(lengths):,} have "
            f"more than {room} tokens, the longest {max(too_long):,}. Leave them out of "
            f"{config.data}, raise --length, or lower --rollouts.max-tokens."
        )


def grade_answer(task: Task | str, answer: str) -> float:
    """Grade an answer: by its task's grader, or by being the right answer of the prompt."""
    if isinstance(task, Task):
        return grade(task, answer)
    return float(answer.strip() == task.strip())


def make_reward(
    config: PolicyConfig, judge: RewardRun | None, renderer: ChatRenderer, mesh: Mesh | None = None
) -> Reward:
    """Make what answers earn.

    Args:
        config: Its weights.
        judge: The reward model, where there is one: to judge, or for the critic to begin as.
        renderer: Of the policy.
        mesh: Its devices share what the reward model reads; None is one of them.

    Raises:
        ValueError: If the reward model reads in another way than the policy writes.
    """
    parts: dict[str, tuple[float, Reward]] = {}
    weights = config.rewards
    if weights.grade:
        parts["grade"] = (weights.grade, graded(grade_answer))
    if judge is not None:
        check_same_reading(judge, renderer)
        if judge.model.config.max_length < config.length:
            raise ValueError(
                f"a reward model must be able to read a row of {config.length} tokens; that of "
                f"{judge.about} reads {judge.model.config.max_length}. Give --length "
                f"{judge.model.config.max_length}."
            )
    if weights.model:
        assert judge is not None, "the configuration says so"
        parts["model"] = (weights.model, LearnedReward(judge.model, config.length, mesh=mesh))
    if weights.gold:
        parts["gold"] = (weights.gold, per_sample(lambda x: gold_reward(x.task, x.answer)))
    if weights.per_token:
        parts["tokens"] = (1.0, length_penalty(weights.per_token))
    return mixture(parts)


def check_same_reading(judge: RewardRun, renderer: ChatRenderer) -> None:
    """Refuse a reward model of another tokenizer or chat template than the policy's.

    Raises:
        ValueError: Saying which differs.
    """
    other = judge.renderer
    for name, theirs, ours in (
        ("tokenizer", other.tokenizer.digest, renderer.tokenizer.digest),
        ("chat template", other.digest, renderer.digest),
    ):
        if theirs != ours:
            raise ValueError(
                f"a reward model must read with the {name} of the policy; that of {judge.about} "
                "is another. Train one that begins with this policy: lm_reward.py --init."
            )
