"""The language of a text."""

from __future__ import annotations

import pytest

from semroute_extproc.language import language_of


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
        # Words of other languages that English has as well, and letters that are none's.
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
