"""The language of a text, from its script and its function words.

Pure, some tens of microseconds, no model: a statistical identifier was measured at a second of start
and a hundred megabytes a worker. Scripts are certain; among languages in Latin script the vote of
function words decides. A request may be too short to have any ("Schreib mir ein Gedicht"): in a text
without an English one, words with which requests begin and accented letters decide. What has none of
all these is called English, the bundle's own.
"""

from __future__ import annotations

import re

SAMPLE_CHARACTERS = 400
"""How much of the text's head is looked at."""

_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
)
"""Script to its most frequent language; Japanese kana come before Han, which both write."""

SCRIPT_SHARE_MIN = 0.15
"""A script decides from this share of the letters on: a Greek letter in a formula is not Greek."""

_FUNCTION_WORDS = {
    "en": "the of and to in is are was were be been what how why which who when where whose with that this "
    "these those for from by at on as or not no it its an you your we our us they their them he she "
    "his her my me can could do does did will would should shall may might must have has had if then "
    "than so but because about into over under after before between through during against up down "
    "out off all any some more most other such only own same too very just also there here come per "
    "via get make need want like know please find write give explain calculate new one two first plus "
    "sentence text",
    "es": "el la los las un una unos unas de del al que qué y en por para con sin sobre entre es son está "
    "están fue hay ser como cómo cuál cuáles cuando dónde quién pero más muy este esta estos esto eso "
    "lo le les me mi mis tu su sus se si sí no yo puedo puede quiero necesito hola hacer tengo tiene "
    "porque también",
    "fr": "combien le la les un une des du de et est sont être que qui quoi quel quelle quels quelles où "
    "pour dans avec sans sur par entre pas ne plus comment pourquoi quand je tu il elle nous vous ils "
    "elles mon ma mes ton son sa ses leur ce cette ces se au aux mais ou donc très puis peux peut "
    "fait faire bonjour",
    "de": "in ihren ihre ihr der die das den dem des ein eine einen einem einer und ist sind war wird "
    "werden nicht kein keine mit für von vom zu zum zur im auf aus bei nach über unter wie was warum "
    "wer wo wann welche welcher welches ich du er sie es wir mein meine dein sich auch noch nur aber "
    "oder wenn dass kann kannst habe hat bitte gibt viel",
    "it": "in il lo la gli le un uno una di del della dello dei delle al alla che chi cosa è sono era per "
    "con senza su tra fra come quando dove perché quale quali quanto non più anche ma se si mi ti ci "
    "mio mia puoi può posso voglio questo questa questi ciao fare nel nella sul sulla",
    "pt": "os as um uma uns umas de do da dos das no na nos nas ao à que qual quais quem como quando onde "
    "por para com sem sobre entre é são está estão foi ser ter tem mas mais muito não sim você eu ele "
    "ela meu minha seu sua se isso este esta esse essa também porque posso pode quero olá fazer pelo "
    "pela",
    "nl": "in de het een en van is zijn was niet geen met voor door bij naar uit over om te dat die dit "
    "deze ik je jij hij zij wij we mijn jouw hoe wat waarom wie waar wanneer welke maar ook nog kan "
    "kun wil heb heeft er aan op",
    "pl": "nie to się jest są na do od po za dla jak co czy czym gdzie kiedy kto który która które że ale "
    "albo oraz jestem mam mój moja twój jego jej ten ta te tego bardzo proszę dlaczego może można",
    "tr": "ve bir bu şu için ile ne nasıl neden nerede kim hangi mi mı mu mü çok daha ama veya ben sen biz "
    "siz benim var yok değil olarak olan gibi kadar",
    "vi": "là và của có không cho tôi bạn như thế nào một những được gì với trong này các khi để ở tại sao "
    "làm",
    "id": "yang dan di ini itu untuk dengan apa bagaimana mengapa kapan siapa tidak saya anda kamu dari ke "
    "pada adalah atau akan bisa dapat juga karena saja sudah",
}
"""Words of two letters and more: a single letter is a variable, a grade or English's own "I"."""

_REQUEST_WORDS = {
    "es": "significa escribe escríbeme explica explícame traduce resúmeme dame dime haz hazme describe "
    "calcula compara corrige redacta resuelve cuéntame ayúdame muéstrame crea busca enumera prepara "
    "revisa acorta responde gracias buenos buenas muchas ejemplos lista receta texto frase carta agua "
    "hora año mejores",
    "fr": "signifie écris écrivez explique expliquez traduis traduisez résume résumez donne donnez décris "
    "rédige corrige calcule raconte montre propose reformule aide trouve prépare crée vérifie résous "
    "cherche liste merci beaucoup bonne exemples recette phrase lettre eau heure idées mot mots texte "
    "fautes",
    "de": "bedeutet heißt schreib schreibe schreiben erkläre erklär übersetze übersetz fasse fass nenne gib "
    "sag erzähl erzähle beschreibe vergleiche berechne rechne löse verbessere korrigiere formuliere "
    "erstelle mach mache hilf zeig zeige prüfe kürze stelle liste danke mir mich diese dieser dieses "
    "diesen satz sätze sätzen text beispiel beispiele drei fünf hauptstadt rezept gedicht brief "
    "zusammen vorschläge folgenden grad",
    "it": "significa scrivi scrivimi spiega spiegami traduci riassumi dammi fammi fai descrivi calcola "
    "confronta correggi raccontami aiutami mostrami crea trova elenca prepara controlla risolvi "
    "accorcia riformula grazie mille esempi ricetta testo frase lettera tabella acqua ore idee "
    "migliori errori parole",
    "pt": "significa escreva escreve explique traduza traduz resuma descreva calcule corrija conta conte "
    "ajude mostre crie faça liste dê redija resolva reformule encontre prepare verifique encurte "
    "obrigado obrigada boa bom exemplos receita texto frase carta água horas ideias melhores erros "
    "palavras tabela meus",
    "nl": "schrijf leg vertaal vat geef noem maak help vergelijk bereken corrigeer verbeter bedankt "
    "voorbeelden zin zinnen tekst brief recept hoofdstad uit",
    "pl": "napisz wyjaśnij przetłumacz podaj opisz policz porównaj popraw streść zrób pomóż dziękuję "
    "przykłady zdanie tekst przepis stolica",
    "tr": "yaz açıkla çevir özetle hesapla karşılaştır düzelt ver anlat teşekkürler örnek metin",
    "vi": "viết giải thích dịch tóm tắt hãy liệt kê tính so sánh cảm ơn",
    "id": "tulis jelaskan terjemahkan ringkas berikan buatkan buat hitung bandingkan perbaiki terima kasih "
    "contoh",
}
"""Words with which requests begin and what they ask for, as far as English has no such word of its own."""

_ENGLISH_TOO = (
    "dame describe lista propose liste crea brief text prepare compare conte mot fass vat leg bandit "
    "grad help uit mille trova ver hora co phrase comment er mi twice ten non com sin war cos uno mac "
    "os prove"
)
"""Of those, and of the function words, what English texts have as well: half a vote."""

_IN_NAMES = "para dove door fare mach aide conta pode sans mare sera grande como pour"
"""And what stands in names and titles: half a vote where there is little else. So are all words of two and
three letters, half of which are somebody's name or abbreviation."""

_LETTERS = {
    "es": "ñáíóúé",
    "fr": "çœêèàéîûëôâù",
    "de": "äöüß",
    "it": "ùòìèà",
    "pt": "ãõçáâêéíóúà",
    "pl": "łąęśżźćńó",
    "tr": "ğışçöü",
}

VOTES_MIN = 1.1
"""Fewer votes than this for another language are an accident of names and quotations."""

ENGLISH_MIN = 0.5
"""From so many votes on English is meant: less is a word that other languages have as well, such as "in"."""

BRIEF_MIN = 1.0
"""What tells of another language in a text too short for votes: a word of a request, or two halves. An
accented word is less: two of them may be a French dish."""

SHORT_WORD = 3
"""Letters of a word that may be a name or an abbreviation."""

BRIEF_SHARE_MIN = 0.25
"""And it is more than this share of the text's different words."""

_DOUBTFUL = frozenset(_ENGLISH_TOO.split())
_DOUBTFUL_ALONE = _DOUBTFUL | frozenset(_IN_NAMES.split())

_SPEAKERS: dict[str, list[str]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _SPEAKERS.setdefault(_word, []).append(_language)
_VOTES = {
    word: tuple((language, (0.5 if word in _DOUBTFUL else 1.0) / len(languages)) for language in languages)
    for word, languages in _SPEAKERS.items()
}
"""Word to the languages it belongs to, one vote shared among them, or half a one."""

_REQUESTS: dict[str, list[str]] = {}
for _language, _words in _REQUEST_WORDS.items():
    for _word in _words.split():
        _REQUESTS.setdefault(_word, []).append(_language)
_ACCENTS: dict[str, list[str]] = {}
for _language, _word in _LETTERS.items():
    for _letter in _word:
        _ACCENTS.setdefault(_letter, []).append(_language)

_LATIN_WORD = re.compile(r"\b[a-zà-ỹ]{2,}\b")
_LETTER = re.compile(r"[^\W\d_]")


def language_of(text: str) -> str:
    """ISO 639-1 code of the language `text` is most likely in; "en" where nothing tells."""
    sample = text[:SAMPLE_CHARACTERS]
    if not sample.isascii():
        letters = len(_LETTER.findall(sample)) or 1
        for language, script in _SCRIPTS:
            if len(script.findall(sample)) / letters >= SCRIPT_SHARE_MIN:
                return language
    words = _LATIN_WORD.findall(sample.lower())
    votes: dict[str, float] = {}
    for word in words:
        for language, vote in _VOTES.get(word, ()):
            votes[language] = votes.get(language, 0.0) + vote
    most = max(votes.values(), default=0.0)
    english = votes.get("en", 0.0)
    if most >= VOTES_MIN and most > english:
        return next(language for language in _FUNCTION_WORDS if votes.get(language) == most)
    return _brief(words) if english < ENGLISH_MIN else "en"


def _brief(words: list[str]) -> str:
    """The language of a text that has no function words to speak of, by its different words."""
    different = dict.fromkeys(words)  # in order: sums of the same text are the same in every process
    told = 0.0
    votes: dict[str, float] = {}
    for word in different:
        languages = [language for language, _ in _VOTES.get(word, ())] + _REQUESTS.get(word, [])
        if "en" in languages:
            continue
        weight = 0.5 if word in _DOUBTFUL_ALONE or len(word) <= SHORT_WORD else 1.0
        if not languages:
            languages = [each for letter in dict.fromkeys(word) for each in _ACCENTS.get(letter, ())]
            weight = 0.4
        if languages:
            told += weight
            for language in languages:
                votes[language] = votes.get(language, 0.0) + weight / len(languages)
    if told < BRIEF_MIN or told <= BRIEF_SHARE_MIN * len(different):
        return "en"
    most = max(votes.values())
    return next(language for language in _FUNCTION_WORDS if votes.get(language) == most)
