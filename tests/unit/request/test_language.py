"""The language of a text."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from semroute_extproc.request.language import CLAUSE_CHARACTERS, SAMPLE_CHARACTERS, language_of


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
def test_the_language_is_identified_by_script_and_function_words(text: str, language: str) -> None:
    assert language_of(text) == language


BRIEF = json.loads((Path(__file__).parent / "brief_requests.json").read_text())
"""Language to requests that are too short for function words. Their author did not know the word lists, and
the lists must not be tuned on them."""


def test_short_requests_are_mostly_distinguished_from_english() -> None:
    said = [(each, language_of(text)) for each, texts in BRIEF.items() for text in texts if each != "en"]
    assert len(said) == 150
    assert sum(found == "en" for _, found in said) <= 19
    assert sum(found == language for language, found in said) >= 131


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


OURS = Path(__file__).resolve().parents[3] / "datasets" / "languages_difficulty.eval.jsonl"


def test_our_requests_in_fifteen_languages_are_identified() -> None:
    rows = [json.loads(line) for line in OURS.read_text().splitlines()]
    right = [language_of(row["text"]) == row["language"].partition("-")[0] for row in rows]
    assert sum(right) / len(rows) >= 0.97


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Як мені приготувати борщ?", "uk"),
        ("چگونه می‌توانم فارسی یاد بگیرم؟", "fa"),
        ("फ़ोटोसिंथेसिस क्या है?", "hi"),
        ("Τι είναι η φωτοσύνθεση;", "el"),
        ("מה בירת צרפת?", "he"),
        ("Hur lagar jag köttbullar?", "sv"),
        ("Jak se řekne dobrý den?", "cs"),
        ("Hogyan kell gulyást főzni?", "hu"),
        ("Cum fac o ciorbă bună?", "ro"),
        ("Miten voin oppia suomea?", "fi"),
        ("Kako da naučim programirati?", "hr"),
        ("Em pots dir quins són els colors primaris?", "ca"),
        ("Wakati huo watu walikuwa wakiishi kwa amani", "sw"),
        ("Paano magluto ng adobo?", "tl"),
    ],
)
def test_a_listed_language_that_no_bundle_supports_has_its_own_code(text: str, language: str) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    "text",
    [
        "გამარჯობა, როგორ ხარ?",  # Georgian
        "হ্যালো, তুমি কেমন আছ?",  # Bengali
        "வணக்கம், எப்படி இருக்கிறீர்கள்?",  # Tamil
        "మీరు ఎలా ఉన్నారు?",  # Telugu
        "Բարև, ինչպես ես",  # Armenian
        "ສະບາຍດີ",  # Lao
        "ပြည်ထောင်စု",  # Burmese
        "ខ្ញុំចង់ដឹង",  # Khmer
        "አማርኛ እንዴት ነህ",  # Amharic
        "ᠮᠣᠩᠭᠣᠯ",  # Mongolian
        "میں اردو کیسے سیکھ سکتا ہوں؟",  # Urdu, in Arabic script
        "Как се казваш и откъде си?",  # Bulgarian, in Cyrillic script
        "Шта је фотосинтеза и како функционише њен процес?",  # Serbian
        "Bha an cù dubh fo bhòrd mòr aig doras taighe bhig ri taobh locha nuair thàinig sneachd",  # Gaelic
    ],
)
def test_an_unlisted_script_or_language_is_undetermined_and_never_english(text: str) -> None:
    assert language_of(text) == "und"


@pytest.mark.parametrize(
    "text",
    [
        r"\sin x + \cos y = \sum_{n} \frac{1}{2}",
        r"$\sin(x) de la en el los que por$",
        r"\[ de la en el los que por \]",
        "```python\nprint('el la los que por')\n```",
        "Run `el la los que por` again",
        "const el = la(por, x);",
        '{"nombre": 1, "que": 2, "por": [3]}',
        "https://es.wikipedia.org/wiki/La_casa_de_los_que",
        "/usr/share/la/de/el/los.txt",
        "que_por_los = el.la",
        "let α, β ∈ ℝ and Δ = αβγ",
    ],
)
def test_code_formulas_and_addresses_say_nothing(text: str) -> None:
    assert language_of(text) == "en"


def test_the_question_behind_code_decides() -> None:
    code = "```\n" + "for x in y: print(x)\n" * 30 + "```\n"
    assert language_of(code + "Почему программа печатает каждую строку дважды?") == "ru"
    assert language_of(code + "¿Por qué imprime cada línea dos veces?") == "es"


ENGLISH = (
    "The report says that revenue grew by five percent and that the company will hire more people next year."
)
JAPANESE = "昨日、東京で大きな地震がありました。多くの人が避難しています。政府は対策を発表しました。"
GERMAN = (
    "Der Umsatz ist um fünf Prozent gestiegen, und die Firma wird im nächsten Jahr mehr Leute einstellen."
)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (f"Translate into English: {JAPANESE}", "en"),
        (f"Translate this to English: {GERMAN}", "en"),
        (f"请把下面的英文翻译成中文: {ENGLISH}", "zh"),
        (f"Übersetze das bitte ins Japanische: {ENGLISH}", "de"),
        (f"You translate user interface strings.\n\n{JAPANESE}", "en"),
        (f"{JAPANESE}\n\nSummarize this in English, please.", "en"),
        (f"{ENGLISH}\n\nFasse das bitte auf Deutsch zusammen.", "de"),
        (f"{ENGLISH}\n\n请用中文总结", "zh"),
        ('What does "c\'est la vie" mean in English?', "en"),
        ('Wie sagt man "How are you doing today?" auf Deutsch?', "de"),
        ("“Take your time”中文怎么说", "zh"),
        ("What does 你好 mean?", "en"),
        ("Who wrote 红楼梦?", "en"),
        ("iPhone 价格", "zh"),
    ],
)
def test_the_question_decides_and_not_the_text_it_is_about(text: str, language: str) -> None:
    assert language_of(text) == language


def test_only_the_start_and_the_end_of_a_text_are_read() -> None:
    silent = "0 " * SAMPLE_CHARACTERS
    assert language_of(f"{silent} Как приготовить борщ дома? {silent}") == "en"
    assert language_of(f"{silent} Как приготовить борщ дома?") == "ru"
    assert language_of(f"Kannst du das bitte prüfen?{' x' * CLAUSE_CHARACTERS}\n{ENGLISH}") == "de"


@pytest.mark.parametrize(
    "piece", ["$", "a", '"a', "`", "\\[", "\\(", "“", "ab.", "``` ``", "\n", "é", "の", "\u4e00", ":"]
)
def test_hostile_text_takes_bounded_time(piece: str) -> None:
    """A call takes about 0.1 ms, whatever the length; a pattern that backtracks would take much longer."""
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    for _ in range(20):
        language_of(text)
    assert time.process_time() - started < 0.1
