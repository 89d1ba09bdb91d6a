"""The world of the tests: eight CPU devices, checked shapes, and nobody's cache but their own."""

import atexit
import gc
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

_scratch = tempfile.TemporaryDirectory(prefix="genai_jax_tests_")
atexit.register(_scratch.cleanup)

# Before anything imports JAX, and in the environment, so that scripts under test inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"
    # Most of a test's time is LLVM's: without its optimizations, half.
    " --xla_backend_optimization_level=0"
    # JAX 0.10 takes none of its cached programs on a CPU with AVX-512 (jax issue 38445).
    " --xla_cpu_max_isa=AVX2"
).strip()
# What one process has compiled, another loads, and so does a run that is started again.
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has that of the process that started it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_scratch.name, "programs")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["MPLBACKEND"] = "agg"
# At import rather than in a fixture: modules under test may look for it while they are collected.
os.environ["XDG_CACHE_HOME"] = _scratch.name

import jax  # noqa: E402
import pytest  # noqa: E402
from beartype import BeartypeConf, beartype  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

# Annotated shapes and types are checked at every call into the package; an int is a float, as it is
# to mypy. The hook wants a checker that can be imported by name.
sys.modules["tests_typechecker"] = SimpleNamespace(  # type: ignore[assignment]
    check=beartype(conf=BeartypeConf(is_pep484_tower=True))
)
install_import_hook("genai_jax", "tests_typechecker.check")


def pytest_collection_modifyitems(items):
    """Whole runs, whose files lie beside this one, first: a long file that begins last, as it would
    where files are taken by their number of tests, leaves the other processes with nothing."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


_MAPS = Path("/proc/self/maps")  # of Linux, which ends a process that asks for more than 65,530


@pytest.fixture(scope="module", autouse=True)
def _programs_are_let_go():
    """Forget compiled programs after a file once they fill a third of the memory maps there are.

    A program takes about eight; without this, XLA aborts after some three thousand tests.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script; returns the exit code and what it printed to stdout and stderr."""

    def call(module, *flags):
        monkeypatch.setattr(sys, "argv", [module.__name__, *flags])
        capsys.readouterr()
        try:
            code = module.main()
        except SystemExit as error:  # told by the command line itself
            code = error.code
        return code, *capsys.readouterr()

    return call
