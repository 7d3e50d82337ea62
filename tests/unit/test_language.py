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
    ],
)
def test_the_language_is_told_by_script_and_function_words(text: str, language: str) -> None:
    assert language_of(text) == language
