"""Random JSON schemas of the supported subset, with all of its keywords."""

NAMES = ("name", "kind", "a", "b", "naïve", "x y", 'q"uote', "\U0001f642", "nested")
VALUES = (None, True, False, 0, 1, -7, 2.5, 1.0, "", "abc", "é\n", 'say "a"', [1, "a"], {"a": [2]})
PATTERNS = ("^[a-c]{1,4}$", "^a", "b$", "[0-9]+-[0-9]+", "^(ab|ba)*$", "é|日", "^\\w+ \\w+$", "a.b")
FORMATS = ("date", "email", "ipv4", "ipv6", "uuid", "hostname")


def random_schema(rng, depth=3):
    """Draw a schema; it may have no valid value only where `allOf` meets."""
    choices = ["string", "integer", "number", "enum", "plain", "const"]
    if depth:
        choices += ["object", "object", "array", "map", "anyOf", "oneOf", "allOf", "tuple"]
    return SHAPES[choices[rng.integers(len(choices))]](rng, depth)


def some(rng, things):
    kept = [thing for thing in things if rng.random() < 0.5]
    return kept or [things[rng.integers(len(things))]]


def maybe(rng, **keywords):
    return {name: value for name, value in keywords.items() if rng.random() < 0.5}


def string(rng, depth):
    kind = rng.integers(4)
    if kind == 0:
        return {"type": "string", "pattern": str(rng.choice(PATTERNS))}
    if kind == 1:
        return {"type": "string", "format": str(rng.choice(FORMATS))}
    least = int(rng.integers(3))
    lengths = maybe(rng, minLength=least, maxLength=least + int(rng.integers(5)))
    return {"type": "string"} | lengths


def bounds(rng, low, high):
    lower = "exclusiveMinimum" if rng.random() < 0.3 else "minimum"
    upper = "exclusiveMaximum" if rng.random() < 0.3 else "maximum"
    return maybe(rng, **{lower: low, upper: high})


def integer(rng, depth):
    low = int(rng.integers(-1200, 1200))
    schema = {"type": "integer"} | bounds(rng, low, low + int(rng.integers(12, 3000)))
    return schema | ({"multipleOf": int(rng.integers(1, 6))} if rng.random() < 0.2 else {})


def number(rng, depth):
    low = round(float(rng.normal(0, 30)), int(rng.integers(4)))
    return {"type": "number"} | bounds(rng, low, low + float(rng.random() * 9 + 0.1))


def enum(rng, depth):
    return {"enum": some(rng, VALUES)}


def const(rng, depth):
    return {"const": VALUES[rng.integers(len(VALUES))]}


def plain(rng, depth):
    types = some(rng, ["null", "boolean", "integer", "string", "number"])
    return {"type": types if len(types) > 1 else types[0], "title": "an annotation"}


def properties(rng, depth):
    return {name: random_schema(rng, depth - 1) for name in some(rng, NAMES)[:4]}


def obj(rng, depth):
    declared = properties(rng, depth)
    names = [name for name in declared if rng.random() < 0.5]
    schema = {"type": "object", "properties": declared, "required": names}
    rest = [{"additionalProperties": False}, {}, {"additionalProperties": {"type": "integer"}}]
    schema |= rest[rng.integers(3)]
    if rng.random() < 0.2:
        schema |= {"minProperties": len(names) + (len(names) < len(declared))}
    return schema | maybe(rng, maxProperties=len(declared)) | maybe(rng, description="an object")


def mapping(rng, depth):
    schema = {"type": "object", "additionalProperties": random_schema(rng, depth - 1)}
    return schema | maybe(rng, minProperties=1, maxProperties=int(rng.integers(1, 4)))


def array(rng, depth):
    least = int(rng.integers(3))
    sizes = maybe(rng, minItems=least, maxItems=least + int(rng.integers(3)))
    return {"type": "array", "items": random_schema(rng, depth - 1)} | sizes


def prefixed(rng, depth):
    schema = {"type": "array", "prefixItems": [random_schema(rng, depth - 1) for _ in range(2)]}
    rest = [{}, {"items": False}, {"items": {"type": "boolean"}}, {"minItems": 2}]
    return schema | rest[rng.integers(4)]


def any_of(rng, depth):
    return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}


def one_of(rng, depth):
    """Branches that differ by type, or by a constant."""
    if rng.random() < 0.5:
        return {"oneOf": [string(rng, 0), integer(rng, 0), {"type": "null"}, array(rng, depth)]}
    branches = []
    for kind in ("a", "b"):
        declared = {"kind": {"const": kind}} | properties(rng, depth)
        declared["kind"] = {"const": kind}
        branches.append({"type": "object", "properties": declared, "required": ["kind"]})
    return {"oneOf": branches}


def all_of(rng, depth):
    """Objects that say something of different properties, and strings held twice."""
    if rng.random() < 0.3:
        return {"allOf": [{"type": "string", "minLength": 1}, {"maxLength": 6}], "pattern": "[ab]"}
    first, second = obj(rng, depth), {"properties": {"more": random_schema(rng, depth - 1)}}
    first.pop("additionalProperties", None)
    first.pop("maxProperties", None)
    return {"allOf": [first, second]}


def recursive(rng, depth=2):
    """A schema with references, one of them to what it stands in."""
    node = obj(rng, depth)
    node.pop("maxProperties", None)
    again = [{"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}]
    again += [{"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}]
    node["properties"]["next"] = again[rng.integers(2)]
    node["properties"]["leaf"] = {"$ref": "#/$defs/leaf"}
    return {"$defs": {"node": node, "leaf": random_schema(rng, 1)}, "$ref": "#/$defs/node"}


SHAPES = {
    **{"string": string, "integer": integer, "number": number, "enum": enum, "const": const},
    **{"plain": plain, "object": obj, "array": array, "map": mapping, "tuple": prefixed},
    **{"anyOf": any_of, "oneOf": one_of, "allOf": all_of},
}
