"""The rules of the house, read off the source: who may import whom, and what is never written."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TREES = ("genai_jax", "experiments", "benchmarks")

# Imports go only downward: from a later layer to an earlier one, never between siblings.
LAYERS = (
    {"types"},
    {"paths", "command_line"},
    {"parallel"},
    {"data", "nn", "diffusion", "constraints"},
    {"models"},
    {"objectives", "decoding", "interop"},
    {"training"},
    {"evaluation"},
    {"rl"},
    {"serving"},
    {"experiments"},
    {"benchmarks"},  # they time what the experiments run
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}

# `training` stands above these, yet receives them as arguments and never by import.
HANDED_TO_TRAINING = {"models", "objectives", "decoding", "interop"}

NNX_TRANSFORMS = {
    *("jit", "pmap", "shard_map", "vmap", "scan", "remat", "eval_shape"),
    *("grad", "value_and_grad", "custom_vjp", "Optimizer"),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

README_COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -q -e . "
    "&& .venv/bin/python experiments/lm_pretrain.py",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/python -m pytest",
)

# Distributions whose import name is not their own name.
DISTRIBUTION = {"orbax": "orbax-checkpoint", "sklearn": "scikit-learn", "PIL": "pillow"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[Path]:
    return sorted(path for tree in TREES for path in (ROOT / tree).rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def room_of(path: Path) -> str:
    """The name in LAYERS that a file belongs to; empty for `genai_jax/__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "genai_jax":
        return parts[0]
    return "" if parts[1] == "__init__" else parts[1]


def imported_names(path: Path, node: ast.AST) -> list[str]:
    """Absolute dotted names that an import statement may bring in, longest last."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = path.relative_to(ROOT).parts[:-1]
        package = package[: len(package) - node.level + 1]
        base = ".".join((*package, *filter(None, [node.module])))
    return [f"{base}.{alias.name}" for alias in node.names]


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(parse(path)):
        for name in imported_names(path, node):
            yield node, name


def room_imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Rooms of this project that a file imports, wherever in the file it does so."""
    for node, name in imports(path):
        parts = name.split(".")
        if parts[0] == "genai_jax":
            yield node, parts[1] if len(parts) > 1 else ""
        elif parts[0] in TREES:
            yield node, parts[0]


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain; empty where it does not start from a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def report(faults: list[str], rule: str) -> None:
    assert not faults, rule + "\n  " + "\n  ".join(faults)


def test_every_room_has_a_place_in_the_order():
    rooms = {room_of(path) for path in source_files()} - {""}
    assert rooms <= RANK.keys(), f"not in LAYERS: {sorted(rooms - RANK.keys())}"


def test_every_package_directory_can_be_discovered():
    faults = [
        str(folder.relative_to(ROOT))
        for folder in {path.parent for path in (ROOT / "genai_jax").rglob("*.py")}
        if not (folder / "__init__.py").exists()
    ]
    report(sorted(faults), "a folder of the package needs an __init__.py")


def test_imports_go_only_downward():
    faults = []
    for path in source_files():
        room = room_of(path)
        for node, other in room_imports(path):
            if other in ("", room, "__version__"):
                continue
            if not room or RANK.get(other, len(LAYERS)) >= RANK[room]:
                faults.append(f"{where(path, node)}: {room or 'genai_jax'} imports {other}")
    report(faults, "imports go down the layers, and never between siblings")


def test_training_is_handed_its_models_and_objectives():
    faults = [
        f"{where(path, node)}: imports {other}"
        for path in source_files()
        if room_of(path) == "training"
        for node, other in room_imports(path)
        if other in HANDED_TO_TRAINING
    ]
    report(faults, "training knows no model and no objective: they arrive as arguments")


def test_flax_stays_in_nn_and_models():
    faults = [
        f"{where(path, node)}: imports {name}"
        for path in source_files()
        for node, name in imports(path)
        if name.split(".")[0] == "flax"
        and (room_of(path) not in ("nn", "models") or not f"{name}.".startswith("flax.nnx."))
    ]
    report(faults, "flax.nnx is imported only in nn/ and models/, and nothing else of flax")


def test_nothing_forbidden_is_called():
    faults = []
    for path in source_files():
        for node in ast.walk(parse(path)):
            name = dotted(node)
            owner, _, last = name.rpartition(".")
            if owner.split(".")[-1] == "nnx" and last in NNX_TRANSFORMS:
                faults.append(f"{where(path, node)}: {name}: use the transform of jax")
            if isinstance(node, ast.Attribute) and node.attr in ("pmap", "sow"):
                faults.append(f"{where(path, node)}: .{node.attr}")
            if isinstance(node, ast.Call) and dotted(node.func) == "hash":
                faults.append(f"{where(path, node)}: hash() differs between processes: use crc32")
        for node, name in imports(path):
            base, _, last = name.rpartition(".")
            if last == "pmap" or (base == "flax.nnx" and last in NNX_TRANSFORMS):
                faults.append(f"{where(path, node)}: imports {name}")
            if name.split(".")[0] == "tensorflow":
                faults.append(f"{where(path, node)}: nothing needs TensorFlow")
    report(faults, "forbidden names")


def module_classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    """Classes that descend from `nnx.Module`, through any of ours, by name."""
    classes = [
        (path, node)
        for path in source_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef)
    ]
    modules = {"Module"}
    while True:
        found = {
            node.name
            for _, node in classes
            if any(dotted(base).split(".")[-1] in modules for base in node.bases)
        }
        if found <= modules:
            break
        modules |= found
    return ((path, node) for path, node in classes if node.name in modules)


def written(node: ast.AST) -> Iterator[ast.AST]:
    """Attributes and items that a statement writes or deletes, and `setattr` calls."""
    if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        yield node
    if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in (
        "setattr",
        "__setattr__",
        "delattr",
    ):
        yield from node.args[:1]


def root_name(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_modules_are_written_only_by_their_constructor():
    faults = []
    for path, module in module_classes():
        for method in module.body:
            if not isinstance(method, Function) or method.name == "__init__":
                continue
            if not method.args.args:
                continue
            me = method.args.args[0].arg
            faults += [
                f"{where(path, target)}: {module.name}.{method.name}"
                for node in ast.walk(method)
                for target in written(node)
                if root_name(target) == me
            ]
    report(faults, "a write to self outside __init__ is silently lost inside jit")


def test_files_and_functions_are_short():
    faults = []
    for path in source_files():
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > MAX_FILE_LINES:
            faults.append(f"{path.relative_to(ROOT)}: {length} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, Function):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    faults.append(f"{where(path, node)}: {node.name} has {length} lines")
    report(faults, f"at most {MAX_FILE_LINES} lines a file, {MAX_FUNCTION_LINES} a function")


def test_files_are_named_for_what_they_do():
    vague = {"utils", "util", "common", "helpers", "misc"}
    faults = [str(p.relative_to(ROOT)) for p in source_files() if {p.stem, p.parent.name} & vague]
    report(faults, "no utils.py, no common.py: name a file for the idea in it")


def undocumented(scope: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple]:
    for node in scope.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = {dotted(d).split(".")[-1] for d in node.decorator_list}
        if not ast.get_docstring(node) and not decorators & {"overload", "override", "setter"}:
            yield node, prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node, f"{node.name}.")


def test_public_names_are_documented():
    faults = []
    for path in source_files():
        module = parse(path)
        if not ast.get_docstring(module):
            faults.append(f"{path.relative_to(ROOT)}: module")
        faults += [f"{where(path, node)}: {name}" for node, name in undocumented(module)]
    report(faults, "every module, public function, class and method has a docstring")


@cache
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def distributions(requirements: list[str]) -> set[str]:
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0] for line in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_every_import_is_declared():
    """At the top of a file of the package, core only; inside a function or a script, extras too."""
    project = pyproject()["project"]
    core = distributions(project["dependencies"])
    extras = core.union(*map(distributions, project["optional-dependencies"].values()))
    faults = []
    for path in source_files():
        at_top = {id(node) for node in parse(path).body}
        packaged = path.is_relative_to(ROOT / "genai_jax")
        # Python puts a script's own folder first in its path.
        beside = set() if packaged else {sibling.stem for sibling in path.parent.glob("*.py")}
        for node, name in imports(path):
            top = name.split(".")[0]
            if top in TREES or top in sys.stdlib_module_names or top in ("", *beside):
                continue
            distribution = re.sub(r"[-_.]+", "-", DISTRIBUTION.get(top, top)).lower()
            if distribution not in (core if packaged and id(node) in at_top else extras):
                faults.append(f"{where(path, node)}: {top}")
            if top == "tensorflow_datasets" and id(node) in at_top:
                faults.append(f"{where(path, node)}: {top} is imported only where it is used")
    report(faults, "imports without a matching line in pyproject.toml")


def test_packaging_is_thin_and_installs_only_the_package():
    config = pyproject()
    assert config["tool"]["setuptools"]["packages"]["find"] == {
        "include": ["genai_jax", "genai_jax.*"]
    }
    assert config["project"]["requires-python"] == ">=3.11"
    assert "jax>=0.10,!=0.10.2" in config["project"]["dependencies"]
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
    calls = [ast.unparse(node) for node in setup if isinstance(node, ast.Expr)]
    assert calls[1:] == ["setup()"], "setup.py holds no metadata: pyproject.toml does"


def test_readme_opens_with_its_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if line and not line.startswith("#")]
    assert tuple(commands[:2]) == README_COMMANDS


def test_continuous_integration_runs_what_the_readme_says():
    command = ["bash", str(ROOT / ".ci" / "run"), "--print-commands"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    assert tuple(printed.stdout.splitlines()) == README_COMMANDS


def test_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Apache License\n")
    assert "END OF TERMS AND CONDITIONS" in text
    assert text.rstrip().endswith("limitations under the License.")


def test_compiler_does_not_miscompile_matrix_vector_products():
    """The installed jaxlib is free of jax issue 39103: jit keeps sums of vmapped products right."""
    m = np.arange(9, dtype=np.float32).reshape(3, 3)
    x = np.random.default_rng(0).standard_normal((32_769, 3)).astype(np.float32)
    expected = np.square(x.astype(np.float64) @ m.astype(np.float64).T).sum(-1)
    actual = jax.jit(jax.vmap(lambda row: jnp.sum((m @ row) ** 2)))(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_tests_have_eight_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8
