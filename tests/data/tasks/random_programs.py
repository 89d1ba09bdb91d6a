"""Random programs that parse in the small language, most of which give a value."""

import random


def random_program(seed: int) -> str:
    """Write a function of two integers, of a few statements."""
    rng = random.Random(seed)
    body = [line for _ in range(rng.randrange(4)) for line in _statement(rng, "    ", 2)]
    lines = [*body, f"    return {_expression(rng, 3)}"]
    return "def f(x, y):\n    z = [x, y, 3]\n    n = 2\n" + "\n".join(lines)


def _statement(rng: random.Random, indent: str, depth: int) -> list[str]:
    kind = rng.randrange(6 if depth else 3)
    inner = indent + "  "
    block = [f"{inner}n = {_expression(rng, 2)}"]
    if kind >= 3:
        block = _statement(rng, inner, depth - 1)
    if kind == 0:
        return [f"{indent}n = {_expression(rng, 2)}"]
    if kind == 1:
        return [f"{indent}n {rng.choice(['+=', '-=', '*=', '//=', '%='])} {_expression(rng, 1)}"]
    if kind == 2:
        return [f"{indent}z = {_list(rng, 2)}"]
    if kind == 3:
        tests = [f"{indent}if {_expression(rng, 1)}:", f"{indent}elif {_expression(rng, 1)}:"]
        return [tests[0], *block, tests[1], f"{inner}pass", f"{indent}else: n = {rng.randrange(9)}"]
    if kind == 4:
        return [f"{indent}for i in {_list(rng, 1)}:", *block, f"{inner}n = n + i"]
    return [f"{indent}while n > 3:", f"{inner}n = n // 2 - 1", *block]


def _list(rng: random.Random, depth: int) -> str:
    a, b = _expression(rng, depth - 1), _expression(rng, depth - 1)
    return rng.choice(
        [
            f"[{a}, {b}, n]",
            f"sorted(z + [{a}])",
            f"list(range({a} % 7, {b} % 9))",
            f"z[{rng.choice(['::-1', '1:', ':-1', '::2', f'{a}:{b}'])}]",
            "z",
            f"z * ({a} % 3)",
        ]
    )


def _expression(rng: random.Random, depth: int) -> str:
    if depth <= 0:
        return rng.choice(["x", "y", "n", "True", str(rng.randrange(12))])
    a, b, c = (_expression(rng, depth - 1) for _ in range(3))
    return rng.choice(
        [
            f"{a} {rng.choice(['+', '-', '*', '//', '%'])} {b}",
            f"({a} {rng.choice(['+', '-', '*', '//', '%'])} {b}) * {c}",
            f"{a} {rng.choice(['<', '<=', '==', '!=', '>', '>='])} {b} < {c}",
            f"({a}) if ({b}) else {c}",
            f"({a} {rng.choice(['and', 'or'])} not {b})",
            f"-{a}" if a[0] != "n" else f"--{a}",
            f"({a}) ** 2",
            f"{rng.choice(['max', 'min'])}({a}, {b})",
            f"{rng.choice(['len', 'sum', 'max'])}({_list(rng, depth)})",
            f"z[{rng.randrange(-1, 3)}]",
            f"({a} {rng.choice(['in', 'not in'])} z)",
            f"abs({a})",
        ]
    )
