"""Words of syllables: they mean nothing, so that nothing is known of them but their letters."""

from genai_jax.data.tasks.draws import Draws

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"
SYLLABLES = tuple(c + v for c in CONSONANTS for v in VOWELS)


def draw_word(draws: Draws, syllables: int) -> str:
    """Draw a word, such as `boka`, of two letters a syllable: 70 to that power there are."""
    return "".join(draws.choose(SYLLABLES) for _ in range(syllables))
