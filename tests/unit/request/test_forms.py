"""The field `model` of a multipart form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semroute_extproc.request.forms import FORM_BYTES, model_of, set_model

TYPE = "multipart/form-data; boundary=XyZ"
FILE = ('Content-Disposition: form-data; name="file"; filename="model.wav"', b"RIFF\r\n\r\n--Xy" * 4)
MODEL = ('Content-Disposition: form-data; name="model"', b"org/tiny")


def form(*parts: tuple[str, bytes]) -> bytes:
    written = (b"--XyZ\r\n" + head.encode() + b"\r\n\r\n" + value + b"\r\n" for head, value in parts)
    return b"".join(written) + b"--XyZ--\r\n"


@pytest.mark.parametrize("parts", [(MODEL, FILE), (FILE, MODEL), (MODEL,)])
def test_the_model_is_read_and_replaced_before_and_after_a_file(parts: tuple[tuple[str, bytes], ...]):
    body = form(*parts)
    assert model_of(body, TYPE) == "org/tiny"
    assert set_model(body, TYPE, "a longer name") == body.replace(b"org/tiny", b"a longer name")


@pytest.mark.parametrize(
    "head",
    [
        "content-disposition: form-data; name=model",
        'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="model"',
        'CONTENT-DISPOSITION: form-data; name="model"; filename="blob"\r\nContent-Type: text/plain',
    ],
)
def test_clients_spell_the_field_in_several_ways(head: str):
    assert model_of(form(FILE, (head, b"tiny")), TYPE) == "tiny"


@pytest.mark.parametrize("given_type", ['multipart/form-data; charset=utf-8; Boundary="XyZ"', TYPE + "; x=y"])
def test_the_boundary_may_be_quoted_or_come_with_other_parameters(given_type: str):
    assert model_of(form(MODEL), given_type) == "org/tiny"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        form(FILE),
        form(('Content-Disposition: form-data; name="models"', b"x")),
        form(('Content-Disposition: form-data; name="a model"', b"x")),
        form(('X: name="model"', b"x")),
        form(FILE, MODEL)[:-20],
    ],
)
def test_a_form_without_the_whole_field_names_no_model_and_stays_as_it_is(body: bytes):
    assert model_of(body, TYPE) == ""
    assert set_model(body, TYPE, "x") == body


def test_without_a_boundary_there_is_no_form():
    assert model_of(form(MODEL), "multipart/form-data") == ""


def test_only_both_ends_of_a_long_form_are_searched():
    long = ("Content-Disposition: form-data; name=file", bytes(FORM_BYTES + 1))
    assert model_of(form(MODEL, long), TYPE) == model_of(form(long, MODEL), TYPE) == "org/tiny"
    assert model_of(form(long, MODEL, long), TYPE) == ""


@given(
    st.binary(max_size=60), st.integers(0, 300), st.text(max_size=9).map(lambda text: text.replace("\r", ""))
)
def test_any_bytes_are_a_form_and_a_new_name_is_read_back(noise: bytes, at: int, name: str):
    body = form(FILE, MODEL)
    broken = body[:at] + noise + body[at:]
    model_of(broken, TYPE)
    assert model_of(set_model(body, TYPE, name), TYPE) == name
    assert set_model(set_model(body, TYPE, name), TYPE, "org/tiny") == body
