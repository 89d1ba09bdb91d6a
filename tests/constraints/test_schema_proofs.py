"""What is said to have no value in common has none; and what plainly has none is said to."""

import itertools

import jsonschema
import numpy as np
import pytest

from genai_jax.constraints.automata import ConstraintError
from genai_jax.constraints.schema_cases import Cases
from genai_jax.constraints.schema_document import Document, schema_text
from genai_jax.constraints.schema_proofs import Proofs, same_value
from tests.constraints.random_schemas import random_schema, recursive

VALIDATOR = jsonschema.Draft202012Validator
SCALARS = (None, True, 0, 1, 1.0, -7, 2.5, "", "a", "ab", "abc", "é\n", "2024-02-29")
VALUES = [*SCALARS, [], {}, *([x] for x in SCALARS), *({"a": x} for x in SCALARS)]
VALUES += [{"kind": k, "a": x} for k in "ab" for x in (0, "a")] + [[1, "a"], [0, 0, 0], {"a": [2]}]


def proofs_of(*schemas):
    document = Document(schema_text({"prefixItems": list(schemas)}), 4)
    nodes = [document.root.child("prefixItems", place) for place in range(len(schemas))]
    return Proofs(document), nodes, document


def apart(one, other):
    proofs, (first, second), _ = proofs_of(one, other)
    found = proofs.apart((first,), (second,))
    assert found == proofs.apart((second,), (first,))
    return found


def obj(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required)}


APART = {
    "types": ({"type": "string"}, {"type": ["integer", "null"]}),
    "constants": ({"const": 1}, {"enum": [2, "1", True]}),
    "a constant and bounds": ({"const": 5}, {"type": "number", "exclusiveMaximum": 5}),
    "a constant and a pattern": ({"const": "b"}, {"type": "string", "pattern": "^a"}),
    "bounds": ({"type": "number", "maximum": 1}, {"type": "integer", "exclusiveMinimum": 1}),
    "lengths": ({"type": "string", "maxLength": 2}, {"type": "string", "minLength": 3}),
    "patterns": ({"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^[^a]"}),
    "items": ({"type": "array", "minItems": 2}, {"type": "array", "maxItems": 1}),
    "an item": (
        {"type": "array", "prefixItems": [{"const": 1}], "minItems": 1},
        {"type": "array", "items": {"type": "string"}},
    ),
    "a required constant": (obj(["k"], k={"const": "a"}), obj(k={"const": "b"})),
    "a name that is excluded": (obj(["k"], k={}), obj() | {"additionalProperties": False}),
    "inside": (obj(["k"], k=obj(["n"], n={"const": 1})), obj(["k"], k=obj(n={"const": 2}))),
    "sizes": ({"type": "object", "minProperties": 2}, {"type": "object", "maxProperties": 1}),
    "each choice": ({"anyOf": [{"const": 1}, {"const": 2}]}, {"type": "string"}),
    "nothing": (False, True),
}
TOGETHER = {
    "integers are numbers": ({"type": "integer"}, {"type": "number"}),
    "1 is 1.0": ({"const": 1}, {"const": 1.0}),
    "no type is any type": ({"minLength": 3}, {"maxLength": 2}),
    "optional": (obj(k={"const": "a"}), obj(k={"const": "b"})),
    "open objects": (obj(["a"], a={}), obj(["b"], b={})),
    "the last line's end": (
        {"type": "string", "pattern": "^a$"},
        {"type": "string", "pattern": "^a\n$"},
    ),
    "digits beyond ASCII": (
        {"type": "string", "pattern": r"^\d$"},
        {"type": "string", "pattern": "^[^0-9]$"},
    ),
    "formats": ({"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}),
    "booleans": ({"type": "boolean"}, {"type": ["boolean", "null"]}),
    "empty arrays": (
        {"type": "array", "items": {"const": 1}},
        {"type": "array", "items": {"const": 2}},
    ),
    "without an end": (obj(["a"], a={"$ref": "#/prefixItems/0"}), obj(["a"], a={"$ref": "#"})),
}


@pytest.mark.parametrize("name", APART)
def test_shown_to_be_apart(name):
    assert apart(*APART[name])


@pytest.mark.parametrize("name", TOGETHER)
def test_not_shown_to_be_apart(name):
    assert not apart(*TOGETHER[name])


def test_no_value_satisfies_what_is_apart():
    """Over pairs of random schemas, and values of all types."""
    rng = np.random.default_rng(0)
    schemas = [random_schema(rng, 1) for _ in range(40)] + [recursive(rng, 1) for _ in range(4)]
    schemas = [schema for schema in schemas if "$ref" not in schema]
    accepts = [
        [VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).is_valid(x) for x in VALUES]
        for schema in schemas
    ]
    shown = 0
    for (one, a), (other, b) in itertools.combinations(zip(schemas, accepts, strict=True), 2):
        if apart(one, other):
            shown += 1
            both = [x for x, p, q in zip(VALUES, a, b, strict=True) if p and q]
            assert both == [], (one, other)
    assert shown > 100


def test_judgements_of_values_are_jsonschemas():
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(150):
        schema = random_schema(rng, 2)
        validator = VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER)
        proofs, (node,), document = proofs_of(schema)
        cases = Cases(document, lambda node: None).of((node,), exact=True)
        if "oneOf" in str(schema):
            continue  # read as `anyOf`
        for value in VALUES:
            judged = [proofs.satisfies(case, value) for case in cases]
            if True in judged or None not in judged:
                told += 1
                assert (True in judged) == validator.is_valid(value), (schema, value)
    assert told > 3000


def test_equal_values():
    equal = [(1, 1.0), ({"a": 1, "b": [0]}, {"b": [0.0], "a": 1}), (0, -0.0)]
    differ = [(1, True), (0, False), (None, False), ("1", 1), ([1, 2], [2, 1]), ({}, []), ("", [])]
    assert all(same_value(a) == same_value(b) for a, b in equal)
    assert not any(same_value(a) == same_value(b) for a, b in differ)


def test_branches_of_sixty_kinds_are_told_apart():
    kinds = [obj(["kind"], kind={"const": f"k{i}"}) for i in range(60)]
    proofs, (node,), _ = proofs_of({"oneOf": kinds})
    proofs.check_one_of(node)
    proofs, (node,), _ = proofs_of({"oneOf": [*kinds, kinds[17]]})
    with pytest.raises(ConstraintError, match="those at 17 and 60 may have"):
        proofs.check_one_of(node)


def test_too_many_branches_are_refused():
    kinds = [obj(["kind"], kind={"const": i}) for i in range(220)]
    proofs, (node,), _ = proofs_of({"oneOf": kinds})
    with pytest.raises(ConstraintError, match="at most 20,000 steps"):
        proofs.check_one_of(node)
