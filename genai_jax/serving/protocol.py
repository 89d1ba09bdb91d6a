"""From the bodies of OpenAI's `completions` and `chat/completions` to what the engine is asked.

Pure, and without a web server. Fields are OpenAI's, a few of vLLM's (`top_k`, `min_p`, `typical_p`,
`repetition_penalty`, `min_tokens`, `stop_token_ids`, `guided_regex`), and `overflow`: what happens
where a text exceeds the context, as the engine has it; by default it is refused, as OpenAI does.
"""

import dataclasses
import math
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from genai_jax.constraints.token_automaton import TokenAutomaton
from genai_jax.decoding.requests import MOST_STOPS, ContextError, Request, check_request
from genai_jax.decoding.sampling import SamplingConfig
from genai_jax.decoding.text import prompt_tokens
from genai_jax.serving.asked import Asked, Kind, Limits, Served
from genai_jax.serving.errors import ApiError
from genai_jax.serving.fields import Fields, is_integer, is_number, is_text, show
from genai_jax.serving.messages import read_messages

FORBIDS = -100
"""The bias that forbids a token; above it, a bias is added to the logit."""

_COMMON = (
    *("model", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "seed", "logprobs"),
    *("response_format", "guided_regex", "overflow", "stop_token_ids", "min_tokens"),
    *("top_k", "min_p", "typical_p", "repetition_penalty"),
)
# They tell callers apart, and have no bearing on the text.
_UNUSED = ("user", "safety_identifier", "prompt_cache_key")
_FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "completion": (*_COMMON, "prompt"),
    "chat": (*_COMMON, "messages", "max_completion_tokens", "top_logprobs"),
}
# What OpenAI has and we have not, with the values by which a client asks for nothing of it.
_UNSUPPORTED: Mapping[Kind, Mapping[str, tuple[Any, ...]]] = {
    "completion": {"best_of": (1,), "echo": (False,), "suffix": ("",)},
    "chat": {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "store": (False,),
        **dict.fromkeys(("audio", "prediction", "reasoning_effort", "verbosity"), ()),
        **dict.fromkeys(("web_search_options", "metadata", "moderation"), ()),
        **dict.fromkeys(("prompt_cache_options", "prompt_cache_retention"), ()),
    },
}
_OVERFLOWS = ("error", "stop", "truncate", "roll")
_FORMATS = ("text", "json_object", "json_schema")
_MOST_STOP_TEXTS = 4
_MOST_STOP_CHARACTERS = 256
_MOST_BIASES = 1024
_MOST_PATTERN = 1 << 16
_MOST_SEED = 2**63
_DEFAULT_TOKENS = 16  # of a completion, as OpenAI's
# Below, quotients of logits may overflow, and nothing but the likeliest token is left anyway.
_GREEDY = 1e-4
_MOST_LOGPROBS = {"completion": 5, "chat": 20}


def read_request(kind: Kind, body: Any, served: Served, limits: Limits) -> Asked:
    """Read what a client asks for.

    The i-th of the `n` texts of a prompt has the seed `seed + i`: the same request with the same
    seed gives the same texts, alone or beside others, whatever other prompts it has.

    Args:
        kind: Which of the two endpoints it was sent to.
        body: JSON, as Python has it.
        served: The model.
        limits: How much may be asked for.

    Raises:
        ApiError: If it cannot be answered.
    """
    fields = Fields(body)
    _refuse_unsupported(kind, fields)
    fields.only((*_FIELDS[kind], *_UNSUPPORTED[kind], *_UNUSED))
    for name in _UNUSED:
        fields.text(name)
    _check_model(fields, served)
    n = fields.integer("n", 1, limits.choices) or 1
    stream = fields.flag("stream")
    include_usage = _read_stream_options(fields, stream)
    logprobs = _read_logprobs(kind, fields)
    stop = _read_stop(fields)
    seed = fields.integer("seed", -_MOST_SEED, _MOST_SEED - 1)
    seed = secrets.randbits(32) if seed is None else seed
    request = Request(
        (),
        _read_sampling(fields, served),
        stop_ids=_read_stop_ids(kind, fields, served),
        overflow=fields.option("overflow", _OVERFLOWS) or "error",  # type: ignore[arg-type]
        automaton=_read_constraint(fields, served),
        alternatives=logprobs or 0,
    )
    if kind == "chat":
        field, prompts = "messages", [read_messages(fields, served, limits)]
    else:
        field, prompts = "prompt", _read_prompts(fields, served, limits.choices // n)
    requests = []
    for prompt in prompts:
        most = _read_max_tokens(kind, fields, len(prompt), served, limits)
        one = dataclasses.replace(request, prompt=prompt, max_tokens=most)
        _check(one, field, served)
        requests += [dataclasses.replace(one, seed=seed + number) for number in range(n)]
    return Asked(
        kind, tuple(requests), sum(map(len, prompts)), stop, logprobs, stream, include_usage
    )


def _refuse_unsupported(kind: Kind, fields: Fields) -> None:
    for name, neutral in _UNSUPPORTED[kind].items():
        value = fields.get(name)
        if value is not None and not any(
            type(value) is type(other) and value == other for other in neutral
        ):
            raise ApiError(
                f"`{name}` is not supported here; got {show(value)}. Leave it out.",
                param=name,
                code="unsupported_parameter",
            )


def _check_model(fields: Fields, served: Served) -> None:
    name = fields.text("model")
    if name is None:
        fields.refuse("model", "must be given", f"Here it is {served.name!r}.")
    if name != served.name:
        raise ApiError(
            f"there is no model {show(name)} here. Ask for {served.name!r}.",
            status=404,
            param="model",
            code="model_not_found",
        )


def _read_stream_options(fields: Fields, stream: bool) -> bool:
    value = fields.get("stream_options")
    if value is None:
        return False
    if not stream:
        fields.refuse("stream_options", "must be given with `stream` true only", "Leave it out.")
    options = Fields(value, "stream_options")
    options.only(("include_usage", "include_obfuscation"))
    if options.flag("include_obfuscation"):
        options.refuse("include_obfuscation", "is not supported here", "Leave it out.")
    return options.flag("include_usage")


def _read_logprobs(kind: Kind, fields: Fields) -> int | None:
    most = _MOST_LOGPROBS[kind]
    if kind == "completion":
        return fields.integer("logprobs", 0, most)
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, most)
    if top is not None and not wanted:
        fields.refuse("top_logprobs", "must be given with `logprobs` true only", "Set that too.")
    return (top or 0) if wanted else None


def _read_stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list)
        or len(texts) > _MOST_STOP_TEXTS
        or not all(is_text(x) and 0 < len(x) <= _MOST_STOP_CHARACTERS for x in texts)
    ):
        fields.refuse(
            "stop",
            f"must be a text of 1 to {_MOST_STOP_CHARACTERS} characters, or a list of at most "
            f"{_MOST_STOP_TEXTS} of them",
        )
    return tuple(texts)


def _read_stop_ids(kind: Kind, fields: Fields, served: Served) -> tuple[int, ...]:
    chat = served.chat if kind == "chat" else None
    tokenizer = served.tokenizer
    ends = tokenizer.end_ids if chat is None else chat.end_ids(tokenizer)
    value = fields.get("stop_token_ids")
    ids = [] if value is None else value
    if (
        not isinstance(ids, list)
        or not all(is_integer(x) and 0 <= x < served.vocab_size for x in ids)
        or len({*ends, *ids}) > MOST_STOPS
    ):
        fields.refuse(
            "stop_token_ids",
            f"must be at most {MOST_STOPS - len(ends)} ids from 0 to {served.vocab_size - 1}",
        )
    return tuple(dict.fromkeys((*ends, *ids)))


def _read_sampling(fields: Fields, served: Served) -> SamplingConfig:
    # -1 keeps all, too, for vLLM's users.
    top_k = fields.integer("top_k", -1, 2**31 - 1) or 0
    temperature = fields.number("temperature", 0, 2, 1.0)
    return SamplingConfig(
        temperature=temperature if temperature >= _GREEDY else 0.0,
        top_k=max(0, top_k),
        top_p=fields.fraction("top_p"),
        min_p=fields.number("min_p", 0, 1, 0.0),
        typical_p=fields.fraction("typical_p"),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100, 1.0),
        presence_penalty=fields.number("presence_penalty", -2, 2, 0.0),
        frequency_penalty=fields.number("frequency_penalty", -2, 2, 0.0),
        logit_bias=_read_bias(fields, served),
        min_tokens=fields.integer("min_tokens", 0, 2**31 - 1) or 0,
    )


def _read_bias(fields: Fields, served: Served) -> dict[int, float]:
    value = fields.get("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST_BIASES:
        fields.refuse("logit_bias", f"must be an object of at most {_MOST_BIASES} ids and numbers")
    found: dict[int, float] = {}
    for name, bias in value.items():
        token = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else -1
        if not 0 <= token < served.vocab_size or token in found:
            raise ApiError(
                f"`logit_bias` must name ids from 0 to {served.vocab_size - 1}, each once; got "
                f"{show(name)}.",
                param="logit_bias",
            )
        if not is_number(bias) or not FORBIDS <= bias <= -FORBIDS:
            raise ApiError(
                f"`logit_bias` must be numbers from {FORBIDS} to {-FORBIDS}; got {show(bias)} for "
                f"id {token}. {FORBIDS} forbids it.",
                param="logit_bias",
            )
        found[token] = -math.inf if bias == FORBIDS else float(bias)
    return found


def _read_constraint(fields: Fields, served: Served) -> TokenAutomaton | None:
    pattern = fields.text("guided_regex")
    value = fields.get("response_format")
    schema = None if value is None else _read_format(Fields(value, "response_format"))
    if pattern is not None and schema is not None:
        fields.refuse("guided_regex", "must not be given with a `response_format`", "Choose one.")
    try:
        if schema is not None:
            return served.compile_schema(schema)
        if pattern is not None:
            if len(pattern) > _MOST_PATTERN:
                fields.refuse("guided_regex", f"must have at most {_MOST_PATTERN} characters")
            return served.compile_regex(pattern)
    except ValueError as error:
        param = "response_format" if pattern is None else "guided_regex"
        raise ApiError(f"`{param}`: {error}", param=param, code="bad_constraint") from error
    return None


def _read_format(fields: Fields) -> Mapping[str, Any] | None:
    """Give the schema that a text must be valid by; None where it may be anything."""
    kind = fields.option("type", _FORMATS)
    if kind is None:
        fields.refuse("type", f"must be one of {', '.join(_FORMATS)}")
    fields.only(("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inner = Fields(fields.get("json_schema"), "response_format.json_schema")
    inner.only(("name", "description", "schema", "strict"))
    inner.text("description")
    # Text is held to the schema either way.
    inner.flag("strict")
    if not inner.text("name"):
        inner.refuse("name", "must be given, and not empty")
    schema = inner.get("schema")
    if not isinstance(schema, dict):
        inner.refuse("schema", "must be an object")
    return schema


def _read_prompts(fields: Fields, served: Served, most: int) -> list[np.ndarray]:
    """Read one prompt or several, as texts or as ids."""
    value = fields.get("prompt")
    several = isinstance(value, list) and not all(map(is_integer, value))
    prompts = value if several else [value]
    if len(prompts) > most:
        fields.refuse("prompt", f"must be at most {most} prompts with this `n`", "Send fewer.")
    read = []
    for prompt in prompts:
        if isinstance(prompt, str) and is_text(prompt):
            try:
                read.append(prompt_tokens(served.tokenizer, prompt))
            except ValueError as error:
                raise ApiError(f"`prompt`: {error}", param="prompt") from error
        elif _are_ids(prompt, served.vocab_size):
            read.append(np.array(prompt, np.int32))
        else:
            fields.refuse(
                "prompt",
                "must be a text, a list of texts, a list of ids, or a list of lists of ids; an id "
                f"is from 0 to {served.vocab_size - 1}, and there must be one",
            )
    return read


def _are_ids(value: Any, vocab_size: int) -> bool:
    """Whether it is a list of ids, and not empty."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(is_integer(token) and 0 <= token < vocab_size for token in value)
    )


def _read_max_tokens(
    kind: Kind, fields: Fields, length: int, served: Served, limits: Limits
) -> int:
    """Say how many tokens may follow a prompt of some length."""
    most = fields.integer("max_tokens", 1, limits.max_tokens)
    if kind == "chat":
        newer = fields.integer("max_completion_tokens", 1, limits.max_tokens)
        if None not in (most, newer) and most != newer:
            fields.refuse(
                "max_tokens", "must not contradict `max_completion_tokens`", "Leave it out."
            )
        most = most if newer is None else newer
    if most is not None:
        return most
    room = served.context - length
    # Where the prompt itself overflows, and may, half of the context is made free.
    default = _DEFAULT_TOKENS if kind == "completion" else room if room > 0 else served.context // 2
    least = fields.integer("min_tokens", 0, limits.max_tokens) or 0
    return max(1, least, min(default, limits.max_tokens))


def _check(request: Request, field: str, served: Served) -> None:
    """Refuse what the engine would refuse, or never end, before it waits for a row."""
    sampling, automaton = request.sampling, request.automaton
    never = sampling.excluded | set(request.stop_ids if sampling.min_tokens else ())
    if len(never) >= served.vocab_size:
        raise ApiError(
            "`logit_bias` and `min_tokens` must leave something to draw; together they exclude all "
            f"{served.vocab_size} ids.",
            param="logit_bias",
        )
    try:
        check_request(request, served.vocab_size, served.context)
    except ContextError as error:
        raise ApiError(str(error), param=field, code="context_length_exceeded") from error
    except ValueError as error:
        raise ApiError(str(error)) from error
    if automaton is not None and (automaton.successors[automaton.start] < 0).all():
        raise ApiError(
            "what a text is held to must have a text that is not empty.", code="bad_constraint"
        )
