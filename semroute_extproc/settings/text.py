"""How requests are read: names and phrases of an operator's own applications. Pure."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from semroute_extproc.settings.base import Model, Name

NAMES_MAX = 64  # Names in one list, and phrases of one kind of housekeeping

Mark = Annotated[str, Field(pattern=r"^[^\s<>\[\]:：][^<>\[\]:：]{0,63}$"), AfterValidator(str.lower)]
"""A name, compared in lower case, never as a pattern."""

Phrase = Annotated[str, Field(min_length=8, max_length=200), AfterValidator(str.lower)]
"""Text within a sentence, compared in lower case, never as a pattern."""


class Envelopes(Model):
    """Names of tags, JSON members and labels, in addition to the built-in ones."""

    ask: tuple[Mark, ...] = Field(
        (), max_length=NAMES_MAX, description="For the request itself: `<ticket>…</ticket>`, `Ticket: …`."
    )
    context: tuple[Mark, ...] = Field((), max_length=NAMES_MAX, description="For text that is not judged.")
    housekeeping: dict[Name, Annotated[tuple[Phrase, ...], Field(max_length=NAMES_MAX)]] = Field(
        default_factory=dict,
        max_length=NAMES_MAX,
        description="Kind of housekeeping to phrases in prompts of that kind.",
    )

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        if both := sorted({*self.ask} & {*self.context}):
            raise ValueError(f"{both[0]!r} is in both ask and context")
        return self


class Text(Model):
    """How the judged text is found."""

    envelopes: Envelopes = Field(default_factory=Envelopes, description="Names in your own applications.")
