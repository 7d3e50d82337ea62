"""The extraction never fails, and never loses a request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.request.conversation import TURNS_MAX
from semroute_extproc.request.envelope import unwrap
from semroute_extproc.request.text import CLASSIFIED_CHARACTERS_MAX, judged
from semroute_extproc.request.view import Turn

FRAGMENTS = (
    *("<task>", "</task>", "<notes>", "</notes>", "<x-1>", "</x-1>", "[INST]", "[/INST]", "```", "{", "}"),
    *(
        '"question":',
        "Question:",
        "Context:",
        "Answer:",
        "User:",
        "Assistant:",
        "Q:",
        "A:",
        "Input:",
        "## Task",
    ),
    *(
        "<|im_start|>user\n",
        "<|im_end|>",
        "You are a bot.",
        "\\boxed{}",
        "Called the ",
        "OBSERVATION:",
        "\n",
        "\n\n",
    ),
    *("Why is it so?", "Write a poem.", "word " * 200, "为什么？", "\ud800", "\x00", "1. ", "- "),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=20), max_size=30).map("".join)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])


@given(TEXTS)
def test_a_question_is_never_longer_than_its_text_and_what_is_left_out_is_positive(text: str) -> None:
    found = unwrap(text)
    assert len(found.question) <= len(text) + text.count("<|")
    assert all(left.characters > 0 for left in found.left_out)
    if not found.left_out:
        assert found.question == text


@given(st.lists(st.builds(Turn, ROLES, TEXTS), max_size=2 * TURNS_MAX))
def test_a_conversation_with_text_always_has_a_judged_text_within_the_bound(turns: list[Turn]) -> None:
    text = judged(turns).text
    assert len(text) <= CLASSIFIED_CHARACTERS_MAX
    if any(turn.text.strip() for turn in turns):
        assert text.strip()


@given(TEXTS)
def test_a_known_block_never_changes_a_plain_question(inside: str) -> None:
    block = f"<notes>{inside.replace('notes', '').replace('```', '')}</notes>"
    assert unwrap(f"{block}\nWhy is the sky blue?").question.endswith("Why is the sky blue?")
