import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genai_jax.decoding.adjustments import Seen, adjust_logits, count_drawn
from genai_jax.decoding.sampling import SamplingConfig, settings_of

V = 6
LOGITS = np.array([2.0, -1.0, 0.5, 0.0, 3.0, -2.0], np.float32)
PROMPT, DRAWN = [0, 1], [1, 2, 2]
NO_STOPS = np.full((1, 4), -1, np.int32)

adjust = jax.jit(adjust_logits)


def seen_of(prompt=PROMPT, drawn=DRAWN):
    stands = np.zeros((1, V), bool)
    stands[0, prompt] = True
    return Seen(
        stands, np.bincount(drawn, minlength=V).astype(np.int32)[None], np.array([len(drawn)])
    )


def adjusted(seen=None, stop_ids=NO_STOPS, **options):
    settings = settings_of([SamplingConfig(**options)], V)
    seen = seen_of() if seen is None else seen
    return np.asarray(adjust(jnp.asarray(LOGITS)[None], settings.adjustments, seen, stop_ids))[0]


def test_nothing_asked_changes_nothing():
    np.testing.assert_array_equal(adjusted(), LOGITS)


def test_repetition_divides_positive_logits_and_multiplies_others():
    # Ids 0, 1 and 2 stand in the row.
    np.testing.assert_allclose(
        adjusted(repetition_penalty=2.0), [1.0, -2.0, 0.25, 0.0, 3.0, -2.0], rtol=1e-6
    )


def test_presence_and_frequency_count_what_was_drawn_and_not_the_prompt():
    found = adjusted(presence_penalty=0.5, frequency_penalty=0.25)
    np.testing.assert_allclose(found, LOGITS - [0, 0.75, 1.0, 0, 0, 0], rtol=1e-6)


def test_bias_comes_before_the_penalties():
    found = adjusted(repetition_penalty=2.0, logit_bias={0: -3.0, 5: 1.0, 3: -np.inf})
    np.testing.assert_allclose(found, [-2.0, -2.0, 0.25, -np.inf, 3.0, -1.0], rtol=1e-6)


def test_forbidden_ids_cannot_be_drawn():
    assert np.flatnonzero(np.isinf(adjusted(forbidden=(1, 4)))).tolist() == [1, 4]


@pytest.mark.parametrize(("least", "expected"), [(3, []), (4, [2, 5])])
def test_nothing_ends_a_text_before_its_least_length(least, expected):
    stops = np.array([[2, 5, -1, -1]], np.int32)  # three were drawn
    found = adjusted(min_tokens=least, stop_ids=stops)
    assert np.flatnonzero(np.isinf(found)).tolist() == expected


def test_forced_ids_are_all_that_is_left_while_they_last():
    for drawn, token in (([], 3), ([3], 1), ([3, 1], None), ([3, 1, 0], None)):
        found = adjusted(seen_of(drawn=drawn), forced=(3, 1), repetition_penalty=1.5)
        allowed = np.flatnonzero(np.isfinite(found)).tolist()
        assert allowed == (list(range(V)) if token is None else [token])


def test_rows_are_adjusted_each_by_its_own():
    configs = [SamplingConfig(), SamplingConfig(forced=(2,)), SamplingConfig(presence_penalty=1.0)]
    settings = settings_of(configs, V)
    seen = seen_of(drawn=[])
    seen = Seen(*(np.repeat(x, 3, axis=0) for x in seen))
    seen = count_drawn(seen, jnp.array([1, 2, 4]), jnp.array([True, False, True]))
    np.testing.assert_array_equal(seen.length, [1, 0, 1])
    found = np.asarray(
        adjust(jnp.tile(LOGITS, (3, 1)), settings.adjustments, seen, np.repeat(NO_STOPS, 3, 0))
    )
    np.testing.assert_array_equal(found[0], LOGITS)
    assert np.flatnonzero(np.isfinite(found[1])).tolist() == [2]
    np.testing.assert_allclose(found[2], LOGITS - [0, 0, 0, 0, 1, 0])
