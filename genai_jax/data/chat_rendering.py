"""Renders chat templates in a process of its own: `python chat_rendering.py < request > answer`.

A template is a program by a stranger. Jinja2's sandbox keeps it from Python's insides; it does not
keep it from taking all time and memory, and hardly can: operators, filters, methods of strings,
formats and even the folding of constants by the compiler make a gigabyte of a few characters, all
of them in C, where no check of ours can interrupt. So it is the kernel that bounds this process.
Nothing of the package is imported here: a start takes a tenth of a second, and no JAX.

Where there is no `resource` (Windows), the caller's clock is the only bound.
"""

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

MOST_CHARACTERS = 1 << 23
"""Of a rendered conversation."""

_MOST_MEMORY = 1 << 29
_MOST_SAID = 300


class _Refused(Exception):
    """What is said of a template that is not rendered."""


def limit_resources(seconds: int) -> None:
    """Bound this process: `seconds` of its processor's time, half a GiB, and no file written."""
    try:
        import resource
    except ImportError:
        return
    wanted = {
        resource.RLIMIT_AS: _MOST_MEMORY,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        try:
            _, hard = resource.getrlimit(what)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS does not bound the address space
            continue


def make_environment(today: str = "") -> Any:
    """Make the environment that transformers renders chat templates in.

    Args:
        today: The date that a template is told, as 2026-01-31; empty is that of the clock.
    """
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class GenerationTag(Extension):
        """`{% generation %}`, which tells trainers what the assistant says; here it is a scope."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        """Says no at once, where the sandbox would give an empty text first."""

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            raise SecurityError(f"{type(obj).__name__}.{attribute} is out of bounds")

    class PublicNamespace(Namespace):
        """A namespace without names that Python gives a meaning."""

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    def check_name(name: str) -> None:
        if name.startswith("_"):
            raise SecurityError(f"the name {name!r} of a namespace is out of bounds")

    def namespace(*args: Any, **fields: Any) -> Any:
        fields = dict(*args, **fields)
        for name in fields:
            check_name(name)
        return PublicNamespace(fields)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        options: dict[str, Any] = {"indent": indent, "separators": separators}
        return json.dumps(x, ensure_ascii=ensure_ascii, sort_keys=sort_keys, **options)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    now = datetime.fromisoformat(today) if today else datetime.now()
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": now.strftime,
        "namespace": namespace,
        "dict": lambda *args, **fields: dict(*args, **fields),  # not the type itself
    }
    return environment


def make_marker(marks: Mapping[str, str]) -> Callable[[str], str]:
    """Make what replaces texts by their marks, the longest that matches."""
    if not marks:
        return lambda text: text
    longest = sorted(marks, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest)))
    return lambda text: pattern.sub(lambda found: marks[found[0]], text)


def mark_literals(tree: Any, mark: Callable[[str], str]) -> None:
    """Mark what a template itself says: its text, and the strings in its expressions."""
    from jinja2 import nodes

    for text in tree.find_all(nodes.TemplateData):
        text.data = mark(text.data)
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            constant.value = mark(constant.value)


Rendering = Callable[[Mapping[str, Any]], tuple[str, str]]


def compile_template(
    source: str, tokens: Mapping[str, str], marks: Mapping[str, str], today: str = ""
) -> Rendering:
    """Make what renders a template, as it is and with marks.

    Args:
        source: The template.
        tokens: Texts of special tokens that it may read, by the names of variables.
        marks: What stands for each special token wherever the template writes it, and `tokens` do;
            in other variables nothing is marked.
        today: As `make_environment` takes it.

    Returns:
        From the variables that it may read to the text without marks, and the text with them.
    """
    environment = make_environment(today)

    def make(mark: Callable[[str], str]) -> Callable[[Mapping[str, Any]], str]:
        tree = environment.parse(source)
        mark_literals(tree, mark)
        code = environment.compile(tree)
        template = environment.template_class.from_code(
            environment, code, environment.make_globals(None)
        )
        texts = {name: mark(text) for name, text in tokens.items()}
        return lambda variables: "".join(_bounded(template.generate(**texts | dict(variables))))

    plain = make(make_marker({}))
    marked = make(make_marker(marks)) if marks else plain
    return lambda variables: (plain(variables), marked(variables))


def render(
    source: str, variables: Mapping[str, Any], tokens: Mapping[str, str], marks: Mapping[str, str]
) -> tuple[str, str]:
    """Render a template once; arguments and result as `compile_template`."""
    return compile_template(source, tokens, marks)(variables)


def _bounded(parts: Iterator[str]) -> Iterator[str]:
    size = 0
    for part in parts:
        size += len(part)
        if size > MOST_CHARACTERS:
            raise _Refused(f"it writes more than {MOST_CHARACTERS:,} characters")
        yield part


def answer(request: Mapping[str, Any]) -> list[dict[str, str]]:
    """Render each of the `conversations` that are asked for, or say why not."""
    conversations = request["conversations"]
    made: list[Rendering] = []

    def compiled() -> dict[str, str]:
        names = ("source", "tokens", "marks", "today")
        made.append(compile_template(*(request[name] for name in names)))
        return {}

    def rendered(variables: Mapping[str, Any]) -> dict[str, str]:
        plain, marked = made[0](variables)
        return {"plain": plain, "marked": marked}

    if fault := _attempt(compiled):
        return [fault] * len(conversations)
    return [_attempt(functools.partial(rendered, variables)) for variables in conversations]


def _attempt(action: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Do something with a template, or say why it cannot be done."""
    try:
        return action()
    except MemoryError:
        return {"error": "it needs more memory than it may have"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except _Refused as error:
        return {"error": str(error)}
    except Exception as error:  # whatever a template can raise
        said = f"{type(error).__name__}: {error}"
        if line := getattr(error, "lineno", None):
            said += f" (line {line})"
        printable = "".join(c if c.isprintable() else " " for c in said[:_MOST_SAID])
        return {"error": printable}


def main() -> None:
    """Answer the request on stdin."""
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401 - before files are out of reach

    request = json.loads(sys.stdin.buffer.read())
    limit_resources(request.pop("seconds"))
    sys.stdout.write(json.dumps(answer(request)))


if __name__ == "__main__":
    main()
