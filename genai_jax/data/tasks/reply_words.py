"""The words of short replies: what is asked for, in which tone, and the slots of an answer."""

import dataclasses
from typing import Literal, NamedTuple, get_args

Tone = Literal["formal", "warm", "casual", "brief"]
Deed = Literal["thank", "invite", "ask", "apologise"]
TONES: tuple[Tone, ...] = get_args(Tone)
DEEDS: tuple[Deed, ...] = get_args(Deed)

THINGS = (
    *("tea", "cake", "soup", "bread", "honey", "jam", "pie", "milk"),
    *("rice", "plums", "cocoa", "beans", "figs", "cream", "tarts", "nuts"),
)
REQUESTS: dict[Deed, str] = {
    "thank": "thank {name} for the {thing}",
    "invite": "invite {name} for {thing}",
    "ask": "ask {name} for the {thing}",
    "apologise": "say sorry to {name} for the {thing}",
}
ADVERBS: dict[Tone, str] = {
    "formal": "formally",
    "warm": "warmly",
    "casual": "casually",
    "brief": "briefly",
}
# A brief reply opens with the name alone, and does not close.
OPENINGS: dict[Tone, tuple[str, ...]] = {
    "formal": ("Dear", "Good day"),
    "warm": ("Sweet", "Darling"),
    "casual": ("Hey", "Yo"),
    "brief": ("",),
}
BODIES: dict[Deed, dict[Tone, str]] = {
    "thank": {
        "formal": "I am grateful for the {thing}.",
        "warm": "I just love the {thing}!",
        "casual": "cheers for the {thing}.",
        "brief": "thanks for the {thing}.",
    },
    "invite": {
        "formal": "may I offer you {thing}?",
        "warm": "come share my {thing}!",
        "casual": "wanna grab {thing}?",
        "brief": "come for {thing}.",
    },
    "ask": {
        "formal": "kindly send the {thing}.",
        "warm": "please do bring the {thing}!",
        "casual": "got any {thing}?",
        "brief": "send the {thing}.",
    },
    "apologise": {
        "formal": "I do regret the {thing}.",
        "warm": "I feel awful about the {thing}!",
        "casual": "my bad about the {thing}.",
        "brief": "sorry for the {thing}.",
    },
}
CLOSINGS: dict[Tone, tuple[str, ...]] = {
    "formal": (" Yours truly.", " With respect."),
    "warm": (" Hugs!", " Much love!"),
    "casual": (" Later.", " See ya."),
    "brief": ("",),
}
KIND_WORDS = (" You are kind.", " I miss you.")
RAMBLES = (" It rained.", " I am tired.")
NOBODY = "friend"


class Request(NamedTuple):
    """What a reply is to do.

    Attributes:
        deed: What for.
        name: Whom it is to.
        thing: What it is about.
        tone: In which tone.
    """

    deed: Deed
    name: str
    thing: str
    tone: Tone

    @property
    def words(self) -> str:
        """The request without its tone."""
        return REQUESTS[self.deed].format(name=self.name, thing=self.thing)


@dataclasses.dataclass(frozen=True)
class Slots:
    """The parts of a reply.

    Attributes:
        tone: Of its opening.
        opening: The word before the name; empty in a brief one.
        name: Whom it is to; empty where it names nobody.
        body: The sentence that does it.
        extras: Sentences that nobody asked for.
        closing: The end; may be empty.
    """

    tone: Tone
    opening: str
    name: str
    body: str
    extras: tuple[str, ...]
    closing: str

    @property
    def text(self) -> str:
        """The reply."""
        if self.tone == "brief":
            opening = f"{self.name}, " if self.name else ""
        else:
            opening = f"{self.opening} {self.name or NOBODY}, "
        return opening + self.body + "".join(self.extras) + self.closing


def right_slots(request: Request) -> Slots:
    """Give the longest of the replies that are exactly right."""
    tone = request.tone
    return Slots(
        tone,
        max(OPENINGS[tone], key=len),
        request.name,
        BODIES[request.deed][tone].format(thing=request.thing),
        (max(KIND_WORDS, key=len),) if tone == "warm" else (),
        max(CLOSINGS[tone], key=len),
    )
