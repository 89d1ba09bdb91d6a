"""A chat template of our own, for models that came without one.

Of a tokenizer with `CHAT_SPECIALS` (give them to `train_tokenizer`) a turn is

    <|user|> content <|end_of_turn|>

and of any other that has an id for the end of a text, GPT-2's say,

    user <|endoftext|> content <|endoftext|>

after the ids that documents begin with. Either way special ids stand around all that is said, so
that the ids of a conversation are those of its parts: nothing merges across, a prompt's ids are
the beginning of the whole's, and no process is needed to render a million of them. The same
template in Jinja2's language is kept with a run, for whoever talks with its model.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genai_jax.data.chat_templates import ROLES, ChatTemplate, Message
from genai_jax.data.chat_turns import Turns
from genai_jax.data.pretrained_tokenizers import PretrainedTokenizer
from genai_jax.data.tokenizers import Ids, Tokenizer, digest_of

END_OF_TURN = "<|end_of_turn|>"
CHAT_SPECIALS = (*(f"<|{role}|>" for role in ROLES), END_OF_TURN)
"""For `train_tokenizer(..., specials=)`: ids that begin each role's turn, and one that ends it."""


class PlainChat:
    """Renders conversations by our own template, in this process.

    Attributes:
        tokenizer: Of the model.
        template: The same in Jinja2's language.
        digest: SHA-256 of all that the ids depend on but the tokenizer, in hexadecimal.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find the ids that stand around turns.

        Raises:
            ValueError: If the tokenizer has neither `CHAT_SPECIALS` nor an id for a text's end.
        """
        self.tokenizer = tokenizer
        ids = tokenizer.special_ids
        names = {token: name for name, token in ids.items()}
        lacking = [name for name in CHAT_SPECIALS if name not in ids]
        # As documents begin in pre-training.
        first = tokenizer.begin_ids or (tokenizer.eot_id,)
        self._begin = [token for token in first if token in names]
        begin = "".join(names[token] for token in self._begin)
        if not lacking:
            self._heads = {role: np.array([ids[f"<|{role}|>"]], np.int32) for role in ROLES}
            end, heads = END_OF_TURN, {role: f"<|{role}|>" for role in ROLES}
        elif tokenizer.eot_id is not None and tokenizer.eot_id in names:
            end = names[tokenizer.eot_id]
            heads = {role: role + end for role in ROLES}
            self._heads = {
                role: np.append(_between(tokenizer, tokenizer.eot_id, role), ids[end])
                for role in ROLES
            }
        else:
            raise ValueError(
                "to chat a tokenizer must have an id for the end of a text, or those of "
                f"{', '.join(CHAT_SPECIALS)}; this {tokenizer.kind} tokenizer has neither. Train "
                "one with specials=CHAT_SPECIALS."
            )
        self._end = ids[end]
        self.template = _template(heads, begin, end)
        self.digest = digest_of(self.template.source, *sorted(self.template.tokens.items()))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        return self.template.end_ids(self.tokenizer)

    def render(
        self, conversations: Sequence[Sequence[Message]], *, last_only: bool = False
    ) -> list[Turns]:
        """Render conversations, and say where the assistant's turns are.

        Args:
            conversations: Messages of each.
            last_only: Whether the last turn of the assistant is enough.
        """
        texts = [said["content"] for messages in conversations for said in messages]
        encoded = iter(self._encode(texts))
        end, begin = np.array([self._end], np.int32), np.array(self._begin, np.int32)
        found = []
        for messages in conversations:
            pieces, length, turns = [begin], len(begin), []
            for said in messages:
                head, content = self._heads[said["role"]], next(encoded)
                pieces += [head, content, end]
                start = length + len(head)
                length = start + len(content) + 1
                if said["role"] == "assistant":
                    turns.append((start, length))
            ids = np.concatenate(pieces).astype(np.int32)
            found.append(Turns(ids, tuple(turns[-1:] if last_only else turns)))
        return found

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> list[Ids]:
        """Render conversations as ids, up to where the assistant is to answer."""
        return [
            np.concatenate([turns.ids, self._heads["assistant"]]).astype(np.int32)
            for turns in self.render(conversations)
        ]

    def _encode(self, texts: list[str]) -> list[Ids]:
        """Encode texts as they are between special ids."""
        if not isinstance(self.tokenizer, PretrainedTokenizer):
            return self.tokenizer.encode_batch(texts)
        # Some add a space to what comes first, or strip some around a special id.
        return [_between(self.tokenizer, self._end, text) for text in texts]


def _between(tokenizer: Tokenizer, token: int, text: str) -> Ids:
    """Encode a text that stands between two special ids."""
    return tokenizer.encode_parts([token, *([text] if text else []), token])[1:-1]


def _template(heads: dict[str, str], begin: str, end: str) -> ChatTemplate:
    """Write the template in Jinja2's language, its special tokens whole."""
    branches = "".join(
        f"{{% {'if' if number == 0 else 'elif'} message.role == '{role}' %}}{head}"
        for number, (role, head) in enumerate(heads.items())
    )
    source = (
        f"{begin}{{% for message in messages %}}{branches}{{% endif %}}"
        f"{{{{ message.content }}}}{end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{heads['assistant']}{{% endif %}}"
    )
    return ChatTemplate(source, {"eos_token": end}, "our own chat template")


def save_chat_template(template: ChatTemplate, folder: Path) -> None:
    """Write a chat template into a folder, for `load_chat_template`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8")
    tokens = json.dumps(dict(template.tokens), indent=2)
    (folder / "tokenizer_config.json").write_text(tokens + "\n", encoding="utf-8")
