"""The messages of a conversation, as OpenAI's clients send them, and as a chat template reads them.

A message is text: its `content` is a string, or a list of parts that are all text and are joined by
line ends. A `developer` is a `system`, its name in OpenAI's older models.
"""

from typing import Any

import numpy as np

from genai_jax.serving.asked import Limits, Served
from genai_jax.serving.errors import ApiError
from genai_jax.serving.fields import Fields, show

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What OpenAI's own answers carry beside a role and a content: null, where there is nothing of it.
_UNSUPPORTED = (
    *("name", "refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id"),
)


def read_messages(fields: Fields, served: Served, limits: Limits) -> np.ndarray:
    """Read a conversation.

    Returns:
        The ids of its text, the beginning of an answer included.

    Raises:
        ApiError: If it is no conversation, or the model cannot be talked with.
    """
    if served.chat is None:
        raise ApiError(
            f"a model must have a chat template to be talked with; {served.name!r} has none. Send "
            "a text to /v1/completions.",
            code="no_chat_template",
        )
    value = fields.get("messages")
    if not isinstance(value, list) or not 0 < len(value) <= limits.messages:
        fields.refuse("messages", f"must be a list of 1 to {limits.messages} messages")
    messages = [_read_message(message, f"messages[{i}]") for i, message in enumerate(value)]
    try:
        return np.asarray(served.chat.encode(served.tokenizer, messages), np.int32)
    except ValueError as error:
        raise ApiError(f"`messages`: {error}", param="messages") from error


def _read_message(value: Any, where: str) -> dict[str, str]:
    fields = Fields(value, where)
    fields.only(("role", "content", *_UNSUPPORTED))
    for name in _UNSUPPORTED:
        if fields.get(name) is not None:
            fields.refuse(name, "is not supported here", "Leave it out.", "unsupported_parameter")
    role = fields.option("role", tuple(_ROLES))
    if role is None:
        fields.refuse("role", f"must be one of {', '.join(_ROLES)}")
    content = fields.get("content")
    if isinstance(content, list):
        content = "\n".join(_read_part(x, f"{where}.content[{i}]") for i, x in enumerate(content))
    elif not isinstance(content, str):
        fields.refuse("content", "must be a text, or a list of parts that are texts")
    else:
        fields.text("content")
    return {"role": _ROLES[role], "content": content}


def _read_part(value: Any, where: str) -> str:
    fields = Fields(value, where)
    kind = fields.get("type")
    if kind != "text":
        raise ApiError(
            f"`{where}.type` must be text; got {show(kind)}. This model reads nothing else.",
            param=f"{where}.type",
            code="unsupported_content",
        )
    fields.only(("type", "text"))
    text = fields.text("text")
    if text is None:
        fields.refuse("text", "must be given")
    return text
