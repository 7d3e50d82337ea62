"""A user's own logs: the documented shape, and a refusal with its place for every fault."""

import csv
import json

import pytest
from semroute_lab.train import logs
from semroute_lab.train.datasets import DOMAINS, Part

from semroute_extproc.errors import DataError


def rows(n=240, **changes):
    """Prompts of which every third one needs the strong model."""
    return [
        {"prompt": f"prompt {i}", "outcome.small": int(i % 3 != 0), "outcome.large": 1} | changes
        for i in range(n)
    ]


def write_csv(path, table):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def write_jsonl(path, table):
    path.write_text("".join(json.dumps(one) + "\n" for one in table))
    return path


def read(file, **plan):
    return logs.read_logs(logs.LogsPlan(file, "small", "large", **plan))[0]


def refused(file, match, **plan):
    with pytest.raises(DataError, match=match):
        read(file, **plan)


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_csv_and_json_lines_read_the_same(tmp_path, write):
    found = read(write(tmp_path / f"logs.{write.__name__[6:]}", rows()))
    assert len(found) == 240
    assert [one.difficulty for one in found[:4]] == [1.0, 0.0, 0.0, 1.0]
    assert {(one.source, one.kind, one.weight) for one in found} == {("logs", "logs", logs.LOGS_WEIGHT)}


def test_several_answers_a_model_become_soft_targets(tmp_path):
    table = rows()
    table[0] |= {"outcome.small": [1, 0], "outcome.large": [1, 1, 1, 0]}
    first = read(write_jsonl(tmp_path / "l.jsonl", table))[0]
    assert first.difficulty == 0.75 * 0.5


def test_rows_on_which_a_model_was_not_asked_are_left_out(tmp_path):
    table = rows(260)
    for one in table[:20]:
        one["outcome.small"] = ""
    assert len(read(write_csv(tmp_path / "l.csv", table))) == 240


def test_rows_marked_dev_are_reported_on(tmp_path):
    table = rows(split="")
    table[5]["split"] = "dev"
    found = read(write_csv(tmp_path / "l.csv", table))
    assert [one.text for one in found if one.part is Part.DEV] == ["prompt 5"]


def test_a_domain_may_be_named(tmp_path):
    found = read(write_csv(tmp_path / "l.csv", rows(domain="law")))
    assert found[0].domain == DOMAINS.index("law")


def test_a_prompt_that_is_there_twice_is_refused_by_its_row(tmp_path):
    table = rows()
    table[9]["prompt"] = "Prompt  3"
    refused(write_csv(tmp_path / "l.csv", table), r"l\.csv:11:prompt: the same prompt as in row 5")


def test_an_outcome_out_of_range_is_refused_by_its_row(tmp_path):
    table = rows()
    table[2]["outcome.large"] = 7
    refused(
        write_csv(tmp_path / "l.csv", table), r"l\.csv:4:outcome\.large: expected a number in 0\.\.1.*'7'"
    )


def test_an_outcome_that_is_no_number_is_refused_by_its_row(tmp_path):
    table = rows()
    table[2]["outcome.large"] = "good"
    refused(write_csv(tmp_path / "l.csv", table), r"l\.csv:4:outcome\.large: expected a number.*'good'")


def test_a_model_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    file = write_csv(tmp_path / "l.csv", rows())
    with pytest.raises(DataError, match=r"l\.csv:1:outcome\.huge: .*the file has those of small, large"):
        logs.read_logs(logs.LogsPlan(file, "small", "huge"))


def test_a_blank_prompt_is_refused_by_its_row(tmp_path):
    table = rows()
    table[1]["prompt"] = " "
    refused(write_csv(tmp_path / "l.csv", table), r"l\.csv:3:prompt: expected text")


def test_a_misspelt_domain_is_refused_by_its_row(tmp_path):
    refused(write_csv(tmp_path / "l.csv", rows(domain="Law")), r"l\.csv:2:domain: expected one of .*'Law'")


def test_a_negative_cost_is_refused_by_its_row(tmp_path):
    table = rows(**{"cost.small": "0.1"})
    table[3]["cost.small"] = "-1"
    refused(write_csv(tmp_path / "l.csv", table), r"l\.csv:5:cost\.small: expected a number")


def test_a_tiny_file_is_refused(tmp_path):
    refused(write_csv(tmp_path / "l.csv", rows(50)), "at least 200 rows .* found 50")


def test_a_file_with_one_class_only_is_refused(tmp_path):
    table = rows(**{"outcome.small": 1})
    refused(write_csv(tmp_path / "l.csv", table), "found 0 and 240: there is nothing to learn")


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "l.csv"
    file.write_text("")
    refused(file, r"l\.csv:1:")


def test_labels_by_pairs_of_answers_read_rows_with_different_numbers_of_answers(tmp_path):
    table = rows()
    table[0] |= {"outcome.small": [1, 0], "outcome.large": [1, 1, 1, 0]}
    first = read(write_jsonl(tmp_path / "l.jsonl", table), labels="prob")[0]
    # 1 - Pr[weak >= strong]: only the pairs (0, 1), three of eight.
    assert first.difficulty == 0.375


def test_t_star_is_chosen_without_the_rows_that_are_reported_on(tmp_path):
    table = rows(**{"outcome.large": 0.9})
    for number, one in enumerate(table):
        one |= {"outcome.small": 0.5 if number % 2 else 0.8, "split": ""}
    kept = logs.read_logs(
        logs.LogsPlan(write_csv(tmp_path / "l.csv", table), "small", "large", labels="trans")
    )
    for one in table[:30]:
        one |= {"split": "dev", "outcome.small": 0.0}
    more = logs.read_logs(
        logs.LogsPlan(write_csv(tmp_path / "m.csv", table), "small", "large", labels="trans")
    )
    assert kept[1]["t"] == more[1]["t"]


def test_a_measure_of_answers_reads_answers_and_references(tmp_path):
    table = [
        {
            "prompt": f"prompt {i}",
            "reference": "42",
            "answer.small": ["42", "[1, 2]"],
            "answer.large": "It is 42",
        }
        for i in range(240)
    ]
    with pytest.raises(DataError, match=r"l\.jsonl:1:answer\.large: .*found 240 and 0"):
        read(write_jsonl(tmp_path / "l.jsonl", table), quality="number")


def test_a_grade_off_the_scale_is_refused_by_its_row(tmp_path):
    table = rows(**{"grade.small": 3, "grade.large": 9})
    table[2]["grade.large"] = 11
    file = write_csv(tmp_path / "l.csv", table)
    refused(file, r"l\.csv:4:grade\.large: expected a number in 1\.\.10.*'11'", quality="graded")


def test_the_plain_labels_are_refused_for_bartscore(tmp_path):
    refused(write_csv(tmp_path / "l.csv", rows()), "give --labels det, prob or trans", quality="bartscore")
