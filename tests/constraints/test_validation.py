import builtins

import pytest

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.validation import InvalidTextError, generate_valid, validate

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 3}, "born": {"format": "date"}},
    "required": ["age"],
}


@pytest.mark.parametrize("text", ['{"age": 3}', ' { "age" : 4.0, "born": "2024-02-29", "x": [] } '])
def test_valid_texts_have_no_faults(text):
    assert validate(text, SCHEMA) == []


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ('{"age": 2}', ["at $.age: 2 is less than the minimum of 3"]),
        (
            '{"age": "3", "born": "2023-02-29"}',
            ["at $.age: '3' is not of type 'integer'", "at $.born: '2023-02-29' is not a 'date'"],
        ),
        ("[]", ["at $: [] is not of type 'object'"]),
        ('{"age": 3', ["not JSON: Expecting ',' delimiter: line 1 column 10 (char 9)"]),
        ("NaN", ["not JSON: NaN is no JSON"]),
        ("", ["not JSON: Expecting value: line 1 column 1 (char 0)"]),
        ("[" * 100_000, ["not JSON that can be read: nested too deeply"]),
        ("1" * 5000, None),
    ],
)
def test_faults_are_said_with_their_places(text, faults):
    found = validate(text, SCHEMA)
    assert found == faults if faults else found[0].startswith("not JSON: ")


def test_faults_are_few_and_short():
    found = validate("[" + "0," * 100 + "0]", {"items": {"enum": ["x" * 1000]}})
    assert len(found) == 20 and all(len(fault) < 250 for fault in found)


def test_all_of_json_schema_is_known():
    schema = {"not": {"type": "string"}, "if": {"type": "array"}, "then": {"uniqueItems": True}}
    assert (
        validate("[1, 2]", schema) == [] and validate("[1, 1]", schema) and validate('"a"', schema)
    )


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        ({"type": "int"}, "a JSON Schema must be one; at .*type"),
        ({"pattern": "("}, "a JSON Schema must be one; at .*pattern"),
        ({"$ref": "#"}, "must not refer to itself without end"),
        ({"$ref": "#/nowhere"}, "`\\$ref` must refer to a schema"),
        ({"$ref": "http://localhost/schema"}, "`\\$ref` must refer to a place in the schema"),
        ({"items": {"$dynamicRef": "http://localhost/x"}}, "must refer to a place in the schema"),
        ([], "must be an object, true or false"),
        ("{", "must be JSON"),
    ],
)
def test_what_is_no_schema_is_refused(schema, rule):
    with pytest.raises(ConstraintError, match=rule):
        validate("1", schema)


def test_the_first_valid_text_is_taken():
    seeds = []

    def write(seed):
        seeds.append(seed)
        return str(seed)

    assert generate_valid(write, {"minimum": 3}, attempts=9) == "3"
    assert seeds == [0, 1, 2, 3]


def test_retries_have_an_end():
    with pytest.raises(InvalidTextError, match=r"none of 3 was.*2 is less than") as error:
        generate_valid(str, {"minimum": 3}, attempts=3)
    assert error.value.faults == ["at $: 2 is less than the minimum of 3"]
    with pytest.raises(ValueError, match="`attempts` must be at least 1; got 0"):
        generate_valid(str, {}, attempts=0)


def test_a_bad_schema_is_refused_before_anything_is_written():
    with pytest.raises(ConstraintError):
        generate_valid(lambda seed: pytest.fail("written"), {"type": "int"}, attempts=3)


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "jsonschema":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[structured\]'"):
        validate("1", {})
