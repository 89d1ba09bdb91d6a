"""Conversations rendered once: what a template makes of them is kept on disk."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genai_jax.data.chat_templates import ChatTemplate, Message
from genai_jax.data.chat_turns import ChatRenderer, TemplateChat, Turns
from genai_jax.data.conversations import digest_of_messages
from genai_jax.data.plain_chat import PlainChat
from genai_jax.data.token_cache import default_cache_folder, open_folder
from genai_jax.data.tokenizers import Ids, Tokenizer

_FORMAT = 1


class CachedChat:
    """Renders conversations by another renderer, or finds that in the cache.

    Attributes:
        tokenizer: Of the model.
        template: In Jinja2's language, to be kept with a run.
        digest: SHA-256 of all that the ids depend on but the tokenizer, in hexadecimal.
    """

    def __init__(self, renderer: ChatRenderer, cache_dir: str | None = None) -> None:
        """Put a cache before a renderer.

        Args:
            renderer: The other one.
            cache_dir: Folder; None is $XDG_CACHE_HOME/genai_jax or ~/.cache/genai_jax.
        """
        self._renderer = renderer
        self.tokenizer, self.template = renderer.tokenizer, renderer.template
        self.digest = renderer.digest
        root = Path(cache_dir).expanduser() if cache_dir else default_cache_folder()
        self._root = root / "chats"

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self._renderer.end_ids

    def render(
        self, conversations: Sequence[Sequence[Message]], *, last_only: bool = False
    ) -> list[Turns]:
        """Render conversations, and say where the assistant's turns, or the last one's, are."""
        recipe = [_FORMAT, self.digest, self.tokenizer.digest, last_only]
        content = hashlib.sha256(json.dumps(recipe).encode())
        for messages in conversations:
            content.update(digest_of_messages(messages))
        folder = open_folder(
            self._root,
            content.hexdigest()[:32],
            lambda scratch: _write(
                scratch, self._renderer.render(conversations, last_only=last_only)
            ),
        )
        return _read(folder)

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Ids]:
        """Render conversations as ids, up to where the assistant is to answer; not kept."""
        return self._renderer.prompts(conversations)


def _write(folder: Path, rendered: Sequence[Turns]) -> None:
    none = np.zeros(0, np.int32)
    np.save(folder / "ids.npy", np.concatenate([none, *(ids for ids, _ in rendered)]))
    np.save(folder / "lengths.npy", np.array([len(ids) for ids, _ in rendered], np.int64))
    np.save(folder / "counts.npy", np.array([len(turns) for _, turns in rendered], np.int64))
    places = [place for _, turns in rendered for place in turns]
    np.save(folder / "turns.npy", np.array(places, np.int64).reshape(-1, 2))


def _read(folder: Path) -> list[Turns]:
    ids, lengths, counts, places = (
        np.load(folder / f"{name}.npy") for name in ("ids", "lengths", "counts", "turns")
    )
    parts = np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
    turns = iter(map(tuple, places.tolist()))
    return [
        Turns(part, tuple(next(turns) for _ in range(count)))
        for part, count in zip(parts, counts.tolist(), strict=True)
    ]


def make_chat_renderer(
    tokenizer: Tokenizer, template: ChatTemplate | None, *, cache_dir: str | None = None
) -> ChatRenderer:
    """Make what turns conversations into ids for a model.

    Args:
        tokenizer: Of the model.
        template: What came with the model, which costs time and is kept in the cache; None, where
            it has none, or none but our own, takes our own.
        cache_dir: Folder; None is $XDG_CACHE_HOME/genai_jax or ~/.cache/genai_jax.

    Raises:
        ValueError: If there is no template and the tokenizer does not suit our own.
    """
    if template is None:
        return PlainChat(tokenizer)
    if _is_plain(tokenizer, template):
        return PlainChat(tokenizer)
    return CachedChat(TemplateChat(tokenizer, template), cache_dir)


def _is_plain(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    """Whether a template is our own, which a run has kept."""
    try:
        own = PlainChat(tokenizer).template
    except ValueError:
        return False
    return (own.source, own.tokens) == (template.source, template.tokens)
