"""The question within a user turn, whatever an application puts around it."""

from __future__ import annotations

import time

import pytest

from semroute_extproc.request.envelope import BLOCK_MIN, OPENERS_MAX, READ_MAX, LeftOut, Unwrapped, unwrap

ASK = "How long may a passport be expired before it needs a new photo?"
ZH, KO = "护照过期多久后需要重新拍照？", "여권은 얼마나 자주 갱신해야 하나요?"
FACTS = "Passports are renewed at the office of the district. " * 12
FACTS_ZH = "护照由区办公室更新。办理时需要出示旧证件和近期照片。" * 15


def question(text: str) -> str:
    return unwrap(text).question


@pytest.mark.parametrize(
    "text",
    [
        ASK,
        "hi",
        "",
        "Fix this:\n\n```python\nfor x in xs:\n    print(x)\n```",
        "Let $f(x) = x^2$.\n\nFind all $x$ with $f(f(x)) = x$.",
        "Why does <div><p>text</p></div> render twice?",
        "List<String> names = load();\nWhy does this not compile?",
        "Compare:\n- cost\n- speed\n- licence",
        'Explain the config {"query": "select 1"}.',
        "You are a pirate. Tell me a story.",
        "A: red\nB: blue\nC: green\nWhich one is warm?",
        "Dear all,\n\nthe meeting is moved.\n\nBest, Kim",
    ],
)
def test_a_text_without_an_envelope_is_kept_as_it_is(text: str):
    assert unwrap(text) == Unwrapped(text, (), unwrap(text).frame)


@pytest.mark.parametrize(
    "text",
    [
        f"Choose an ending:\n\nContext: {FACTS}\n\nOptions:\n (1) renewed\n (2) expired\n\nGive reasons.",
        f"[Public law]\n{ASK}\n(A) {FACTS[:300]}\n(B) {FACTS[:300]}\nAnswer with the correct letter.",
        f"{FACTS}\n{ASK}\nOptions:\n- one year\n- two years",
        f"{FACTS_ZH}\n{FACTS_ZH}\n{ZH}\n选项：\n- 一年\n- 两年",
    ],
)
def test_a_question_with_options_keeps_what_they_are_about(text: str):
    assert question(text).startswith(text[:40])
    assert question(text).endswith(text[-10:])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Hi there!\nI hope you are well. ", "\nThank you very much."),
        ("", "\n\nThanks, have a great day :)"),
        ("", "\n\n--\nSent from my phone. Please excuse typos."),
        ("Solve the problem below. Put the result into \\boxed{...}.\n\n", "\n\nEnd with \\boxed{}."),
        ("Guten Tag,\n\n", "\n\nVielen Dank im Voraus!"),
        ("您好，\n", "\n谢谢！"),
    ],
)
def test_courtesies_around_a_request_are_left_out(before: str, after: str):
    found = unwrap(f"{before}{ASK}{after}")
    assert found.question == ASK
    assert [each.kind for each in found.left_out] == ["format"]


@pytest.mark.parametrize("text", ["Hello!\nHow are you?", "Hi,\n\nthanks!", "Say hello.\nSay thanks."])
def test_a_turn_of_courtesies_and_requests_about_them_are_kept(text: str):
    assert question(text) == text


@pytest.mark.parametrize(
    "header",
    [
        "From: kim@example.com\nTo: desk@example.com\nSubject: passport\nDate: Tue, 6 May 09:14\n\n",
        "-----Original Message-----\nFrom: Kim\nSent: Monday\nTo: Lee\nSubject: RE: passport\n\n",
        "Von: Kim\nGesendet: Montag\nAn: Lee\nBetreff: Reisepass\n\n",
    ],
)
def test_the_header_of_a_mail_is_left_out(header: str):
    assert question(header + ASK) == ASK
    assert question("From: Oslo\nTo: Rome\n\n" + ASK).startswith("From: Oslo"), "two lines may be anything"


TAGS = [
    f"<system-reminder>\n{FACTS}\n</system-reminder>\n{ASK}",
    f"{ASK}\n<environment_details>\n{FACTS}\n</environment_details>",
    f"<docs>{FACTS}</docs>\n\n<ask>{ASK}</ask>\n\nCite the documents.",
    f"<user_message><task>{ASK}</task></user_message>",
    f"<instructions>Use the documents.</instructions>\n<question>{ASK}</question>",
    f"[DOCUMENT]\n{FACTS}\n[/DOCUMENT]\n[QUESTION]\n{ASK}\n[/QUESTION]",
    f"The query is in <user_query> tags.\n<user_query>{ASK}</user_query>\n<chunks>{FACTS}</chunks>",
    f"<userQuery>{ASK}</userQuery><retrievedContext>{FACTS}</retrievedContext>",
    f"<crm-export-7>\n{FACTS}\n</crm-export-7>\n{ASK}",
    f"<file path='a.md'>\n<question>What is left?</question>\n{FACTS}\n</file>\n{ASK}",
    f"<s>[INST] {ASK} [/INST]",
]


@pytest.mark.parametrize("text", TAGS)
def test_tags_of_context_are_left_out_and_tags_of_the_request_yield_their_inside(text: str):
    assert question(text) == ASK


def test_what_is_left_out_is_counted():
    (left,) = unwrap(f"<notes>{FACTS}</notes>\n{ASK}").left_out
    assert left == LeftOut("block", len(FACTS) + len("<notes></notes>\n"))


def test_a_turn_of_context_alone_has_no_question():
    assert question(f"<environment_context>{FACTS}</environment_context>") == ""
    assert question("# AGENTS.md instructions for /shop\n\n<INSTRUCTIONS>\nUse types.\n</INSTRUCTIONS>") == ""
    assert question("[read_file for 'a.py'] Result:\ndef total(): ...") == ""


def test_instructions_in_tags_are_the_request_if_there_is_no_other_text():
    assert question(f"<instructions>{ASK}</instructions>\n<document>{FACTS}</document>") == ASK


def test_tags_within_code_are_the_users_text():
    text = f"```xml\n<query>select</query>\n```\n{ASK}"
    assert question(text) == text


def test_a_short_unknown_block_is_the_users_text():
    text = f"<zeta-7>\n{'x' * (BLOCK_MIN // 2)}\n</zeta-7>\n{ASK}"
    assert question(text) == text


def test_a_text_with_too_many_tags_is_not_searched_for_them():
    text = f"<context>{'<a' * OPENERS_MAX}</context>"
    assert question(text) == text


JSON = [
    f'{{"question": "{ASK}", "context": "{FACTS}"}}',
    f'```json\n{{"question": "{ASK}", "context": "{FACTS}"}}\n```',
    f'{{"task": "qa", "userQuery": "{ASK}", "documents": ["a", "b"]}}',
    f'{{"id": "a81f", "locale": "en-US", "message": "{ASK}"}}',
]


@pytest.mark.parametrize("text", JSON)
def test_a_json_object_yields_the_member_that_carries_the_request(text: str):
    assert question(text) == ASK


@pytest.mark.parametrize("text", ['{"name": "Kim", "age": 7}', '{"question": ', "{x}\nWhat is this?"])
def test_other_json_is_the_users_text(text: str):
    assert question(text) == text


LABELS = [
    (f"Context information is below.\n-----\n{FACTS}\n-----\nAnswer the query.\nQuery: {ASK}\nAnswer: ", ASK),
    (f"You answer questions.\nQuestion: {ASK}\nContext: {FACTS}\nAnswer:", ASK),
    (f">>> CONTEXT: {FACTS}\n>>> USER INPUT: {ASK}\n>>> RESPONSE:", ASK),
    (f"## Context\n{FACTS}\n\n## Question\n{ASK}\n\n## Answer\n", ASK),
    (f"<< INPUT DATA >>\n{FACTS}\n\n<< QUESTION >>\n{ASK}", ASK),
    (f"Use the following context to answer the question:\n\n{FACTS}\n\n{ASK}", ASK),
    (f"Recall that we work on the following request:\n\n{ASK}\n\nOur team is:\n\ncoder: writes code", ASK),
    (
        f"The original question is as follows: {ASK}\nWe have more.\n----\n{FACTS}\n----\nRefine it.",
        ASK,
    ),
    (f'Entries that may help:\n{FACTS}\n\nCustomer writes: "{ASK}"\nYour reply:', ASK),
    (f"{ASK}\n\nSearch results:\n[1] {FACTS}", ASK),
    (f"## 参考内容\n{FACTS_ZH}\n\n## 用户问题\n{ZH}", ZH),
    (f"아래 컨텍스트만 사용하세요.\n\n질문:\n{KO}\n\n컨텍스트:\n{FACTS}\n\n답변:", KO),
    (f"Контекст:\n{FACTS}\n\nВопрос: Сколько действует паспорт?\nОтвет:", "Сколько действует паспорт?"),
    (f"السياق:\n{FACTS}\n\nالسؤال: كم مدة صلاحية الجواز؟\nالإجابة:", "كم مدة صلاحية الجواز؟"),
    (f"Contexto: {FACTS}\n\nPregunta del usuario: ¿Cuánto dura?\nRespuesta:", "¿Cuánto dura?"),
]


@pytest.mark.parametrize(("text", "asked"), LABELS)
def test_the_text_after_a_label_of_the_question_is_the_question(text: str, asked: str):
    assert question(text) == asked


def test_the_last_example_without_an_answer_is_the_question():
    assert question(f"Q: What is 2+2?\nA: 4\n\nQ: What is 3*3?\nA: 9\n\nQ: {ASK}\nA:") == ASK
    assert question(f"Text: good\nLabel: 1\n\nText: bad\nLabel: 0\n\nText: {ASK}\nLabel:") == ASK
    assert question(f"Input: good\nOutput: 1\n\nInput: bad\nOutput: 0\n\nInput: {ASK}\nOutput:") == ASK


def test_several_questions_without_answers_are_all_judged():
    assert question(f"Question 1: {ASK}\nQuestion 2: Why?") == f"{ASK}\nWhy?"


def test_options_with_letters_are_no_answers():
    assert question(f"Question: {ASK}\nA: one year\nB: two years\nAnswer:").startswith(ASK)


def test_the_last_line_of_the_user_is_the_question_of_a_chat_log():
    log = f"User: hello\nAssistant: Hello!\nUser: {ASK}\nAssistant:"
    tokens = (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
    )
    times = f"[2026-05-01 10:00] User: hello\n[10:01] Assistant: Hello!\n[10:02] User: {ASK}"
    assert question(log) == question(tokens) == question(times) == ASK


def test_an_instruction_with_its_input_is_judged_with_it():
    text = f"Below is a task.\n\n### Instruction:\nTranslate.\n\n### Input:\n{ASK}\n\n### Response:\n"
    assert question(text) == f"Translate.\n{ASK}"


FORMATS = [
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "The last line of your response should be the letter of your choice.",
    "请一步一步思考，把最终答案写在最后。",
]


@pytest.mark.parametrize("sentence", FORMATS)
def test_sentences_about_the_form_of_the_answer_are_left_out(sentence: str):
    assert question(f"{ASK}\n{sentence}") == question(f"{sentence}\n\n{ASK}") == ASK


def test_a_role_and_its_rules_before_the_request_are_left_out():
    assert question(f"You are HelpBot of the city.\n\nRules:\n- Be brief.\n- Be kind.\n\n{ASK}") == ASK


def test_a_role_that_comes_with_its_request_is_kept():
    text = f"You are an expert on passports. Compare ours with those of three other countries.\n\n{FACTS}"
    assert question(text) == text.partition("\n")[0]


@pytest.mark.parametrize(
    "text",
    [
        f"{ASK}\n\n{FACTS}\n\n{FACTS}",
        f"{FACTS}\n\n{FACTS}\n\n{ASK}",
        f"{FACTS}\n\n{FACTS}\n\n{ASK}\n\n{FACTS}\n\n{FACTS}",
        f'{ASK}\n\n"""\n{FACTS}\n{FACTS}\n"""',
    ],
)
def test_the_request_is_found_at_the_head_the_tail_and_in_the_middle_of_a_document(text: str):
    assert question(text) == ASK


def test_a_short_paragraph_next_to_one_document_is_the_request_even_without_request_words():
    assert question(f"{FACTS}\n\nShort recap please, no names.") == "Short recap please, no names."
    assert question(f"Same content, as bullet points:\n\n{FACTS}") == "Same content, as bullet points:"


@pytest.mark.parametrize(
    "text",
    [
        f"Write a parser that does this:\n\n- {FACTS}\n\n- {FACTS}",
        f"What should I pack?\n\n{FACTS}\n\nWhere should I stay?\n\n{FACTS}\n\nWhen should I go?",
        f"{FACTS}\n\n{FACTS}\n\n{FACTS}",
        f"The function is:\n\n```\n{FACTS}\n```\n\nMake it faster.",
    ],
)
def test_requirements_several_questions_prose_and_code_are_read_in_full(text: str):
    assert question(text) == text


def test_what_is_beyond_the_bound_is_counted_as_unread():
    text = f"Context:\n{'All is well. ' * READ_MAX}\n\nQuestion: {ASK}\nAnswer:"
    found = unwrap(text)
    assert found.question == ASK
    assert LeftOut("unread", len(text) - READ_MAX - 1) in found.left_out


HOSTILE = [
    "<a>",
    "<task>x</task>",
    "<a ",
    "<x1",
    "[a]",
    "a\n",
    "Q: a\n",
    ":",
    '{"a":',
    " ",
    "```",
    "final answer. ",
    ".",
    "Here is the question:\n",
    "<|im_start|>user\n",
    "?\n\n",
    "- a\n\n",
    "Called the \n",
    "<q1>x</q1>\n",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_takes_time_in_proportion_to_its_length(unit: str):
    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit)) + "\n</a> [/a]"
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            unwrap(text)
            best = min(best, time.process_time() - start)
        return best

    assert seconds(800_000) < max(16 * seconds(100_000), 0.05)


@pytest.mark.parametrize("name", ["k%d", "aB" * 500 + "%d"])
def test_json_with_very_many_or_long_names_takes_little_time(name: str):
    """The event loop reads it; 24,000 names took 0.06 s."""
    count = 240_000 // len(f'"{name}":"",')
    text, best = "{" + ",".join(f'"{name % number}":""' for number in range(count)) + "}", 1.0
    for _ in range(3):
        started = time.process_time()
        unwrap(text)
        best = min(best, time.process_time() - started)
    assert best < 0.015
