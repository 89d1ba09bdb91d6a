"""What is drawn has the probabilities that training computes, and depends on nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.decoding.engine import Engine
from genai_jax.models.heads import ScalarModel
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.parallel.mesh import make_mesh
from genai_jax.parallel.sharding import batch_sharding, replicated
from genai_jax.rl.learned_reward import LearnedReward
from genai_jax.rl.rollouts import (
    Prompt,
    RolloutConfig,
    RolloutError,
    check_gap,
    draw_rollouts,
    make_scorer,
    rollout_rows,
)

LENGTH = 24
TOKENIZER = ByteTokenizer()
EOT = TOKENIZER.eot_id
CONFIG = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size,
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    mlp_dim=32,
    max_length=32,
    init_std=0.4,
)
ROLLOUTS = RolloutConfig(prompts=4, group=2, max_tokens=8, temperature=0.7)


def prompts():
    rng = np.random.default_rng(0)
    lengths = (3, 9, 1, 12)
    return [Prompt(rng.integers(0, 256, n).astype(np.int32), f"{n}", n) for n in lengths]


def draw(
    model,
    step=5,
    seed=0,
    config=ROLLOUTS,
    asked=None,
    stop_ids=(EOT, *range(0, 256, 5)),
    purpose="rollouts",
):
    return draw_rollouts(
        model,
        prompts() if asked is None else asked,
        config,
        length=LENGTH,
        seed=seed,
        step=step,
        stop_ids=stop_ids,
        vocab_size=TOKENIZER.vocab_size,
        purpose=purpose,
    )


@pytest.fixture(scope="module")
def model():
    return LanguageModel(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def rollouts(model):
    return draw(model)


@pytest.fixture(scope="module")
def scored(model, rollouts):
    mesh = make_mesh(devices=jax.devices()[:4])
    rows = jax.device_put(rollout_rows(rollouts, LENGTH), batch_sharding(mesh))
    other = LanguageModel(CONFIG, jax.random.key(1))
    critic = ScalarModel(model, jax.random.key(2))
    return make_scorer(mesh, ROLLOUTS.temperature)(model, other, critic, rows)


def test_rows_hold_the_answers_behind_their_prompts(rollouts):
    rows = rollout_rows(rollouts, LENGTH)
    assert {answer.reason for answer in rollouts.answers} == {"stop", "length"}
    for i, (prompt, answer) in enumerate(zip(rollouts.prompts, rollouts.answers, strict=True)):
        counted = rows["loss_mask"][i] > 0
        assert rows["targets"][i][counted].tolist() == answer.tokens.tolist()
        assert rows["tokens"][i, : len(prompt.ids)].tolist() == prompt.ids.tolist()
        assert rows["lengths"][i] == len(prompt.ids) + len(answer.tokens)
        assert rows["tokens"][i, rows["lengths"][i] - 1] == answer.tokens[-1]
        assert rows["ended"][i] == (answer.reason == "stop")
    assert (rows["weights_step"] == 5).all()
    assert [p.task for p in rollouts.prompts] == [3, 3, 9, 9, 1, 1, 12, 12]


def test_samples_are_texts_without_what_ends_them(rollouts):
    for sample, answer in zip(rollouts.samples(TOKENIZER), rollouts.answers, strict=True):
        shown = answer.tokens[:-1] if sample.ended else answer.tokens
        assert sample.answer == TOKENIZER.decode(shown)
        assert sample.answer_ids.tolist() == answer.tokens.tolist()


def test_what_is_drawn_has_the_probabilities_of_training(scored):
    assert check_gap(scored, 1e-4) > 0  # two programs: not the same bits
    assert scored["ref_log_probs"].shape == scored["old_values"].shape == (8, LENGTH)
    assert not np.allclose(scored["ref_log_probs"], scored["old_log_probs"])


def test_other_weights_or_another_temperature_are_noticed(model, rollouts):
    mesh = make_mesh(devices=jax.devices()[:1])
    rows = rollout_rows(rollouts, LENGTH)
    near = jax.tree.map(lambda x: x * 1.01, model)
    for weights, temperature in ((near, 0.7), (model, 1.0)):
        rows = jax.tree.map(jnp.asarray, rows)
        other = make_scorer(mesh, temperature)(weights, None, None, rows)
        assert "ref_log_probs" not in other
        with pytest.raises(RolloutError, match="weights that drew are others"):
            check_gap(other, 1e-3)


def test_answers_depend_on_the_seed_the_step_and_the_purpose_alone(model, rollouts):
    again = draw(model)
    few = draw(model, config=dataclasses.replace(ROLLOUTS, rows=3))
    for one, two, three in zip(rollouts.answers, again.answers, few.answers, strict=True):
        assert one.tokens.tolist() == two.tokens.tolist() == three.tokens.tolist()
    for other in (draw(model, step=6), draw(model, seed=1), draw(model, purpose="evaluation")):
        pairs = zip(rollouts.answers, other.answers, strict=True)
        assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in pairs)
    first, second = rollouts.answers[:2]
    assert first.tokens.tolist() != second.tokens.tolist()  # of one group


def test_devices_share_the_answers(model, monkeypatch):
    """Whole groups each, in their order: the answers are those of one device."""
    rng = np.random.default_rng(3)
    asked = [Prompt(rng.integers(0, 256, 1 + i % 7).astype(np.int32), f"{i}") for i in range(17)]
    one = draw(model, asked=asked)
    engines = []

    class Noted(Engine):
        def __init__(self, model, **options):
            devices = {x.device for x in jax.tree.leaves(model)}
            engines.append((devices, options["rows"]))
            super().__init__(model, **options)

    monkeypatch.setattr("genai_jax.rl.rollouts.Engine", Noted)
    mesh = make_mesh(devices=jax.devices()[:3])
    several = draw(jax.device_put(model, replicated(mesh)), asked=asked)
    assert sorted(engines, key=str) == [({device}, 18) for device in jax.devices()[:2]]
    assert several.prompts == one.prompts
    for found, expected in zip(several.answers, one.answers, strict=True):
        assert found.tokens.tolist() == expected.tokens.tolist()
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def test_a_failure_on_one_device_ends_the_draw(model):
    calls = []

    def give_up():
        calls.append(1)
        raise TimeoutError("enough")

    both = jax.device_put(model, replicated(make_mesh(devices=jax.devices()[:2])))
    asked = [Prompt(np.array([i, 1], np.int32), "") for i in range(16)]
    with pytest.raises(TimeoutError, match="enough"):
        draw_rollouts(
            both,
            asked,
            ROLLOUTS,
            length=LENGTH,
            seed=0,
            step=0,
            stop_ids=(),
            vocab_size=256,
            check=give_up,
        )
    assert calls == [1, 1]


def test_devices_share_what_a_reward_model_reads(model, rollouts):
    reward = ScalarModel(model, jax.random.key(2))
    samples = rollouts.samples(TOKENIZER)
    alone = LearnedReward(reward, LENGTH, rows=4)(samples)
    mesh = make_mesh(devices=jax.devices()[:2])
    for rows in (4, 3):  # 3 are not divided
        shared = LearnedReward(reward, LENGTH, rows=rows, mesh=mesh)
        assert len(shared.model.score.kernel[...].devices()) == 2
        assert shared(samples) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_a_reward_model_reads_the_last_token_whatever_stands_behind(model, rollouts):
    reward = ScalarModel(model, jax.random.key(2))
    samples = rollouts.samples(TOKENIZER)
    scores = LearnedReward(reward, LENGTH, rows=3)(samples)
    for score, sample in zip(scores, samples, strict=True):
        ids = np.concatenate([sample.prompt_ids, sample.answer_ids])[None]
        alone = reward(jnp.asarray(ids, jnp.int32))[0, -1]
        assert score == pytest.approx(float(alone), rel=1e-4, abs=1e-5)
    with pytest.raises(ValueError, match="must read all of a text; got"):
        LearnedReward(reward, 8)(samples)


def test_a_row_must_hold_prompt_and_answer(rollouts):
    with pytest.raises(ValueError, match="a row must hold a prompt and its answer"):
        rollout_rows(rollouts, 12)


def test_senseless_settings_are_refused():
    with pytest.raises(ValueError, match="`group` must be at least 1; got 0"):
        RolloutConfig(group=0)
    with pytest.raises(ValueError, match="`temperature` must be above 0; got 0"):
        RolloutConfig(temperature=0.0)
