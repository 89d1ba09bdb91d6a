"""Chat templates of Hugging Face's folders: from a conversation to the ids that a model reads.

A template is a program in Jinja2's language; `chat_rendering` runs it, in a bounded process.

What a user writes cannot end a turn. A template's `<|im_end|>` becomes the special id; the same
characters in a message stay characters. Which is which cannot be read off the rendered text, so the
template is changed before it is rendered: whatever special tokens its own literals spell, and
`bos_token` and the like, is replaced by marks that are drawn anew for every call. What comes out
marked is the template's; everything else is text, however a template may have cut, trimmed or
joined the messages. The messages themselves are not touched, so that a template finds in them what
it looks for (Qwen's the end of thinking, say).
"""

import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from genai_jax.data.chat_processes import render_in_process
from genai_jax.data.folders import inside, read_json, read_text
from genai_jax.data.tokenizers import Ids, Tokenizer

Message = Mapping[str, str]
"""`role` (one of `ROLES`) and `content`."""

Variable = bool | int | str

ROLES = ("system", "user", "assistant", "tool")

_MOST_SOURCE = 1 << 20
_MOST_MESSAGES = 1 << 12
_MOST_CONTENT = 1 << 22
_RESERVED = {"messages", "add_generation_prompt", "tools", "documents"}
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ChatTemplateError(ValueError):
    """A chat template cannot be used, or refuses a conversation."""


@dataclass(frozen=True)
class ChatTemplate:
    """What turns a conversation into text.

    Attributes:
        source: In Jinja2's language.
        tokens: Texts of special tokens by the names that the template has for them (`bos_token`).
        name: Where it is from, for errors.
        seconds: Processor time that a rendering may take, at least 1.
        today: The date that it is told if it asks, as 2026-01-31; empty is that of the clock.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    name: str = "a chat template"
    seconds: int = 10
    today: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no template."""
        if len(self.source) > _MOST_SOURCE:
            raise ChatTemplateError(
                f"{self.name} must have at most {_MOST_SOURCE:,} characters; got "
                f"{len(self.source):,}."
            )
        if self.seconds < 1:
            raise ChatTemplateError(f"`seconds` must be at least 1; got {self.seconds}.")
        try:
            date.fromisoformat(self.today or "2026-01-31")
        except ValueError as error:
            raise ChatTemplateError(
                f"`today` must be a date as 2026-01-31; got {self.today!r}."
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Variable] = _NOTHING,
    ) -> str:
        """Render a conversation as text, for eyes: special tokens look like any other text in it.

        Args:
            messages: In their order.
            add_generation_prompt: Whether to end with the beginning of the assistant's answer.
            variables: Others that the template reads, such as Qwen 3's `enable_thinking`.

        Raises:
            ChatTemplateError: If a message is not as it must be, or the template is not, or
                refuses the conversation, or needs more time or memory than it may have.
            ModuleNotFoundError: If Jinja2 is not installed.
        """
        given = self._given(messages, add_generation_prompt, variables)
        return self._render([given], {})[0][0]

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Variable] = _NOTHING,
    ) -> Ids:
        """Render a conversation as ids: the template's special tokens, and text between them.

        Where no message holds the text of a special token, these are the ids of transformers'
        `apply_chat_template`. Nothing in a message, nor in `variables`, becomes a special id. A
        token that the tokenizer's own file does not call special (Qwen 3's `<think>`) is text, for
        everyone. Nothing else is put in front: a template writes its `bos_token` itself.

        Args:
            tokenizer: Of the model that the template belongs to.
            messages: In their order.
            add_generation_prompt: Whether to end with the beginning of the assistant's answer.
            variables: Others that the template reads.

        Raises:
            ChatTemplateError: As `render`, or if the template makes special tokens of parts.
            ModuleNotFoundError: If Jinja2 is not installed.
            ValueError: If the tokenizer cannot encode a text.
        """
        conversation = (messages, add_generation_prompt)
        return self.encode_batch(tokenizer, [conversation], variables=variables)[0]

    def encode_batch(
        self,
        tokenizer: Tokenizer,
        conversations: Sequence[tuple[Sequence[Message], bool]],
        *,
        variables: Mapping[str, Variable] = _NOTHING,
    ) -> list[Ids]:
        """Render conversations as ids: the same as `encode` of each, in few processes.

        Args:
            tokenizer: Of the model that the template belongs to.
            conversations: Messages of each, and whether to end with the beginning of an answer.
            variables: Others that the template reads.

        Raises:
            ChatTemplateError: As `encode`, of the first that it is raised for.
            ModuleNotFoundError: If Jinja2 is not installed.
            ValueError: If the tokenizer cannot encode a text.
        """
        specials = tokenizer.special_ids
        given = [self._given(messages, add, variables) for messages, add in conversations]
        batch = self._parts(specials, given)
        doubtful = [i for i, parts in enumerate(batch) if _spelled(specials, parts)]
        if doubtful:
            # Text, if it is the messages' own: the same conversation with other words tells.
            other = _unlike(specials)
            choices = {n: other if isinstance(x, str) else x for n, x in variables.items()}
            neutral = [
                given[i]
                | choices
                | {"messages": [said | {"content": other} for said in given[i]["messages"]]}
                for i in doubtful
            ]
            for again in self._parts(specials, neutral):
                if made := _spelled(specials, again):
                    raise ChatTemplateError(
                        f"{self.name} must write special tokens whole, to tell them from what "
                        f"users write; it makes {made} of parts. Write it out in the template."
                    )
        return [tokenizer.encode_parts(parts) for parts in batch]

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Give the ids that end an answer: the tokenizer's, and the template's `eos_token`."""
        eos = tokenizer.special_ids.get(self.tokens.get("eos_token", ""))
        return tuple(dict.fromkeys((*tokenizer.end_ids, *(() if eos is None else (eos,)))))

    def _given(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Variable],
    ) -> dict[str, Any]:
        """Give what the template may read of a conversation."""
        for name, value in variables.items():
            if not isinstance(value, bool | int | str):
                raise ChatTemplateError(
                    f"the variable {name!r} must be a truth value, a number or a text; got "
                    f"{type(value).__name__}."
                )
            if name in _RESERVED or name in self.tokens or not name.isidentifier():
                raise ChatTemplateError(
                    f"a variable's name must be an identifier that is not taken; got {name!r}."
                )
        return dict(variables) | {
            "messages": check_messages(messages),
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }

    def _parts(
        self, specials: Mapping[str, int], batch: Sequence[dict[str, Any]]
    ) -> list[list[str | int]]:
        """Render, and cut the texts at the template's special tokens."""
        nonce = secrets.token_hex(16)
        marks = {text: f"[{nonce}:{token}]" for text, token in specials.items() if text}
        names = {token: text for text, token in specials.items()}
        found = []
        for plain, marked in self._render(batch, marks):
            pieces = re.split(rf"\[{nonce}:([0-9]+)\]", marked)
            parts = [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)]
            if plain != "".join(part if isinstance(part, str) else names[part] for part in parts):
                raise ChatTemplateError(
                    f"{self.name} must write special tokens only; here it looks for them in what "
                    "users write, or cuts them apart, and they cannot be told from users' text."
                )
            found.append([part for part in parts if part != ""])
        return found

    def _render(
        self, batch: Sequence[dict[str, Any]], marks: Mapping[str, str]
    ) -> list[tuple[str, str]]:
        """Have conversations rendered as they are, and with marks for the special tokens."""
        request = {
            "source": self.source,
            "tokens": dict(self.tokens),
            "marks": dict(marks),
            "seconds": self.seconds,
            "today": self.today,
        }
        texts = []
        for answer in render_in_process(request, batch):
            if "error" in answer:
                said = answer["error"].rstrip(".")
                for text, mark in marks.items():
                    said = said.replace(mark, text)
                raise ChatTemplateError(f"{self.name} could not be rendered: {said}.")
            _check_unicode(f"what {self.name} writes", answer["plain"])
            texts.append((answer["plain"], answer["marked"]))
        return texts


def check_messages(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Refuse what is not a conversation; gives back its messages.

    Raises:
        ChatTemplateError: Naming the message.
    """
    if not 0 < len(messages) <= _MOST_MESSAGES:
        raise ChatTemplateError(
            f"a conversation must have from 1 to {_MOST_MESSAGES:,} messages; got {len(messages)}."
        )
    total = 0
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            said = sorted(map(str, message)) if isinstance(message, Mapping) else message
            raise ChatTemplateError(
                f"{where} must have `role` and `content`, and nothing else; got {said!r:.80}."
            )
        if message["role"] not in ROLES:
            raise ChatTemplateError(
                f"{where}: `role` must be one of {', '.join(ROLES)}; got {message['role']!r:.40}."
            )
        content = message["content"]
        if not isinstance(content, str):
            raise ChatTemplateError(
                f"{where}: `content` must be text; got {type(content).__name__}."
            )
        _check_unicode(f"{where}: `content`", content)
        total += len(content)
    if total > _MOST_CONTENT:
        raise ChatTemplateError(
            f"a conversation must have at most {_MOST_CONTENT:,} characters; got {total:,}."
        )
    return [dict(message) for message in messages]


def _check_unicode(what: str, text: str) -> None:
    """Refuse halves of characters, which are no text to a tokenizer."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ChatTemplateError(
            f"{what} must be Unicode; {text[error.start]!r} at {error.start} is half a character."
        ) from error


def _spelled(specials: Mapping[str, int], parts: Sequence[str | int]) -> str:
    """Find the text of a special token in what is text; none is empty."""
    texts = [part for part in parts if isinstance(part, str)]
    return next((name for name in specials if name and any(name in text for text in texts)), "")


def _unlike(specials: Mapping[str, int]) -> str:
    """Choose a character that no special token is written with."""
    taken = set("".join(specials))
    return next(c for c in map(chr, range(ord("0"), sys.maxunicode)) if c not in taken)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """Read the chat template of a folder of Hugging Face's; None if it has none.

    It is `chat_template.jinja`, else `chat_template` of `chat_template.json`, else of
    `tokenizer_config.json`; of several by name, `default`. Special tokens are those that
    `tokenizer_config.json` names, or `special_tokens_map.json`; one that neither names is empty in
    the template, as it is for transformers.

    Raises:
        FolderError: If a file leads out of the folder, or is not JSON where it should be.
        ChatTemplateError: If a template is not a text, or too long.
    """
    config = _object(folder, "tokenizer_config.json")
    path = folder / "chat_template.jinja"
    said: Any
    if path.exists():
        real = inside(folder, path.name)
        if real.stat().st_size > 4 * _MOST_SOURCE:
            raise ChatTemplateError(f"{path} must have at most {_MOST_SOURCE:,} characters.")
        said = read_text(real)
    else:
        path = folder / "chat_template.json"
        path = path if path.exists() else folder / "tokenizer_config.json"
        said = _object(folder, path.name).get("chat_template")
    if said is None:
        return None
    named = _object(folder, "special_tokens_map.json") | config
    tokens = {name: _text(x) for name, x in named.items() if name.endswith("_token") and _text(x)}
    return ChatTemplate(_choose(said, path), tokens, f"the chat template of {path}")


def _choose(said: Any, path: Path) -> str:
    """Take the template for conversations where there are several."""
    if isinstance(said, list) and all(isinstance(x, dict) for x in said):
        by_name = {x.get("name"): x.get("template") for x in said}
        said = by_name.get("default", next(iter(by_name.values())) if len(by_name) == 1 else None)
    if not isinstance(said, str):
        raise ChatTemplateError(
            f"`chat_template` of {path} must be a text, or a list of objects with `name` and "
            f"`template`, one of them named default; got {said!r:.80}."
        )
    return said


def _text(said: Any) -> str:
    """Read a token, which may be an object with its `content`; what is neither is empty."""
    content = said.get("content") if isinstance(said, dict) else said
    return content if isinstance(content, str) else ""


def _object(folder: Path, name: str) -> dict[str, Any]:
    """Read an object from a file, empty where there is none."""
    return read_json(inside(folder, name)) if (folder / name).exists() else {}
