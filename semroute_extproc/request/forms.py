"""The field `model` of a multipart form, read and replaced without reading the files. Pure."""

import re

FORM = "multipart/form-data"
FORM_BYTES = 65_536  # searched at each end of a form: clients send the files last or first

_BOUNDARY = re.compile(r'(?i);\s*boundary=(?:"([^"]+)"|([^\s";,]+))')
_MODEL = re.compile(rb'(?im)^content-disposition:[^\r\n]*[; ]name="?model"?[ \t\r]*(?:;|$)')


def model_of(form: bytes, content_type: str) -> str:
    """The model that a form names, or ""."""
    span = _span(form, content_type)
    return form[slice(*span)].decode("utf-8", "replace") if span else ""


def set_model(form: bytes, content_type: str, model: str) -> bytes:
    """The form with another model; unchanged if it names none."""
    span = _span(form, content_type)
    return form[: span[0]] + model.encode() + form[span[1] :] if span else form


def _span(form: bytes, content_type: str) -> tuple[int, int] | None:
    """Start and end of the model's name; None if neither end of the form contains the whole field."""
    if (found := _BOUNDARY.search(content_type)) is None:
        return None
    delimiter = b"--" + (found[1] or found[2]).encode("utf-8", "replace")
    for first, last in ((0, FORM_BYTES), (max(0, len(form) - FORM_BYTES), len(form))):
        start = form.find(delimiter, first, last)
        while start >= 0 and (end := form.find(b"\r\n" + delimiter, start + len(delimiter), last)) >= 0:
            blank = form.find(b"\r\n\r\n", start, end)
            if blank >= 0 and _MODEL.search(form[start:blank]):
                return blank + 4, end
            start = end + 2
    return None
