"""Requests that applications make by themselves, and users' requests for the same things."""

from __future__ import annotations

import pytest

from semroute_extproc.request.text import Judged, judged
from semroute_extproc.request.view import Turn

LOG = "User: What is the capital of Peru?\nAssistant: Lima."
TASK = "The build fails since this morning. Find the cause and fix it without pinning the compiler."


def user(text: str) -> Turn:
    return Turn("user", text)


def kind(*turns: Turn) -> str:
    return judged(turns).housekeeping


TEMPLATES = [
    ("title", f"Name this chat in at most six words.\n\n{LOG}"),
    ("title", f"{LOG}\n\n---\nWrite a short heading for the conversation above, in its language."),
    ("title", f"为下面的对话写一个标题。\n\n{LOG}"),
    ("tags", f"Give one to three keywords for the chat below as a JSON list.\n{LOG}"),
    ("follow_ups", f"Suggest three questions the user could ask next.\n\n{LOG}"),
    ("search_query", f"Turn the last message into one web search query, or print NONE.\n\n{LOG}"),
    (
        "search_query",
        "Write versions of the user question to\nsearch a vector database.\nOriginal question: Lima?",
    ),
    ("summary", f"Compress the dialogue so that it can go on without the old messages.\n\n{LOG}"),
    ("topic", f"Does the last message start a new subject? yes or no.\n\n{LOG}"),
    ("memory", f"Which lasting facts about the user are in this exchange? One per line.\n\n{LOG}"),
    ("safety", 'Check if the user message complies with the company policy.\nUser message: "hello"\nAnswer:'),
    ("route", f"Tools: calculator, web. Which tool would help with the last message?\n\n{LOG}"),
    (
        "relevance",
        "Is the context relevant to the question?\n> Question: Lima?\n> Context:\nPeru\n> Relevant:",
    ),
    (
        "grading",
        "Use the score rubric.\n### Question\nLima?\n### Response\nYes.\n### Score",
    ),
]


@pytest.mark.parametrize(("expected", "text"), TEMPLATES)
def test_a_template_in_the_users_turn_is_recognized(expected: str, text: str):
    assert kind(user(text)) == expected


SYSTEMS = [
    ("title", "You are a title generator. You output ONLY a thread title."),
    ("title", "Write a short title for the conversation that begins with the message."),
    ("commit_message", "You write commit messages for diffs, one line each."),
    ("autocomplete", "You are a code completion engine."),
    ("summary", "You are tasked with summarizing conversations."),
]


@pytest.mark.parametrize(("expected", "system"), SYSTEMS)
def test_the_system_prompt_of_a_first_request_may_say_it(expected: str, system: str):
    assert kind(Turn("system", system), user(TASK)) == expected


def test_a_long_request_to_summarize_after_answers_is_recognized_without_labels():
    request = "Summarize our conversation so far in detail, with decisions and open steps. " * 3
    assert kind(user(TASK), Turn("assistant", "Done."), user(request)) == "summary"


ORDINARY = [
    "Give me a title for my essay about bees.",
    "Give me a title for my essay:\n\nBees live in colonies.\n\nThey make honey.",
    "Summarize this conversation between Romeo and Juliet.",
    "Write a commit message.",
    "Suggest follow-up questions for my survey.",
    "Complete the text: roses are red",
    f"Summarize this conversation.\n\nKim: {TASK}\nLee: I changed two flags. {TASK}",
    "Is this policy harmful?\n\nThe company policy says that mail is read.",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_a_user_who_asks_for_such_a_thing_is_not_housekeeping(text: str):
    assert kind(user(text)) == ""
    assert kind(Turn("system", "You are a coding agent. A chat has a title."), user(text)) == ""


@pytest.mark.parametrize("text", ORDINARY)
def test_context_that_a_client_adds_does_not_make_it_housekeeping(text: str):
    reminder = f"<system-reminder>\n{LOG.replace(':', ' said')}\n</system-reminder>\n"
    assert kind(user(reminder + text)) == ""


def test_a_later_turn_is_not_housekeeping_because_of_the_system_prompt():
    system = Turn("system", "Find a title for the conversation, then help.")
    assert kind(system, user(TASK)) == "title"
    assert kind(system, user(TASK), Turn("assistant", "Done."), user("Thanks.")) == ""


def test_without_a_user_turn_there_is_none():
    assert judged([Turn("system", "You are a title generator.")]) == Judged("You are a title generator.")
