"""The language of a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semroute_extproc.request.language import language_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France?", "en"),
        ("hi", "en"),
        ("", "en"),
        ("12345 + 7", "en"),
        ("请解释量子力学", "zh"),
        ("東京の天気はどうですか", "ja"),
        ("오늘 날씨 어때?", "ko"),
        ("Объясните квантовую механику", "ru"),
        ("اشرح ميكانيكا الكم", "ar"),
        ("Wie spät ist es in Tokio und was kostet ein Flug?", "de"),
        ("Explique la photosynthèse dans les plantes avec des mots simples", "fr"),
        ("¿Cómo está el tiempo en Madrid y por qué?", "es"),
        ("Hoe laat is het en wat kost een kaartje naar Utrecht?", "nl"),
        ("Find the angle θ such that sin θ = ½ and explain why", "en"),
        ("Write a python function that returns the sum", "en"),
        # Words of other languages that English has as well, and single letters.
        ("I want to get new insurance", "en"),
        ("i need a timer set please", "en"),
        ("where do black holes come from", "en"),
        ("Cite a poem written by William Wordsworth. No input.", "en"),
        ("first order half life if k = 0.03 per sec", "en"),
        ("balance this: Fe + O2 -> Fe2O3, CO2 and e", "en"),
        ("Suggest a good restaurant. Los Angeles, CA", "en"),
        ("Quali sono i migliori ristoranti di Roma?", "it"),
        ("Scrivi una poesia sul mare", "it"),
        ("Qual é a capital do Brasil?", "pt"),
        ("Escreva uma função que soma dois números", "pt"),
        ("Waarom is de lucht blauw?", "nl"),
        ("Jak działa silnik, który nie ma świec?", "pl"),
        ("Bu metni özetler misin, çok uzun ve karmaşık", "tr"),
        ("Giải thích cho tôi về quang hợp là gì", "vi"),
        ("Jelaskan apa itu fotosintesis dengan kata yang mudah", "id"),
        ("Schreibe ein Gedicht über das Meer", "de"),
        ("Peux-tu résumer ce texte en deux phrases ?", "fr"),
        ("Escribe un correo para mi jefe", "es"),
    ],
)
def test_the_language_is_told_by_script_and_function_words(text: str, language: str) -> None:
    assert language_of(text) == language


BRIEF = json.loads((Path(__file__).parent / "brief_requests.json").read_text())
"""Language to requests that are too short for function words. Their author did not know the word lists, and
the lists must not be tuned on them."""


def test_short_requests_are_mostly_told_from_english() -> None:
    said = [(each, language_of(text)) for each, texts in BRIEF.items() for text in texts if each != "en"]
    assert len(said) == 150
    assert sum(found == "en" for _, found in said) <= 40
    assert sum(found == language for language, found in said) >= 107


def test_no_english_fragment_is_taken_for_another_language() -> None:
    """Keywords, names, abbreviations and slang, two hundred of them."""
    assert len(BRIEF["en"]) == 200
    assert [text for text in BRIEF["en"] if language_of(text) != "en"] == []


@pytest.mark.parametrize(
    "text",
    [
        "Los Angeles hotels",
        "La La Land",
        "MIT license",
        "im bored",
        "I've decided, thanks!",
        "Ben Affleck movies",
        "const x = 1; var y = 2;",
        "GitLab CI yaml",
        "door hinge repair",
        "crème brûlée recipe",
        "jalapeño purée",
        "Ludwig van Beethoven",
        "Rio de Janeiro weather",
        "Schrödinger equation",
        "Décor ideas",
        "non compete enforceable?",
        "prove sin^2 + cos^2 = 1",
        "convert ten miles to kilometers",
        "what is ten times ten",
        "six day war",
        "OS X bash: dirname",
        "announce a comment in facebook",
        "book a spot in MI",
    ],
)
def test_names_and_english_words_of_other_languages_are_english(text: str) -> None:
    assert language_of(text) == "en"
