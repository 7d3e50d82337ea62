"""The declared sources, on small files of the published shapes."""

import csv
import gzip
import json

import pytest
from semroute_lab.train.datasets import DOMAINS, LEVELS, TASKS, Part, part_of_fit
from semroute_lab.train.sources import HARD_CHAT, READERS, SOURCES, WORD_PROBLEM, read_all, read_handwritten

from semroute_extproc.errors import DataError

PRO_HEADER = ["question_id", "category", "src", "split", "ori_mmlu", "question", "options", "answer"]


def write(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def data(tmp_path):
    options = json.dumps(["yes", "no"])
    write(
        tmp_path / "matrices/mmlu_pro_questions.csv.gz",
        PRO_HEADER,
        [
            ["1", "law", "ori_mmlu-jurisprudence", "train", "True", "Is it binding?", options, "A"],
            ["2", "math", "theoremQA-Math", "train", "False", "What is 2 + 2?", options, "B"],
            ["3", "physics", "stemez-Optics", "val", "False", "What is light?", options, "A"],
        ],
    )
    write(
        tmp_path / "matrices/mmlu_pro_correct.csv.gz",
        ["question_id", "Meta-Llama-3_1-70B-Instruct", "DeepSeek-Coder-V2", "Mixtral-8x7B-Instruct-v0.1"],
        [["1", "1", "1", "0"], ["2", "1", "0", "0"], ["3", "1", "", "1"]],
    )
    write(
        tmp_path / "pairs/routellm_mmlu.csv.gz",
        ["prompt", "strong_correct", "weak_correct", "split", "subject"],
        [
            ["Gold?\nA. a\nB. b\nAnswer:", "1", "0", "gold", "jurisprudence"],
            ["Weak wins?\nA. a\nB. b\nAnswer:", "0", "1", "gold", "moral_scenarios"],
            ["Dev?\nA. a\nB. b\nAnswer:", "1", "0", "dev", "jurisprudence"],
        ],
    )
    return tmp_path


def by_source(data):
    rows, _ = read_all(data)
    found = {}
    for row in rows:
        found.setdefault(row.source, []).append(row)
    return found


def test_a_question_comes_with_and_without_its_options(data):
    rows = by_source(data)
    assert rows["mmlu_pro"][0].text == "Is it binding?"
    assert rows["mmlu_pro_options"][0].text == "Is it binding?\nA. yes\nB. no"
    assert rows["mmlu_pro_options"][0].domain == DOMAINS.index("law")


def test_a_question_without_its_options_counts_less(data):
    rows = by_source(data)
    assert {row.weight for row in rows["mmlu_pro"]} == {0.25}
    assert {row.weight for row in rows["mmlu_pro_options"]} == {1.0}


def test_the_outcomes_of_an_mmlu_question_are_not_read_into_a_difficulty(data):
    stem, own, val = by_source(data)["mmlu_pro_options"]
    assert stem.difficulty is None
    # Strong right in one of two, of whose errors .45 are left; weak wrong.
    assert own.difficulty == pytest.approx(1 - 0.45 * 0.5)
    assert (val.part, val.difficulty) == (Part.DEV, None)


def test_unknown_outcomes_do_not_count(data):
    header = ["question_id", "Meta-Llama-3_1-70B-Instruct", "DeepSeek-Coder-V2", "Mixtral-8x7B-Instruct-v0.1"]
    write(data / "matrices/mmlu_pro_correct.csv.gz", header, [["2", "1", "", "0"], ["3", "1", "1", ""]])
    _, own, _ = by_source(data)["mmlu_pro_options"]
    assert own.difficulty == 1.0


def test_gold_rows_train_and_the_others_are_reported_on(data):
    gold = by_source(data)["routellm_mmlu"]
    assert [row.part is Part.DEV for row in gold] == [False, False, True]


def test_a_gold_row_is_hard_where_only_the_strong_model_is_right(data):
    first, second, dev = by_source(data)["routellm_mmlu"]
    # A quarter is the mean of all three rows, of which two are hard.
    assert first.difficulty == pytest.approx(0.75 + 0.25 * 2 / 3)
    assert second.difficulty == pytest.approx(0.25 * 2 / 3)
    assert dev.difficulty == 1.0
    assert {row.kind for row in (first, second, dev)} == {"exam"}


def test_a_gold_rows_subject_gives_the_domain_it_is_filed_under(data):
    first, second, dev = by_source(data)["routellm_mmlu"]
    assert first.domain == DOMAINS.index("law")
    assert second.domain is None
    assert dev.domain is None


def test_the_test_questions_of_gsm8k_may_not_train(data):
    write(
        data / "pairs/routellm_gsm8k.csv.gz",
        ["prompt", "strong_correct", "weak_correct", "split"],
        [["How many?", "1", "0", "dev"]],
    )
    (row,) = by_source(data)["routellm_gsm8k"]
    assert not row.rights.may_train
    assert row.part is Part.DEV


REWARDS = ["prompt", "source", "train", "other_split", "split"]
REWARDS += ["reward_llama-3.1-8b-instruct", "reward_mistral-large-2512", "reward_gemini-2.5-pro"]


def test_a_prompt_is_as_hard_as_the_reward_that_the_weak_model_lacks(data):
    rows = [
        ["As good", "mmlu", "1", "", "train", "0.9", "0.8", "0.9"],
        ["Worse", "mmlu", "1", "", "train", "0.5", "0.7", "0.9"],
        ["Much worse", "gsm8k", "1", "", "train", "0.0", "1", "1"],
        ["Nobody was asked", "mmlu", "1", "", "train", "", "1", "1"],
        ["Reported", "mmlu", "1", "", "dev", "0.5", "0.7", "0.9"],
        ["Not to train", "mmlu", "0", "", "train", "0.5", "0.7", "0.9"],
        ["Of a test set", "mmlu", "1", "test", "train", "0.5", "0.7", "0.9"],
    ]
    write(data / "matrices/paretobandit.csv.gz", REWARDS, rows)
    good, worse, much, unknown, dev = by_source(data)["paretobandit"]
    assert (good.difficulty, good.kind) == (0.04, "short_question")
    assert worse.difficulty == pytest.approx(0.04 + 1.3 * 0.3)
    assert (much.difficulty, much.kind) == (0.9, "math_school")
    assert unknown.difficulty is None
    assert dev.part is Part.DEV
    assert Part.DEV not in {good.part, worse.part, much.part}


def test_each_task_of_a_matrix_has_its_kind_and_its_rate_of_the_strong_model(data):
    weak = ["llama-3.1-8b-instruct", "qwen2.5-7b-instruct", "gemma-2-9b-it", "mistral-7b-instruct-v0.3"]
    rows = [
        ["dev", "mbpp", "Sort a list.", "1", "1", "1", "1"],
        ["dev", "mbpp", "Parse a date.", "0", "0", "0", "0"],
        ["dev", "trivia_qa", "Who?", "0", "0", "1", "1"],
        ["dev", "unheard of", "What?", "0", "0", "1", "1"],
    ]
    write(data / "matrices/llmrouter.csv.gz", ["split", "task", "question", *weak], rows)
    easy, hard, trivia = by_source(data)["llmrouter"]
    # The weak rate of four models is shrunk by two answers at the task's mean of one half.
    assert easy.difficulty == pytest.approx(0.9 * (1 - 5 / 6))
    assert hard.difficulty == pytest.approx(0.9 * (1 - 1 / 6))
    assert trivia.difficulty == pytest.approx(0.25 * 0.5)
    assert [(row.kind, TASKS[row.task]) for row in (hard, trivia)] == [
        ("code", "code"),
        ("short_question", "question answering"),
    ]
    # All questions of this file are in its own `dev`: they train.
    assert Part.DEV not in {row.part for row in (easy, hard, trivia)}


def test_outcomes_of_strong_and_weak_models_give_the_difficulty(data):
    header = ["prompt", "split", "gpt-4o-2024-08-06", "claude-3-haiku-20240307", "Mistral-7B-Instruct-v0.3"]
    rows = [["Use two bullets.", "train", "0.8", "0.5", "0"], ["Use none.", "dev", "1", "0", "0"]]
    write(data / "matrices/ifeval.csv.gz", header, rows)
    train, dev = by_source(data)["ifeval"]
    assert (train.difficulty, train.kind) == (pytest.approx(0.8 * 0.75), "instruction_following")
    assert train.part is part_of_fit(train.text)
    assert dev.part is Part.DEV


def test_the_errors_of_older_strong_models_count_in_part(data):
    header = ["question", "split", "gpt-4o-2024-08-06", "gemma-2-9b-it"]
    write(data / "matrices/zeroeval_math.csv.gz", header, [["Prove it.", "dev", "0", "0"]])
    (row,) = by_source(data)["zeroeval_math"]
    assert row.difficulty == pytest.approx(0.4)
    assert (row.domain, row.task) == (DOMAINS.index("math"), TASKS.index("math"))
    assert row.part is part_of_fit(row.text)


def test_each_level_of_a_competition_has_a_difficulty(data):
    rows = [[f"Level {n}?", n, "train" if n < 5 else "dev"] for n in range(1, 6)]
    write(data / "difficulty/math_train.csv.gz", ["problem", "level", "split"], rows)
    found = by_source(data)["math_train"]
    assert [row.difficulty for row in found] == [0.1, 0.2, 0.32, 0.5, 0.72]
    assert [row.part is Part.DEV for row in found] == [False] * 4 + [True]


def test_a_level_that_is_not_declared_is_refused_by_row_and_column(data):
    write(data / "difficulty/math_train.csv.gz", ["problem", "level"], [["How?", "6"]])
    with pytest.raises(DataError, match=r"math_train\.csv\.gz:2:level: expected a number in 1\.\.5"):
        read_all(data)


def test_a_longer_word_problem_is_harder(data):
    write(
        data / "difficulty/gsm8k_train.csv.gz",
        ["question", "answer"],
        [["A much longer question?", "<<1>>"], ["Short?", "a <<1+1=2>> <<2>> <<3>>"]],
    )
    long, short = by_source(data)["gsm8k_train"]
    assert short.difficulty == WORD_PROBLEM[0]
    assert short.difficulty < long.difficulty <= WORD_PROBLEM[1]


def test_torn_rows_of_big_math_are_left_out(data):
    header = ["instruction", "response", "solve_rate", "difficulty_tier", "source", "domain"]
    rows = [["Whole?", "1", "0.25", "easy", "x", "y"], ["torn"], ["No rate", "1", "", "", "", ""]]
    write(data / "difficulty/big_math.csv.gz", header, rows)
    (row,) = by_source(data)["big_math"]
    # The strong model solves .93 of all.
    assert (row.text, row.difficulty) == ("Whole?", pytest.approx(0.93 * 0.75))
    assert row.place.endswith("big_math.csv.gz:2")


def test_commands_are_easy_and_have_fine_labels(data):
    header = ["split", "text", "category"]
    write(data / "intent/banking77.csv.gz", header, [["train", "where is my card", "card_arrival"]])
    (row,) = by_source(data)["banking77"]
    assert (row.difficulty, row.intent) == (LEVELS["command"], "banking77/card_arrival")
    assert (row.kind, row.weight) == ("command", 0.3)


def test_a_fine_label_comes_with_the_domain_and_task_of_its_source(data):
    write(data / "intent/stackoverflow20.csv.gz", ["text", "label"], [["How do I join a thread?", "python"]])
    (row,) = by_source(data)["stackoverflow20"]
    assert (row.intent, row.difficulty) == ("stackoverflow20/python", None)
    assert (DOMAINS[row.domain], TASKS[row.task]) == ("computer science", "code")


OUTCOMES = 28  # Models of the matrix, more than the two groups that are compared


@pytest.fixture
def arena(data):
    """Three prompts; good models win by 4, 2 and 1 points, and the last prompt is reported on."""
    gaps = {"Prove a theorem.": 2.0, "Debug this.": 1.0, "Compare two laws.": 0.5}
    models = [f"model {n}" for n in range(OUTCOMES)]
    rows = []
    for at, (text, gap) in enumerate(gaps.items()):
        scores = [-gap if n < 16 else gap for n in range(OUTCOMES)]
        rows.append([at, "c", text, "ko", "dev" if at == 2 else "train", *scores])
    header = ["question_id", "cluster", "prompt_en", "prompt_ko", "split", *models]
    write(data / "matrices/arena_hard_ko.csv.gz", header, rows)
    return data


def test_hard_prompts_are_ranked_by_the_gap_between_good_and_small_models(arena):
    rows = [["hard", text] for text in ("Prove a theorem.", "Debug this.", "Compare two laws.", "Unranked.")]
    rows.append(["creative_writing", "Write a saga."])
    write(arena / "intent/arena_hard.csv.gz", ["category", "prompt"], rows)
    theorem, debug, unranked, saga = by_source(arena)["arena_hard"]
    # The third prompt, the easiest of the three, is reported on and left out.
    assert theorem.difficulty == pytest.approx(HARD_CHAT[1])
    assert debug.difficulty == unranked.difficulty == pytest.approx(sum(HARD_CHAT) / 2)
    assert (saga.difficulty, saga.kind, TASKS[saga.task]) == (LEVELS["writing"], "writing", "creative")


def test_a_translated_prompt_is_as_hard_as_the_original_and_in_its_part(arena):
    header = ["split", "en", "de", "fr", "cs"]
    rows = [
        ["train", "Prove a theorem.", "Beweise einen Satz.", "Prouve un théorème.", "Dokaž větu."],
        ["dev", "Compare two laws.", "Vergleiche zwei Gesetze.", "", ""],
    ]
    write(arena / "multilingual/m_arena_hard.csv.gz", header, rows)
    german, french, dev = by_source(arena)["m_arena_hard"]
    assert [row.text for row in (german, french, dev)] == [rows[0][2], rows[0][3], rows[1][2]]
    assert german.difficulty == french.difficulty == pytest.approx(HARD_CHAT[1])
    assert german.part is french.part is part_of_fit("Prove a theorem.")
    assert dev.part is Part.DEV


def test_without_outcomes_a_hard_prompt_is_in_the_middle(data):
    write(data / "intent/arena_hard.csv.gz", ["category", "prompt"], [["hard", "Debug this."]])
    (row,) = by_source(data)["arena_hard"]
    assert row.difficulty == pytest.approx(sum(HARD_CHAT) / 2)


def test_the_class_of_an_instruction_gives_its_kind_level_and_task(data):
    rows = [["写一首诗", "generation"], ["读懂这段话", "closed\xa0qa"], ["别的", "no class"]]
    write(data / "intent/belle.csv.gz", ["question", "class"], rows)
    poem, reading = by_source(data)["belle"]
    assert (poem.kind, poem.difficulty, TASKS[poem.task]) == ("writing", 0.15, "creative")
    assert (reading.kind, reading.difficulty) == ("qa_over_text", 0.09)


ALLOWED = {"train": True, "split": "train", "licence": "MIT"}


def requests(data, *rows):
    """The examples of requests; a row is allowed to train unless it says otherwise."""
    file = data / "traffic/prompts.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    common = {"source": "a/b@0123 templates", **ALLOWED}
    with gzip.open(file, "wt") as stream:
        stream.writelines(json.dumps(common | row) + "\n" for row in rows)
    return [row for row in read_all(data)[0] if row.source.startswith("traffic/")]


def test_requests_that_may_not_train_or_are_reported_on_are_not_read(data):
    found = requests(
        data,
        {"kind": "chat", "text": "Tell me about the sea."},
        {"kind": "chat", "text": "No right.", "train": False},
        {"kind": "chat", "text": "Reported.", "split": "dev"},
        {"kind": "chat", "text": "Neither.", "train": False, "split": "dev"},
    )
    assert [row.text for row in found] == ["Tell me about the sea."]
    assert found[0].part is not Part.DEV


def test_a_request_has_the_source_and_the_licence_of_its_row(data):
    (row,) = requests(data, {"kind": "summarisation", "text": "Sum it up.", "licence": "CC0-1.0"})
    assert (row.source, row.rights.licence, row.rights.may_train) == ("traffic/a/b", "CC0-1.0", True)
    assert (row.kind, TASKS[row.task], row.domain) == ("summarisation", "summarisation", None)


def test_a_request_has_the_level_of_its_kind_or_of_its_own(data):
    found = requests(
        data,
        {"kind": "math_contest", "text": "Find all primes."},
        {"kind": "math", "text": "Find x.", "task": "college_math"},
        {"kind": "science_problem", "text": "Pick one.", "task": "multiple choice"},
        {"kind": "instruction_following", "text": "Use no commas.", "level": 5},
        {"kind": "instruction_following", "text": "Use no dots."},
        {"kind": "planning", "text": "Plan a trip."},
    )
    assert [row.difficulty for row in found] == pytest.approx(
        [LEVELS["math_contest"], 0.38, 0.22, 0.43, 0.22, None]
    )
    assert DOMAINS[found[0].domain] == "math"


def test_the_text_of_a_request_is_what_the_server_would_classify(data):
    turns = [
        {"role": "system", "content": "You are a helper."},
        {"role": "user", "content": "What is a monad in a few words?"},
    ]
    (row,) = requests(data, {"kind": "chat", "messages": turns})
    assert row.text == "What is a monad in a few words?"


def test_housekeeping_is_read_as_it_is(data):
    text = "### Task:\nWrite a title.\n### Chat:\nhello there"
    (row,) = requests(data, {"kind": "housekeeping", "text": text})
    assert row.text == text
    assert row.difficulty == LEVELS["housekeeping"]


def test_requests_of_one_group_are_in_one_part(data):
    rows = [{"kind": "chat", "text": f"Question {n}", "id": f"group {n // 4}"} for n in range(80)]
    found = requests(data, *rows)
    parts = {(number // 4, row.part) for number, row in enumerate(found)}
    assert len(parts) == 20
    assert len({part for _, part in parts}) == 2


def test_out_of_scope_requests_are_never_training_rows(data):
    write(
        data / "intent/clinc150.csv.gz",
        ["split", "text", "intent", "domain"],
        [
            ["train", "pay it", "pay_bill", "banking"],
            ["oos_train", "sing", "oos", "oos"],
            ["test", "x", "y", "z"],
        ],
    )
    rows = by_source(data)["clinc150"]
    assert [row.text for row in rows] == ["pay it", "x"]
    assert rows[1].part is Part.DEV


def test_an_unknown_domain_is_refused_by_row_and_column(data):
    file = data / "matrices/mmlu_pro_questions.csv.gz"
    write(file, PRO_HEADER, [["1", "alchemy", "s", "train", "False", "Gold?", "[]", "A"]])
    with pytest.raises(DataError, match=r"mmlu_pro_questions\.csv\.gz:2:category: .*'alchemy'"):
        read_all(data)


def test_files_that_are_not_there_are_named(data):
    _, missing = read_all(data)
    assert "intent/clinc150.csv.gz" in missing
    assert "matrices/mmlu_pro_questions.csv.gz" not in missing


def test_no_source_without_an_open_licence_may_train():
    for source in SOURCES:
        if source.may_train:
            assert source.licence.split("-")[0] in ("MIT", "Apache", "CC", "CC0", "per row")
            assert "NC" not in source.licence


def test_handwritten_files_train_or_measure_by_their_name(tmp_path):
    (tmp_path / "a.train.jsonl").write_text(
        '{"text": "Why is the sky blue?", "domain": "physics", "hard": 0}\n'
        '{"text": "sum this up", "task": "summarisation"}\n'
    )
    (tmp_path / "b.eval.jsonl").write_text('{"text": "Prove it.", "hard": 1}\n')
    first, second, third = read_handwritten(tmp_path)
    assert (first.domain, first.task) == (DOMAINS.index("physics"), None)
    assert (first.difficulty, third.difficulty) == (LEVELS["everyday_easy"], LEVELS["everyday_hard"])
    assert (second.task, second.difficulty) == (TASKS.index("summarisation"), None)
    assert third.part is Part.DEV
    assert not third.rights.may_train


def test_a_mislabeled_handwritten_row_is_refused_by_row_and_column(tmp_path):
    (tmp_path / "a.train.jsonl").write_text(
        '{"text": "x", "domain": "law"}\n{"text": "y", "domain": "Law"}\n'
    )
    with pytest.raises(DataError, match=r"a\.train\.jsonl:2:domain: expected one of .*'Law'"):
        read_handwritten(tmp_path)


def test_every_source_has_a_reader_and_a_name_of_its_own():
    assert {source.read for source in SOURCES} <= set(READERS)
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_every_level_is_a_probability():
    assert all(0 < level < 1 for level in LEVELS.values())
