import numpy as np
import pytest

from genai_jax.constraints import languages as constraints
from genai_jax.constraints.languages import (
    JSON_OBJECT,
    ConstraintError,
    PieceTokenizer,
    compile_json_schema,
    compile_regex,
)
from genai_jax.data.tokenizer_training import train_tokenizer
from genai_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer
from tests.constraints.random_walks import Pieces, texts


def spelt(automaton, ids):
    """Whether ids may be written, one after another, up to where the text may end."""
    state = automaton.start
    for token in ids:
        state = automaton.successors[state, automaton.classes[token]]
        if state < 0:
            return False
    return automaton.distance[state] == 0


def test_tokenizers_have_what_constraints_need():
    tokenizer = train_tokenizer("bpe", ["the cat sat on the mat {} [] \": 'é' " * 40], 300)
    for one in (tokenizer, ByteTokenizer(), CharacterTokenizer("ab"), Pieces()):
        assert isinstance(one, PieceTokenizer)
        assert len(one.pieces) == one.vocab_size
    assert tokenizer.pieces[tokenizer.eot_id] == b""
    ids = tokenizer.encode("the cat é")
    assert b"".join(tokenizer.pieces[i] for i in ids).decode() == "the cat é"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_encoded_texts_are_allowed(kind):
    tokenizer = train_tokenizer(kind, ['{"name":"the cat","age":12} é ' * 60], 300)
    schema = {"properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    automaton = compile_json_schema(schema, tokenizer)
    assert spelt(automaton, tokenizer.encode('{"name":"the é","age":12}'))
    assert not spelt(automaton, tokenizer.encode('{"age":12,"name":""}'))
    assert not spelt(automaton, tokenizer.encode('{"name":"the'))
    automaton = compile_regex("(the|cat){2} é?", tokenizer)
    assert spelt(automaton, tokenizer.encode("thecat é"))
    assert not spelt(automaton, tokenizer.encode("the"))


def test_ends_of_texts_are_never_allowed():
    tokenizer = ByteTokenizer()
    automaton = compile_regex(".*", tokenizer)
    assert (automaton.successors[:, automaton.classes[tokenizer.eot_id]] == -1).all()


def test_what_a_vocabulary_cannot_spell_is_refused():
    letters = CharacterTokenizer("ab{}")
    assert spelt(compile_json_schema(JSON_OBJECT, letters), letters.encode("{}"))
    with pytest.raises(ConstraintError, match="some sequence of the tokenizer's tokens must spell"):
        compile_json_schema({"type": "object", "minProperties": 1}, letters)
    with pytest.raises(ConstraintError, match="some sequence of the tokenizer's tokens must spell"):
        compile_regex("[^ab]c", letters)


def test_compiled_once_for_a_language_and_a_vocabulary():
    tokenizer, same = ByteTokenizer(), ByteTokenizer()
    first = compile_json_schema({"enum": [1, 2]}, tokenizer)
    assert compile_json_schema('{"enum": [1,2]}', same) is first
    assert compile_json_schema({"enum": [1, 2]}, tokenizer, depth=5) is not first
    without_end = ByteTokenizer(end_of_text=False)
    assert compile_json_schema({"enum": [1, 2]}, without_end).classes.shape == (256,)
    assert compile_regex("1|2", tokenizer) is compile_regex("1|2", same)
    with pytest.raises(ValueError, match="read-only"):
        first.successors[0, 0] = 1


def test_one_digest_with_two_sizes_is_two_vocabularies():
    """A model may have fewer ids than its tokenizer."""
    tokenizer, fewer = Pieces(), Pieces()
    fewer.vocab_size = 256
    whole, part = (compile_regex("(true)+", x) for x in (tokenizer, fewer))
    assert (whole.classes.shape, part.classes.shape) == ((tokenizer.vocab_size,), (256,))
    assert whole.distance[whole.start] == 1 and part.distance[part.start] == 4


def test_tables_do_not_depend_on_the_process(monkeypatch):
    """Compiled anew, everything is equal."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}}
    first = compile_json_schema(schema, Pieces())
    constraints._compiled.cache_clear()
    constraints._trie.cache_clear()
    again = compile_json_schema(schema, Pieces())
    assert again is not first
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_texts_end_within_their_budget():
    """The shortest budget that the distance promises is enough, and one less is not."""
    tokenizer = Pieces()
    schema = {"type": "object", "properties": {"name": {"const": "ab"}}, "required": ["name"]}
    automaton = compile_json_schema(schema, tokenizer)
    least = int(automaton.distance[automaton.start])
    assert least == 5  # {" name ":" ab "}
    found = texts(automaton, tokenizer, 20, least, np.random.default_rng(0))
    assert set(found) == {'{"name":"ab"}'}
