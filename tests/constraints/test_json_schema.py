import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genai_jax.constraints import json_schema
from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.json_schema import json_schema_automaton
from genai_jax.constraints.schema_document import ANNOTATIONS, KEYWORDS_OF
from genai_jax.constraints.token_automaton import PieceTrie, token_automaton
from tests.constraints.random_schemas import random_schema, recursive
from tests.constraints.random_walks import Pieces, texts

TOKENIZER = Pieces()
TRIE = PieceTrie(TOKENIZER.pieces, TOKENIZER.vocab_size)
VALIDATOR = jsonschema.Draft202012Validator


def generated(schema, rng, *, rows=10, budget=60, **options):
    """Texts at random, along tokens."""
    automaton = token_automaton(json_schema_automaton(schema, **options), TRIE)
    budget = max(budget, int(automaton.distance[automaton.start]))
    return texts(automaton, TOKENIZER, rows, budget, rng)


def faults(schema, found):
    """What jsonschema says of texts."""
    validator = VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER)
    return [text for text in found if not validator.is_valid(json.loads(text))]


def declared(**more):
    names = {"a": {"type": "integer"}, "b": {"enum": ["x"]}, "c": {"type": "null"}}
    return {"type": "object", "properties": names, "required": ["b"]} | more


def branch(kind, **properties):
    declared_kind = {"kind": {"const": kind}}
    return {"type": "object", "properties": declared_kind | properties, "required": ["kind"]}


LIST = {"$ref": "#/$defs/n", "$defs": {"n": {
    "type": "object",
    "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}},
    "required": ["next"],
}}}  # fmt: skip


def nested(times):
    return '{"next":' * times + "null" + "}" * times


CASES = {
    "anything": (True, ["null", "1", '""', "[[[[0]]]]", '{"a":[{}]}'], ["", "[[[[[0]]]]]", "nul"]),
    "anything, said": ({"title": "x"}, ["null", "[[[[0]]]]"], ["[[[[[0]]]]]"]),
    "object": ({"type": "object"}, ["{}", '{"a":1}', '{"a":{"b":[]}}'], ["1", "[]", '{"a":1,}']),
    "types": ({"type": ["null", "boolean"]}, ["null", "true", "false"], ["0", '"null"']),
    "integer": ({"type": "integer"}, ["0", "-7", "9" * 19], ["1.0", "-0", "01", "9" * 20]),
    "number": ({"type": "number"}, ["0", "-1.50", "1e-9"], ["1.", ".1", "NaN", "Infinity"]),
    "bounds": ({"type": "integer", "exclusiveMinimum": -2, "maximum": 11.5}, ["-1", "11"],
               ["-2", "12"]),
    "both bounds": ({"minimum": 1, "exclusiveMinimum": 1, "maximum": 3, "exclusiveMaximum": 9},
                    ["1.5", "3"], ["1", "4"]),
    "bounds by themselves": ({"minimum": 5}, ["5", "5.5"], ["4", '"a"', "null"]),
    "multiples": ({"type": "number", "multipleOf": 3, "minimum": 7}, ["9", "12"], ["7", "9.0"]),
    "string": ({"type": "string"}, ['""', '"é\U0001f642"', r'"\"\\\n\u0001"'],
               ['"', '"\n"', r'"\u0041"', r'"\/"', r'"\ud800"']),
    "lengths": ({"type": "string", "minLength": 1.0, "maxLength": 2}, ['"é\U0001f642"', r'"\n"'],
                ['""', '"abc"']),
    "pattern": ({"type": "string", "pattern": '^"\n?$'}, [r'"\""', r'"\"\n"'], ['"a"']),
    "two patterns": ({"pattern": "a", "allOf": [{"pattern": "b"}]}, ['"ab"', '"b a"'], ['"a"']),
    "enum": ({"enum": [1, 1.0, "é\n", None, True, {"a": [1, 2.5]}, 1]},
             ["1", "1.0", '"é\\n"', "null", "true", '{"a":[1,2.5]}'], ["false", "1.00", '"1"']),
    "enum of a type": ({"type": "integer", "enum": [1, 2.0, 2.5, "1", True]}, ["1", "2.0"],
                       ["2.5", '"1"', "true"]),
    "enum within bounds": ({"enum": [1, 5, "abc", "ab"], "minimum": 3, "minLength": 3},
                           ["5", '"abc"'], ["1", '"ab"']),
    "enum that matches": ({"enum": ["ab", "é", "b"], "pattern": "b$"}, ['"ab"', '"b"'], ['"é"']),
    "enum of objects": ({"enum": [{"a": 1}, {"a": "x"}, {}, [1], 3], "required": ["a"],
                         "properties": {"a": {"type": "integer"}}, "items": {"type": "null"}},
                        ['{"a":1}', "3"], ['{"a":"x"}', "{}", "[1]"]),
    "two enums": ({"enum": [1, 2, 3], "allOf": [{"enum": [3.0, 2, 9]}]}, ["2", "3"], ["1", "9"]),
    "const": ({"const": {"b": [None], "a": "\U0001f642"}}, ['{"b":[null],"a":"\U0001f642"}'],
              ['{"a":"\U0001f642","b":[null]}']),
    "declared": (declared(), ['{"b":"x"}', '{"a":1,"b":"x"}', '{"a":1,"b":"x","c":null}',
                              '{"b":"x","c":null}'],
                 ["{}", '{"a":1}', '{"b":"x","a":1}', '{,"b":"x"}', '{"b":"x",}', '{"b":"x","d":1}',
                  '{"b":"x","b":"x"}']),
    "none declared": ({"properties": {}}, ["{}"], ['{"a":1}', "1"]),
    "counted": (declared(minProperties=2), ['{"a":1,"b":"x"}', '{"a":1,"b":"x","c":null}'],
                ['{"b":"x"}']),
    "counted and required": (declared(required=["b", "a"], minProperties=2),
                             ['{"a":1,"b":"x"}', '{"a":1,"b":"x","c":null}'], ['{"b":"x"}']),
    "at least one": ({"properties": {"a": {"const": 1}, "b": {"const": 2}}, "minProperties": 1},
                     ['{"a":1}', '{"b":2}', '{"a":1,"b":2}'], ["{}"]),
    "few": (declared(maxProperties=2), ['{"b":"x"}', '{"a":1,"b":"x"}'],
            ['{"a":1,"b":"x","c":null}']),
    "exactly": (declared(minProperties=3, maxProperties=3), ['{"a":1,"b":"x","c":null}'],
                ['{"b":"x","c":null}']),
    "and others": (declared(additionalProperties={"type": "boolean"}),
                   ['{"b":"x"}', '{"b":"x","d":true}', '{"a":1,"b":"x","d":true,"e":false}'],
                   ['{"d":true}', '{"d":true,"b":"x"}', '{"b":"x","a":true}', '{"b":"x","d":1}']),
    "and few others": (declared(additionalProperties={"type": "boolean"}, maxProperties=2),
                       ['{"b":"x","d":true}', '{"a":1,"b":"x"}'],
                       ['{"a":1,"b":"x","d":true}', '{"b":"x","d":true,"e":true}']),
    "and another": (declared(additionalProperties={"type": "boolean"}, minProperties=3),
                    ['{"a":1,"b":"x","d":true}', '{"a":1,"b":"x","c":null}'],
                    ['{"a":1,"b":"x"}', '{"b":"x","d":true,"d":false}']),
    "map": ({"type": "object", "additionalProperties": {"const": 0}}, ["{}", '{"":0}',
                                                                       '{"a":0,"é\\n":0}'],
            ['{"a":1}', "{0:0}"]),
    "map of some": ({"additionalProperties": {"const": 0}, "minProperties": 1, "maxProperties": 2},
                    ['{"a":0}', '{"a":0,"b":0}'], ["{}", '{"a":0,"b":0,"c":0}']),
    "map of none": ({"additionalProperties": False}, ["{}"], ['{"a":1}']),
    "required alone": ({"type": "object", "required": ["z"]}, ['{"z":[1]}'], ["{}", '{"y":1}']),
    "required by others": ({"required": ["z"], "additionalProperties": {"const": 0}},
                           ['{"z":0}', '{"z":0,"y":0}'], ["{}", '{"z":1}', '{"y":0}']),
    "escaped names": ({"properties": {'q"\n': {"const": 1}}}, ["{}", r'{"q\"\n":1}'], []),
    "array": ({"type": "array"}, ["[]", "[1,[],{}]"], ["[1,]", "[,1]", "{}"]),
    "items": ({"items": {"const": 1}, "minItems": 1, "maxItems": 3}, ["[1]", "[1,1,1]"],
              ["[]", "[1,1,1,1]", "[2]"]),
    "no items": ({"items": False}, ["[]"], ["[1]"]),
    "prefix": ({"prefixItems": [{"const": 1}, {"const": 2}]}, ["[]", "[1]", "[1,2]"],
               ["[2]", "[1,2,3]"]),
    "prefix and rest": ({"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 1},
                        ["[1]", "[1,2,2]"], ["[]", "[2]", "[1,1]"]),
    "prefix and any": ({"prefixItems": [{"const": 1}], "minItems": 2}, ["[1,2]", '[1,{"a":[1]}]'],
                       ["[1]", "[1,2,3]"]),
    "prefix cut off": ({"prefixItems": [{"const": 1}, {"const": 2}], "maxItems": 1}, ["[]", "[1]"],
                       ["[1,2]"]),
    "prefix with an end": ({"prefixItems": [{"const": 1}, False]}, ["[]", "[1]"], ["[1,2]"]),
    "any of": ({"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^ab*$"}]},
               ['""', '"abb"'], ['"bb"', "1"]),
    "one of": ({"oneOf": [branch("a", x={"type": "null"}), branch("b"), {"type": "null"}]},
               ['{"kind":"a","x":null}', '{"kind":"b"}', "null"], ['{"kind":"b","x":null}', "{}"]),
    "all of": ({"allOf": [declared(), {"properties": {"d": {"const": 1}}, "required": ["d"]}]},
               ['{"b":"x","d":1}', '{"a":2,"b":"x","d":1}'], ['{"b":"x"}']),
    "all of one": ({"properties": {"a": {"minimum": 3}}, "allOf": [
        {"properties": {"a": {"type": "integer", "maximum": 4}}}]}, ['{"a":3}', '{"a":4}'],
        ['{"a":5}', '{"a":3.5}']),
    "closed and open": ({"properties": {"a": {}}, "additionalProperties": False,
                         "allOf": [{"properties": {"b": {}}}]}, ["{}", '{"a":1}'], ['{"b":1}']),
    "reference beside": ({"$defs": {"s": {"type": "string"}}, "$ref": "#/$defs/s", "maxLength": 1},
                         ['"a"'], ['"ab"', "1"]),
    "references by place": ({"properties": {"a/b~%": {"const": 7},
                                            "c": {"$ref": "#/properties/a~1b~0%25"}}},
                            ['{"a/b~%":7}', '{"c":7}'], ['{"c":8}']),
    "list": (LIST, [nested(1), nested(4)], [nested(5), "null"]),
    "tree": ({"items": {"$ref": "#"}}, ["[]", "[[],[[]]]", "[[[[]]]]"], ["[[[[[]]]]]", "[1]"]),
    "annotations": (dict.fromkeys(ANNOTATIONS - {"$defs", "definitions"}, "x") | {"const": 1},
                    ["1"], ["2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_language(name):
    schema, accepted, refused = CASES[name]
    dfa = json_schema_automaton(schema)
    assert [text for text in accepted if not dfa.accepts(text.encode())] == []
    assert [text for text in refused if dfa.accepts(text.encode())] == []
    if name != "annotations":  # which jsonschema checks
        assert faults(schema, accepted) == []
        assert faults(schema, generated(schema, np.random.default_rng(0))) == []


def test_a_schema_may_be_a_text():
    by_text = json_schema_automaton(json.dumps(declared()))
    assert by_text is json_schema_automaton(declared()), "and is compiled once"


def test_spaces_are_allowed_where_asked_for():
    schema = declared() | {"properties": {"b": {"const": {"k": [1, 2]}}}}
    compact = '{"b":{"k":[1,2]}}'
    spaced = ['{"b": {"k": [1, 2]}}', '{"b":{"k": [1,2]}}', compact]
    dfa = json_schema_automaton(schema, whitespace=True)
    assert all(dfa.accepts(text.encode()) for text in spaced)
    assert not dfa.accepts(b'{"b":  {"k":[1,2]}}') and not dfa.accepts(b'{ "b":{"k":[1,2]}}')
    dfa = json_schema_automaton(schema)
    assert [dfa.accepts(text.encode()) for text in spaced] == [False, False, True]


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_depth_bounds_recursion(depth):
    dfa = json_schema_automaton(LIST, depth=depth)
    assert dfa.accepts(nested(depth).encode()) and not dfa.accepts(nested(depth + 1).encode())
    dfa = json_schema_automaton({}, depth=depth)
    assert dfa.accepts(b"[" * depth + b"]" * depth)
    assert not dfa.accepts(b"[" * (depth + 1) + b"]" * (depth + 1))


def test_a_reference_beside_others_is_not_recursion():
    """Twice the same reference, but not within itself: no depth is spent."""
    point = {"type": "object", "properties": {"x": {"$ref": "#/$defs/i"}}, "required": ["x"]}
    schema = {"$defs": {"i": {"const": 1}, "p": point}, "items": {"$ref": "#/$defs/p"}}
    assert json_schema_automaton(schema, depth=1).accepts(b'[{"x":1},{"x":1}]')


@pytest.mark.parametrize("seed", range(24))
def test_whatever_is_generated_is_valid(seed):
    rng = np.random.default_rng(seed)
    schema = random_schema(rng) if seed % 3 else recursive(rng)
    try:
        found = generated(schema, rng, rows=20, depth=2 + seed % 2, whitespace=seed % 2 == 0)
    except ConstraintError as error:
        assert "at most" in str(error) or "that is generated" in str(error)
        return
    assert faults(schema, found) == []


REFUSED = {
    "not a schema": (3, "must be an object, true or false; got int"),
    "a list": ("[1]", "must be an object, true or false; got list"),
    "no JSON": ("{", "must be JSON"),
    "a name twice": ('{"type":"null","type":"null"}', "must differ; got 'type' twice"),
    "no number": ('{"minimum": NaN}', "must hold what JSON can say"),
    "infinite": ({"maximum": float("inf")}, "must hold what JSON can say"),
    "too many digits": ({"maximum": 10**500}, "at most 400 digits"),
    "bytes": ({"const": b"a"}, "got bytes"),
    "no name": ({1: 2}, "names in a JSON Schema must be texts"),
    "surrogates": ({"const": "\ud800"}, "half of a surrogate pair"),
    "false": (False, "has none that is generated"),
    "contradiction": ({"minimum": 2, "maximum": 1}, "has none that is generated"),
    "lengths": ({"minLength": 2, "maxLength": 1}, "has none that is generated"),
    "types": ({"type": "null", "allOf": [{"type": "string"}]}, "has none that is generated"),
    "excluded": ({"required": ["a"], "additionalProperties": False}, "has none that is generated"),
    "enum of others": ({"enum": [1], "type": "string"}, "has none that is generated"),
    "too few": (declared(minProperties=4), "has none that is generated"),
    "itself": ({"$ref": "#"}, "has none that is generated"),
    "endless": ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "without an end"),
    "not": ({"properties": {"a": {"not": {}}}}, "at #/properties/a of .* keyword 'not' is not"),
    "if": ({"if": True}, "keyword 'if' is not supported"),
    "nullable": ({"type": "string", "nullable": True}, "keyword 'nullable' is not supported"),
    "patterns": ({"patternProperties": {}}, "keyword 'patternProperties' is not supported"),
    "in a branch": ({"anyOf": [{"type": "null"}, {"contains": {}}]}, "at #/anyOf/1 .* 'contains'"),
    "unique": ({"uniqueItems": True}, "`uniqueItems` must be false"),
    "a fraction": ({"multipleOf": 0.01}, "`multipleOf` must be an integer from 1 on"),
    "a format": ({"type": "string", "format": "phone"}, "at # .* `format` must be one of"),
    "a number's format": ({"type": "integer", "format": "int32"}, "`format` is for strings"),
    "a lookahead": ({"properties": {"a/b": {"pattern": "(?=a)"}}}, "at #/properties/a~1b .*lookah"),
    "tuples of old": ({"items": [{}]}, "a list of them is called `prefixItems`"),
    "another document": ({"$ref": "http://x.org/s"}, "`\\$ref` must be # or begin with #/"),
    "an anchor": ({"$ref": "#a"}, "`\\$ref` must be # or begin with #/"),
    "nowhere": ({"$ref": "#/$defs/a"}, "there is no '#/\\$defs/a'"),
    "before the first": ({"allOf": [True], "$ref": "#/allOf/-1"}, "there is no '#/allOf/-1'"),
    "no place": ({"enum": [1], "$ref": "#/enum/0"}, "'#/enum/0' is none"),
    "an id inside": ({"items": {"$id": "x"}}, "`\\$id` may be at the root alone"),
    "one of two": ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "those at 0 and 1 may have"),
    "one of open": ({"oneOf": [{"properties": {"a": {}}, "required": ["a"], "type": "object"},
                               {"properties": {"b": {}}, "required": ["b"], "type": "object"}]},
                    "those at 0 and 1 may have"),
    "map of two": ({"type": "object", "minProperties": 2}, "`minProperties` must be at most 1"),
    "not told": ({"enum": ["a@[::1]"], "format": "email"}, "it cannot be told"),
    "a bad type": ({"type": "int"}, "`type` must be one or some of"),
    "no types": ({"type": []}, "`type` must be one or some of"),
    "a bad count": ({"minLength": -1}, "`minLength` must be an integer from 0 on"),
    "a half": ({"minItems": 0.5}, "`minItems` must be an integer from 0 on"),
    "a bad bound": ({"minimum": True}, "`minimum` must be a number"),
    "no enum": ({"enum": []}, "`enum` must be a list of values, at least one"),
    "no branches": ({"anyOf": []}, "`anyOf` must be a list of schemas"),
    "a bad branch": ({"anyOf": [1]}, "`anyOf` must be a list of schemas"),
    "long": ({"type": "string", "maxLength": 10**9}, "at # .* at most 32,000 states"),
    "many": ({"type": "array", "items": {"const": 1}, "minItems": 10**20}, "100,000 parts"),
    "cases": ({"allOf": [{"anyOf": [{"minLength": i}, {"maxLength": 3}]} for i in range(9)]},
              "at most 500 cases"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_to_is_refused_with_the_reason(name):
    schema, reason = REFUSED[name]
    with pytest.raises(ConstraintError, match=reason):
        json_schema_automaton(schema)


def definitions(count, link):
    return {"$defs": {f"d{i}": link(i) for i in range(count)}, "$ref": "#/$defs/d0"}


def to(*places):
    return {"properties": {f"p{i}": {"$ref": f"#/$defs/d{i}"} for i in places}}


def holds_itself():
    schema = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


def chained(count):
    schema = {"type": "null"}
    for _ in range(count):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        (holds_itself(), "nested at most 100 deep"),
        (chained(45), "nested at most 40 deep"),
        (chained(2000), "nested at most 100 deep"),
        ("[" * 100_000, "nested at most 100 deep|must be JSON"),
        ('{"items":' * 100_000, "nested at most 100 deep|must be JSON"),
        ({"enum": [0] * 500_001}, "at most 500,000 values and characters"),
        ({"const": "x" * 499_000}, "100,000 parts"),
        ({"x" * 500_001: True}, "at most 500,000 values and characters"),
        ({"title": "x" * 500_001}, "at most 500,000 values and characters"),
        (definitions(300, lambda i: to(i + 1) if i < 299 else {}), "nested at most 40 deep"),
        # Twice the next one, each: 2⁴⁰ values when written out.
        (
            definitions(
                39,
                lambda i: {"prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} if i < 38 else {},
            ),
            "100,000 parts",
        ),
        (
            definitions(400, lambda i: {"allOf": [{"$ref": f"#/$defs/d{(i + 1) % 400}"}]}),
            "generated",
        ),
        ({"anyOf": [{"$ref": "#"}] * 9}, "that is generated"),
        (
            {"properties": {f"p{i}": True for i in range(1500)}, "minProperties": 700},
            "properties times the most to be counted",
        ),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_built(schema, rule):
    with pytest.raises(ConstraintError, match=rule):
        json_schema_automaton(schema)


def test_strings_are_refused_where_they_are_too_much_together(monkeypatch):
    monkeypatch.setattr(json_schema, "_MOST_STATES", 200)
    long = {f"p{i}": {"type": "string", "maxLength": 5 + i} for i in range(3)}
    with pytest.raises(ConstraintError, match=r"at #/properties/p2 .*at most 200 states in all"):
        json_schema_automaton({"properties": long})
    monkeypatch.setattr(json_schema, "_MOST_STATES", 10)
    with pytest.raises(ConstraintError, match="at most 10 states in all"):
        json_schema_automaton({"items": True})


def test_references_that_lead_to_too_many_values_are_refused(monkeypatch):
    """Each definition refers to all, so that paths through them are many."""
    monkeypatch.setattr(json_schema, "_MOST_VALUES", 300)
    with pytest.raises(ConstraintError, match="at most 300 of them"):
        json_schema_automaton(definitions(8, lambda i: to(*range(8))))


@pytest.mark.parametrize("depth", [0, -1, 33, True])
def test_depth_has_bounds(depth):
    with pytest.raises(ConstraintError, match="`depth` of a JSON Schema must be from 1 to 32"):
        json_schema_automaton({}, depth=depth)


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=3)),
    st.sampled_from([10**30, -(10**30), 1e308, 5e-324, "#", "#/a", "object", "string", "date"]),
)
KEYWORDS = sorted(
    {k for keys in KEYWORDS_OF.values() for k in keys}
    | {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "not", "title"}
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(KEYWORDS), st.text(max_size=2)), inner, max_size=4
        ),
    ),
    max_leaves=10,
)


def compiles_or_is_refused(schema, seed=0):
    try:
        found = generated(schema, np.random.default_rng(seed), rows=3, depth=2)
    except ConstraintError as error:
        assert re.search("must|not supported", str(error))
        return
    assert faults(schema, found) == []


@given(ANY_JSON)
@example({"oneOf": [{"$ref": "#"}, True]})
@example({"enum": [{}], "properties": {"a": {"$ref": "#"}}})
def test_any_json_compiles_or_is_refused(schema):
    compiles_or_is_refused(schema)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(KEYWORDS), ANY_JSON, st.data())
def test_mutated_schemas_compile_or_are_refused(seed, keyword, value, data):
    schema = random_schema(np.random.default_rng(seed), 2)
    place = schema
    while inner := [x for x in place.values() if isinstance(x, dict) and x]:
        if data.draw(st.booleans()):
            break
        place = inner[data.draw(st.integers(0, len(inner) - 1))]
    if data.draw(st.booleans()):
        place[keyword] = value
    else:
        place.pop(data.draw(st.sampled_from(sorted(place, key=str))))
    compiles_or_is_refused(schema, seed)
