"""A service small enough for tests: a model that recites, or a random one, and a plain template."""

import functools
import threading

import jax
import numpy as np

from genai_jax.constraints.languages import compile_json_schema, compile_regex
from genai_jax.data.tokenizers import ByteTokenizer
from genai_jax.decoding.engine import Engine
from genai_jax.models.lm import LanguageModel
from genai_jax.nn.config import TransformerConfig
from genai_jax.serving.asked import Limits, Served
from genai_jax.serving.exchange import Service
from genai_jax.serving.worker import Worker

TOKENIZER = ByteTokenizer()
CONTEXT = 192
CONFIG = TransformerConfig(
    vocab_size=257, num_layers=1, embed_dim=8, num_heads=1, max_length=CONTEXT, init_std=0.3
)
# By position: what follows a prompt of n tokens begins at the character n - 1.
TEXT = "0123456789 naïve café, naïve tea: 茶 and 🙂 more of it"


class PlainChat:
    """Roles and contents, a line each."""

    def encode(self, tokenizer, messages):
        if any(message["content"] == "refuse me" for message in messages):
            raise ValueError("the template refuses that.")
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return tokenizer.encode("".join([*lines, "assistant:"]))

    def end_ids(self, tokenizer):
        return (*tokenizer.end_ids, 0)


class Recital:
    """A model that recites a text, whatever it is asked: logits by position."""

    def __init__(self, text=TEXT):
        self.config = CONFIG
        ids = [*TOKENIZER.encode(text), TOKENIZER.eot_id]
        self.table = np.full((CONTEXT + 64, CONFIG.vocab_size), -100.0, np.float32)
        self.table[np.arange(len(ids)), ids] = 100.0
        self.table[len(ids) :, ord("~")] = 100.0

    def init_cache(self, rows, slots, *, reach=1, quantized=False):
        return jax.numpy.zeros((rows, slots))

    def decode(self, tokens, cache, positions, lengths=None):
        return self.table[positions], cache

    def logits(self, hidden):
        return hidden


def _rebuild(leaves):
    recital = object.__new__(Recital)
    recital.config, (recital.table,) = CONFIG, leaves
    return recital


jax.tree_util.register_pytree_node(
    Recital,
    lambda recital: ((jax.numpy.asarray(recital.table),), None),
    lambda _, leaves: _rebuild(leaves),
)


class PacedEngine(Engine):
    """An engine that goes on only as often as it may, and can be made to fail."""

    def __init__(self, model, *, pace=None, **options):
        super().__init__(model, **options)
        self.pace = pace or Pace()
        self.pace.engines.append(self)

    def step(self, steps=64):
        if not self.pace.open.is_set():
            assert self.pace.steps.acquire(timeout=60), "nobody lets the engine go on"
        if self.pace.failures:
            self.pace.failures -= 1
            raise RuntimeError("out of memory")
        self.pace.asked.append(steps)
        return super().step(steps)


class Pace:
    """How an engine may go on: freely at first."""

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.steps = threading.Semaphore(0)
        self.failures = 0
        self.asked = []
        self.engines = []

    def hold(self):
        self.open.clear()

    def release(self, steps=None):
        """Let it take some steps, or go on freely."""
        if steps is None:
            self.open.set()
        self.steps.release(steps or 1)


@functools.cache
def random_model():
    return LanguageModel(CONFIG, jax.random.key(0))


def make_worker(model=None, pace=None, rows=3):
    """A worker that has begun."""
    model = Recital() if model is None else model
    shape = {"rows": rows, "context": CONTEXT, "chunk": 16, "vocab_size": 257}
    worker = Worker(functools.partial(PacedEngine, model, pace=pace, **shape), TOKENIZER)
    worker.start()
    return worker


def make_served(**changes):
    options = {
        "name": "tiny",
        "tokenizer": TOKENIZER,
        "vocab_size": 257,
        "context": CONTEXT,
        "chat": PlainChat(),
        "compile_regex": lambda pattern: compile_regex(pattern, TOKENIZER),
        "compile_schema": lambda schema: compile_json_schema(schema, TOKENIZER),
        "fingerprint": "fp_tiny",
        "created": 7,
    }
    return Served(**options | changes)


def make_service(model=None, pace=None, *, rows=3, limits=None, api_key="", **changes):
    worker = make_worker(model, pace, rows)
    return Service(make_served(**changes), worker, limits or Limits(), api_key)
