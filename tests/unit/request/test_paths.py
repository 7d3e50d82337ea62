"""What a path means: its API, the model it names, and how the pool spells it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.request.paths import MODELS, PATHS, Place, place_of
from semroute_extproc.request.view import Api

PREFIXES = ("/openai", "/anthropic", "/api")


def place(path: str) -> Place:
    return place_of(path, PREFIXES)


@pytest.mark.parametrize("path", PATHS)
def test_a_known_path_stays_as_it_is(path: str):
    assert place(path) == Place(path, PATHS[path])
    assert place(path + "?a=b") == Place(path, PATHS[path])


@pytest.mark.parametrize(
    ("sent", "known", "pools"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/chat/completions", "/v1/chat/completions", "/v1/chat/completions"),
        ("/anthropic/v1/messages?beta=true", "/v1/messages", "/v1/messages?beta=true"),
        ("/api/v1/responses/?x=/", "/v1/responses", "/v1/responses?x=/"),
        ("/openai/rerank", "/rerank", "/rerank"),
        ("/v1%2Fchat%2fcompletions", "/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/responses?api-version=1", "/v1/responses", "/v1/responses?api-version=1"),
        (
            "/v1/mess%61ges/count_tokens?q=\u00e9",
            "/v1/messages/count_tokens",
            "/v1/messages/count_tokens?q=%C3%A9",
        ),
    ],
)
def test_another_spelling_is_read_and_rewritten_for_the_pool(sent: str, known: str, pools: str):
    assert place(sent) == Place(known, PATHS[known], rewritten=pools)


@pytest.mark.parametrize(
    "path",
    ["/", "", "*", "/v1", "/v1/unknown", "/other/v1/messages", "/openai", "/api/tags", "/openaiv1/messages"],
)
def test_an_unknown_path_is_left_alone(path: str):
    assert place(path) == Place(path)
    assert place(path + "?x=1") == Place(path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/", ""),
        ("/openai/v1/models", ""),
        ("/openai/models?api-version=1", ""),
        ("/v1/models/org%2Fname", "/org/name"),
        ("/v1/models/a/b/", "/a/b"),
    ],
)
def test_the_list_of_models_and_its_entries_are_known(path: str, name: str):
    assert place(path).path == MODELS + name


@pytest.mark.parametrize(
    ("sent", "pools"),
    [
        ("/openai/v1/responses/resp_1?stream=true", "/v1/responses/resp_1?stream=true"),
        ("/api/v1/responses/resp_1/cancel/", "/v1/responses/resp_1/cancel"),
        ("/v1/responses/resp_1/input_items", ""),
    ],
)
def test_a_stored_response_has_a_path(sent: str, pools: str):
    assert place(sent).path.startswith("/v1/responses/resp_1")
    assert place(sent).rewritten == pools


@pytest.mark.parametrize("name", ["..%2fchat%2fcompletions", "%2e%2e%2fcancel", "a%3Fb", "a%23b", "%2525"])
@pytest.mark.parametrize("folder", ["/v1/responses/", "/openai/v1/responses/", "/v1/models/"])
def test_what_is_escaped_in_a_name_stays_escaped_for_the_pool(folder: str, name: str):
    assert place(folder + name).rewritten == ""


@pytest.mark.parametrize(
    ("path", "known", "model"),
    [
        ("/openai/deployments/gpt-4o/chat/completions", "/v1/chat/completions", "gpt-4o"),
        ("/openai/deployments/gpt-4o/completions", "/v1/completions", "gpt-4o"),
        ("/openai/deployments/org%2Fname/embeddings", "/v1/embeddings", "org/name"),
        ("/openai/deployments/org/name/audio/transcriptions", "/v1/audio/transcriptions", "org/name"),
        ("/openai/deployments/completions/completions", "/v1/completions", "completions"),
    ],
)
def test_a_deployment_in_azures_path_names_the_model(path: str, known: str, model: str):
    version = "?api-version=2024-10-21"
    assert place(path + version) == Place(known, PATHS[known], model, known + version)


@pytest.mark.parametrize("path", ["/openai/deployments//chat/completions", "/openai/deployments/x/unknown"])
def test_a_path_without_a_deployment_or_an_api_is_unknown(path: str):
    assert place(path) == Place(path)


@pytest.mark.parametrize(
    ("query", "model"),
    [("model=org%2Fa", "org/a"), ("x=1&model=b&model=c", "b"), ("model=", ""), ("models=b", "")],
)
def test_a_query_may_name_the_model(query: str, model: str):
    assert place("/v1/realtime?" + query).model == model
    assert place("/v1/chat/completions?" + query).model == model


def test_a_long_query_takes_little_time():
    """The event loop reads it; reading all of its names took 0.1 s."""
    best = 1.0
    for number in range(3):
        started = time.process_time()
        assert place(f"/v1/chat/completions?{'%2=%2&' * 15_000}model=m{number}").model == f"m{number}"
        best = min(best, time.process_time() - started)
    assert best < 0.02


def test_every_api_has_a_path():
    assert set(PATHS.values()) == set(Api)


@given(
    st.text(max_size=40)
    | st.sampled_from([*PATHS]).flatmap(lambda path: st.text(max_size=9).map(path.__add__))
)
def test_any_path_gives_a_place_and_a_new_path_is_known_and_ascii(path: str):
    found = place(path)
    assert (found.api is None) == (found.path not in PATHS)
    assert found.rewritten.isascii()
    assert not found.rewritten or found.rewritten.partition("?")[0] == found.path
