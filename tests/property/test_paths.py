"""Every known path in every spelling that clients use."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st

from semroute_extproc.request.paths import PATHS, Place, place_of

PREFIXES = ("/openai", "/anthropic", "/api")
OF_VERSION_1 = [path for path in PATHS if path.startswith("/v1/")]
SHORT = [path.removeprefix("/v1") for path in OF_VERSION_1 if path.removeprefix("/v1") not in PATHS]
ids = st.from_regex(r"resp_[0-9a-f]{40}", fullmatch=True)
stored = st.builds("/v1/responses/{}{}".format, ids, st.sampled_from(["", "/cancel", "/input_items"]))
queries = st.sampled_from(["", "?", "?api-version=2024-10-21", "?a=%2F&b=%C3%A9", "?stream=true/"])
ends = st.sampled_from(["", "/", "//", "%2F"])
names = st.text("ab/.-_:%é?#", min_size=1, max_size=9).filter(lambda name: name.strip("/") == name)


@st.composite
def escaped(draw: st.DrawFn, path: str) -> str:
    """`path` with some of its characters escaped."""
    return "".join(f"%{ord(each):02x}" if draw(st.integers(0, 9)) == 0 else each for each in path)


@given(
    data=st.data(),
    path=st.sampled_from([*PATHS]) | stored,
    prefix=st.sampled_from(["", *PREFIXES]),
    end=ends,
    query=queries,
)
def test_a_known_path_is_found_and_the_pool_gets_its_plain_spelling(
    data: st.DataObject, path: str, prefix: str, end: str, query: str
):
    sent = data.draw(escaped(prefix + path)) + end
    found = place_of(sent + query, PREFIXES)
    assert (found.path, found.api) == (path, PATHS.get(path))
    assert found.rewritten == ("" if sent == path else path + query)


@given(path=st.sampled_from(SHORT), prefix=st.sampled_from(["", *PREFIXES]), query=queries)
def test_a_missing_version_is_added(path: str, prefix: str, query: str):
    found = place_of(prefix + path + query, PREFIXES)
    assert found == Place("/v1" + path, PATHS["/v1" + path], "", "/v1" + path + query)


@given(path=st.sampled_from(OF_VERSION_1), name=names, query=queries)
def test_a_deployment_is_the_models_name_however_it_is_escaped(path: str, name: str, query: str):
    sent = f"/openai/deployments/{quote(name, safe='')}{path.removeprefix('/v1')}"
    found = place_of(sent + query)
    assert (found.model, found.path, found.rewritten) == (name, path, path + query)


@given(st.text(max_size=40) | st.text("/v1responses.%2f3Fa#?", max_size=40).map("/v1/responses/".__add__))
@example("/v1/responses/..%2f..%2fadmin")
@example("/openai/v1/responses/a%23b")
def test_no_path_is_rewritten_to_one_that_leaves_its_folder(sent: str):
    rewritten = place_of(sent, PREFIXES).rewritten
    assert rewritten.isascii()
    assert not {"..", "#", "%25"} & {*rewritten.partition("?")[0].replace("/", " ").split()}
