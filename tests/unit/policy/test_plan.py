"""Constraints, rules and strategies: where a request goes and why."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from typing import Any

import pytest
from builders import LABELS, PAIR, POOLS, build_policies, config, decided, plans, signals
from pydantic import ValidationError

from semroute_extproc.cli.check import suspicious
from semroute_extproc.outcome import Cause
from semroute_extproc.policy.constraints import Denied, NoCandidate
from semroute_extproc.policy.context import Conditions, Held, Judgment, Lock, RoutingContext
from semroute_extproc.policy.draw import unit_interval
from semroute_extproc.policy.plan import SIGNALS, PolicyPlan
from semroute_extproc.policy.rules import REQUEST_FACTS, SIGNAL_FACTS
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.settings.controllers import Limit
from semroute_extproc.state.ledger import Ledger


def compiled(
    rules: list[dict[str, Any]] | None = None,
    strategy: dict[str, Any] | None = None,
    otherwise: dict[str, Any] | None = None,
) -> PolicyPlan:
    policy = {"rules": rules or [], "otherwise": otherwise or {"strategy": "s"}}
    return plans(config(policies={"main": policy}, strategies={"s": strategy or PAIR}))["main"]


def problems_of(rules: list[dict[str, Any]], strategy: dict[str, Any] | None = None) -> list[str]:
    policies = {"main": {"rules": rules, "otherwise": {"pool": "large"}}}
    settings = config(policies=policies, strategies={"s": strategy or PAIR})
    return [problem.message for problem in build_policies(settings)[1]]


def facts(
    view: dict[str, Any] | None = None, headers: dict[str, str] | None = None, **changes: Any
) -> RoutingContext:
    defaults: dict[str, Any] = {"api": Api.CHAT_COMPLETIONS, "model": "auto", "turns": (Turn("user", "hi"),)}
    return RoutingContext(
        head=RequestHead("POST", "/v1/chat/completions", headers or {}),
        view=RequestView(**{**defaults, **(view or {})}),
        language="en",
        prompt_tokens=changes.pop("prompt_tokens", 10),
        **changes,
    )


class TestDeciding:
    RULES: list[dict[str, Any]] = [
        {"name": "json", "when": "json_mode", "pool": "small"},
        {"name": "proofs", "when": "difficulty > 0.7", "pool": "large"},
    ]
    JUDGE = {
        "kind": "judge",
        "weak": "small",
        "strong": "large",
        "url": "http://judge/v1",
        "model": "j",
        "threshold": 0.5,
    }

    def test_what_is_wanted_is_asked_for_once_and_the_decision_goes_on_from_there(self) -> None:
        deciding = compiled(self.RULES, self.JUDGE).decide(facts())
        assert next(deciding) == SIGNALS
        read = facts(signals=signals(difficulty=0.1))
        assert deciding.send(read) == "s"
        with pytest.raises(StopIteration) as end:
            deciding.send(dataclasses.replace(read, judgments={"s": Judgment(0.9, "ok")}))
        decision = end.value.value
        assert (decision.pool, decision.judge) == ("large", "ok")
        steps = [(step.what, step.name) for step in decision.trace]
        assert steps == [
            ("rule", "json"),
            ("rule", "proofs"),
            ("judge", "s"),
            ("strategy", "s"),
            ("threshold", "s"),
        ]

    def test_the_reason_says_why_the_local_graph_read_the_text_if_that_was_not_intended(self) -> None:
        found = [decided(compiled(), facts(signals=signals(remote=why))) for why in ("", "remote timeout")]
        assert found[1].reason == f"{found[0].reason} (local encoder: remote timeout)"
        assert found[1].pool == found[0].pool

    def test_a_reason_for_no_signals_is_taken_for_all_that_follows(self) -> None:
        bands = {"bands": [{"below": 0.3, "effort": "off"}, {"effort": "high"}]}
        otherwise = {"strategy": "s", "reasoning": bands}
        deciding = compiled(self.RULES, self.JUDGE, otherwise).decide(facts())
        assert next(deciding) == SIGNALS
        with pytest.raises(StopIteration) as end:
            deciding.send(facts(fallback=Cause.DEADLINE))
        assert (end.value.value.pool, end.value.value.fallback) == ("large", Cause.DEADLINE)

    def test_who_cannot_ask_gets_no_decision(self) -> None:
        assert compiled(self.RULES).decide_now(facts()) is None
        judged = compiled(strategy=self.JUDGE)
        assert judged.decide_now(facts(signals=signals())) is None
        context = facts(signals=signals(), judgments={"s": Judgment(None, "timeout")})
        assert decided(judged, context).judge == "timeout"


class TestConstraints:
    def test_a_long_prompt_leaves_out_pools_whose_window_is_too_small(self) -> None:
        decision = decided(compiled(), facts(prompt_tokens=5_000, signals=signals(difficulty=0.1)))
        assert decision.pool == "large"
        assert next((step.what, step.name) for step in decision.trace) == ("constraint", "small")

    def test_the_answer_asked_for_counts_into_the_window(self) -> None:
        wanted = facts({"max_output_tokens": 995}, signals=signals(difficulty=0.1))
        assert decided(compiled(), wanted).pool == "large"

    def test_images_go_to_a_pool_that_sees(self) -> None:
        assert decided(compiled(), facts({"images": 1}, signals=signals())).pool == "eyes"

    def test_tools_leave_out_a_pool_without_tool_calls(self) -> None:
        assert decided(compiled(), facts({"tools": 2}, signals=signals(difficulty=0.0))).pool == "large"

    def test_no_candidate_names_what_is_missing(self) -> None:
        with pytest.raises(NoCandidate, match="the embeddings API"):
            compiled().decide_now(facts({"api": Api.EMBEDDINGS}))

    def test_a_rule_whose_pool_could_not_answer_is_passed_over_and_says_so(self) -> None:
        rules = [{"name": "cheap", "when": "true", "pool": "small"}]
        decision = decided(compiled(rules), facts({"tools": 1}, signals=signals(difficulty=0.9)))
        assert decision.rule == ""
        assert "could not answer: needs tool calls" in next(
            s.result for s in decision.trace if s.what == "rule"
        )


class TestRules:
    def test_the_first_match_wins(self) -> None:
        rules = [
            {"name": "no", "when": "false", "pool": "small"},
            {"name": "first", "when": "images == 0", "pool": "eyes"},
            {"name": "second", "when": "true", "pool": "small"},
        ]
        decision = decided(compiled(rules), facts())
        assert (decision.pool, decision.rule) == ("eyes", "first")

    def test_a_rule_over_the_request_needs_no_signals(self) -> None:
        rules = [{"name": "tier", "when": 'request.headers["x-tier"] == "internal"', "pool": "small"}]
        assert decided(compiled(rules), facts(headers={"x-tier": "internal"})).pool == "small"

    def test_a_missing_header_is_no_match(self) -> None:
        rules = [{"name": "tier", "when": 'request.headers["x-tier"] == "internal"', "pool": "small"}]
        decision = decided(compiled(rules), facts(signals=signals(difficulty=0.9)))
        assert decision.pool == "large"
        assert decision.trace[0].result.startswith("does not apply")

    @pytest.mark.parametrize(
        "when",
        [
            "[1, 2][turns + 9] == 1",
            "1 / images == 1",
            "images % images == 0",
            "9223372036854775807 + turns > 0",
        ],
    )
    def test_a_condition_that_fails_on_a_request_does_not_apply_to_it(self, when: str) -> None:
        rules = [{"name": "r", "when": when, "pool": "small"}]
        decision = decided(compiled(rules), facts(signals=signals(difficulty=0.9)))
        assert decision.rule == ""
        assert decision.trace[0].result.startswith("does not apply")

    def test_a_rule_over_a_signal_asks_for_signals_first(self) -> None:
        rules = [{"name": "proofs", "when": 'domain == "math" && difficulty > 0.7', "pool": "large"}]
        assert compiled(rules).decide_now(facts()) is None
        assert decided(compiled(rules), facts(signals=signals(difficulty=0.8))).rule == "proofs"

    def test_a_match_before_a_rule_over_signals_needs_none(self) -> None:
        rules = [
            {"name": "json", "when": "json_mode", "pool": "small"},
            {"name": "proofs", "when": "difficulty > 0.7", "pool": "large"},
        ]
        assert decided(compiled(rules), facts({"json_mode": True})).rule == "json"

    def test_a_rule_may_hand_over_to_a_strategy_and_set_the_effort(self) -> None:
        rules = [{"name": "hard", "when": "difficulty > 0.2", "strategy": "s", "reasoning": "high"}]
        decision = decided(compiled(rules), facts(signals=signals(difficulty=0.9)))
        assert (decision.pool, decision.reasoning, decision.strategy) == ("large", "high", "s")
        assert decision.reason == (
            "rule hard: difficulty 0.90 is at least 0.70, the top 30% of the reference scores"
        )

    def test_a_condition_that_gives_no_bool_does_not_apply(self) -> None:
        rules = [{"name": "odd", "when": "turns", "pool": "small"}]
        decision = decided(compiled(rules), facts(signals=signals(difficulty=0.9)))
        assert "not a bool" in decision.trace[0].result

    @pytest.mark.parametrize(
        ("when", "message"),
        [
            ("difficulty >", "not a CEL expression"),
            ("dificulty > 0.5", "there is no fact 'dificulty' (did you mean 'difficulty'?)"),
            ("foo.bar == 1", "there is no fact 'foo'"),
            ('request.text.matches("(")', "is not a regular expression"),
            ("request.text.matches(r'a{1,999}{1,9}')", "repeats {1,999}, more than 64 times"),
            ('request.text.matches("[a-z]{65}")', "repeats {65}, more than 64 times"),
        ],
    )
    def test_a_condition_that_cannot_hold_is_a_configuration_error(self, when: str, message: str) -> None:
        [problem] = problems_of([{"name": "r", "when": when, "pool": "small"}])
        assert message in problem

    @pytest.mark.parametrize(
        "when",
        [
            'domain == "math" || task == "code" || domain in ["law", "other"] || domain_probs["law"] > 0.5',
            'task == ""',
            'model == "domain" || request.headers["x-tier"] == "Gold" || "x-tier" in request.headers',
            'request.path == "X" || language == "ja"',
            'domain in [request.headers["x-topic"], "math"]',
            'request.headers.task == "batch" || subdomain == "x"',
            'domain in ["ma" + "th"]',
            'domain == "ma" + "th" || domain_probs["ma" + "th"] > 0.5',
        ],
    )
    def test_texts_that_are_no_labels_and_labels_that_there_are_give_no_warning(self, when: str) -> None:
        assert not list(suspicious(when, {"domain": LABELS, "task": ("code", "chat")}))

    @pytest.mark.parametrize(
        ("when", "warning"),
        [
            (
                'domain == "maths"',
                "no bundle has the domain 'maths' (did you mean 'math'?): math, law, other",
            ),
            ("difficulty > 0.5 && 'maths' != domain", "the domain 'maths'"),
            ('domain in ["law", "maths"]', "the domain 'maths'"),
            ('domain_probs["maths"] > 0.2', "the domain 'maths'"),
            ('task == "coding"', "the task 'coding'"),
            ("request.tool_error > 2", "request has no member 'tool_error' (did you mean 'tool_errors'?)"),
            ('request.headers["X-Tier"] == "a"', "lower case in conditions: 'x-tier', not 'X-Tier'"),
            ("'X-Tier' in request.headers", "lower case in conditions"),
            ('request.headers["authorization"] == "Bearer x"', "does not forward 'authorization'"),
            ('"cookie" in request.headers && json_mode', "does not forward 'cookie'"),
            ('request.headers.authorization.startsWith("Bearer")', "does not forward 'authorization'"),
        ],
    )
    def test_a_label_or_a_header_that_there_cannot_be_gives_a_warning(self, when: str, warning: str) -> None:
        [found] = suspicious(when, {"domain": LABELS, "task": ("code", "chat")})
        assert warning in found

    @pytest.mark.parametrize(
        "when",
        [
            'request.text.contains("secret")',
            'request.text.matches("(?i)SECRET\\\\b")',
            'request.user == "ann"',
            'request.metadata["team"] == "a" && request.metadata.size() == 1',
            'request.tenant == "acme"',
            "audio == 1 && video == 2 && files == 3",
        ],
    )
    def test_a_condition_may_read_the_text_the_user_the_metadata_and_the_tenant(self, when: str) -> None:
        rules = [{"name": "r", "when": when, "pool": "eyes"}]
        turns = (Turn("system", "You are a bot."), Turn("user", "a secret"))
        media = {"audio": 1, "video": 2, "files": 3}
        pools = {"eyes": {"cluster": "e", "model": "m", **dict.fromkeys(media, True)}}
        policies = {"main": {"rules": rules, "otherwise": {"pool": "eyes"}}}
        plan = plans(config(pools=pools, default_pool="eyes", policies=policies, strategies={}))["main"]
        view = {"turns": turns, "user": "ann", "metadata": {"team": "a"}, **media}
        assert decided(plan, facts(view, {"x-semroute-tenant": "acme"}, text="a secret")).rule == "r"
        assert decided(plan, facts({"video": 2})).rule == ""

    def test_a_regular_expression_needs_linear_time(self) -> None:
        rules = [{"name": "r", "when": 'request.text.matches("(a+)+$")', "pool": "eyes"}]
        started = time.process_time()
        assert decided(compiled(rules, otherwise={"pool": "large"}), facts(text="a" * 8_192 + "b")).rule == ""
        assert time.process_time() - started < 1

    @pytest.mark.parametrize("target", ["rule", "otherwise"])
    def test_a_denied_request_has_the_operators_message(self, target: str) -> None:
        refusal = {"deny": "Ask the team for access."}
        rules = [{"name": "r", "when": "turns == 1", **refusal}] if target == "rule" else []
        with pytest.raises(Denied, match="Ask the team for access"):
            compiled(rules, otherwise=refusal if target == "otherwise" else None).decide_now(facts())

    def test_a_variable_of_a_macro_is_not_a_fact(self) -> None:
        rules = [{"name": "any", "when": '["math", "law"].exists(d, d == domain)', "pool": "small"}]
        assert decided(compiled(rules), facts(signals=signals(domain="law"))).pool == "small"

    @pytest.mark.parametrize(
        "when",
        [
            *('domain == "math"', 'domain != "law"', 'domain_probs["math"] > 0.5', "domain_entropy < 0.5"),
            *('task == "code"', 'task_probs["code"] > 0.5', "difficulty > 0.7", "!(difficulty < 0.7)"),
            *('["math"].exists(d, d == domain)', "turns == 1 && difficulty > 0.7"),
        ],
    )
    def test_domain_task_and_difficulty_of_unknown_text_have_no_value(self, when: str) -> None:
        rules = [{"name": "r", "when": when, "pool": "eyes"}]
        known, unknown = (facts(signals=signals(difficulty=0.9, unknown=flag)) for flag in (False, True))
        assert decided(compiled(rules), known).rule == "r"
        decision = decided(compiled(rules), unknown)
        assert (decision.rule, decision.trace[0].result) == ("", "does not apply: the text is unknown")

    @pytest.mark.parametrize(
        "when",
        [
            *("unknown", "unknown && difficulty > 0.7", 'domain == "math" && !(unknown && tokens > 999)'),
            *(
                "difficulty > 0.7 || turns == 1",
                "turns == 1 || difficulty > 0.7",
                "tokens < 999 && !truncated",
            ),
        ],
    )
    def test_a_rule_applies_to_unknown_text_if_it_names_unknown_or_does_not_depend_on_it(
        self, when: str
    ) -> None:
        rules = [{"name": "r", "when": when, "pool": "eyes"}]
        context = facts(signals=signals(difficulty=0.9, unknown=True))
        assert decided(compiled(rules), context).rule == "r"

    @pytest.mark.parametrize(
        "when",
        [
            *("request.approval", "!request.reask", "request.loop_depth == 0", "request.tool_errors == 0"),
            *('request["repeated_errors"] == 0', "!has(request.failing_tests) || !request.failing_tests"),
        ],
    )
    def test_the_state_of_the_work_is_part_of_the_request(self, when: str) -> None:
        said = (Turn("user", "Plan it."), Turn("assistant", "1. Read."), Turn("user", "do it"))
        rules = [{"name": "r", "when": when, "pool": "eyes"}]
        assert decided(compiled(rules), facts({"turns": said}, signals=signals())).rule == "r"

    def test_an_agent_that_fails_again_and_again_may_get_another_pool(self) -> None:
        rules = [{"name": "stuck", "when": "request.tool_errors >= 3", "pool": "eyes"}]
        said = (Turn("user", "Fix it."), *[Turn("tool", "Error: no such file")] * 3)
        assert decided(compiled(rules), facts({"turns": said}, signals=signals())).rule == "stuck"
        assert decided(compiled(rules), facts({"turns": said[:-1]}, signals=signals())).rule == ""

    @pytest.mark.parametrize("name", [*REQUEST_FACTS, *SIGNAL_FACTS])
    def test_every_fact_can_be_named_in_a_condition(self, name: str) -> None:
        rules = [{"name": "r", "when": f"{name} == {name}", "pool": "eyes"}]
        assert decided(compiled(rules), facts(signals=signals())).rule == "r"


class TestThreshold:
    @pytest.mark.parametrize(
        ("difficulty", "pool"), [(0.0, "small"), (0.69, "small"), (0.71, "large"), (1.0, "large")]
    )
    def test_a_share_becomes_the_quantile_of_the_reference_traffic(
        self, difficulty: float, pool: str
    ) -> None:
        decision = decided(compiled(), facts(signals=signals(difficulty=difficulty)))
        assert decision.pool == pool
        assert decision.choice.threshold == pytest.approx(0.7)
        assert decision.choice.score == difficulty

    @pytest.mark.parametrize(
        ("quality", "pool"), [(0.0, "small"), (0.4, "small"), (0.6, "large"), (1.0, "large")]
    )
    def test_a_quality_asked_for_moves_the_threshold(self, quality: float, pool: str) -> None:
        assert decided(compiled(), facts(quality=quality, signals=signals(difficulty=0.5))).pool == pool

    def test_quality_one_is_always_strong_and_quality_zero_never(self) -> None:
        assert decided(compiled(), facts(quality=1.0, signals=signals(difficulty=0.0))).pool == "large"
        assert (
            decided(compiled(), facts(quality=0.0, signals=signals(difficulty=1.0, unknown=True))).pool
            == "small"
        )

    def test_an_unknown_text_goes_to_the_strong_pool(self) -> None:
        decision = decided(compiled(), facts(signals=signals(difficulty=0.1, unknown=True)))
        assert (decision.pool, decision.reason) == ("large", "text is out of distribution")

    def test_unknown_texts_may_go_elsewhere(self) -> None:
        strategy = {**PAIR, "on_unknown": "eyes"}
        assert decided(compiled(strategy=strategy), facts(signals=signals(unknown=True))).pool == "eyes"

    def test_without_the_encoder_the_default_pool_has_it(self) -> None:
        decision = decided(compiled(), facts(fallback="deadline"))
        assert (decision.pool, decision.fallback, decision.reason) == (
            "large",
            "deadline",
            "fallback: deadline",
        )

    @pytest.mark.parametrize(("quality", "pool"), [(0.0, "small"), (1.0, "large")])
    def test_without_the_encoder_a_promise_is_kept(self, quality: float, pool: str) -> None:
        decision = decided(compiled(), facts(fallback="deadline", quality=quality))
        assert (decision.pool, decision.fallback) == (pool, "deadline")
        assert decision.choice.score is None

    def test_without_the_encoder_rules_over_the_request_still_hold(self) -> None:
        rules = [
            {"name": "proofs", "when": "difficulty > 0.7", "pool": "large"},
            {"name": "json", "when": "json_mode", "pool": "small"},
        ]
        decision = decided(compiled(rules), facts({"json_mode": True}, fallback="deadline"))
        assert (decision.pool, decision.rule) == ("small", "json")


class TestIntent:
    EXPERTS = {
        "kind": "intent",
        "experts": {"math": "large"},
        "otherwise": "small",
        "on_unknown": "eyes",
        "max_entropy": 0.6,
    }

    def test_an_expert_gets_its_domain_and_the_rest_goes_otherwise(self) -> None:
        subject = compiled(strategy=self.EXPERTS)
        assert decided(subject, facts(signals=signals())).pool == "large"
        assert decided(subject, facts(signals=signals(domain="law"))).pool == "small"

    @pytest.mark.parametrize("change", [{"domain_entropy": 0.7}, {"unknown": True}])
    def test_the_unsure_go_to_the_generalist(self, change: dict[str, Any]) -> None:
        assert decided(compiled(strategy=self.EXPERTS), facts(signals=signals(**change))).pool == "eyes"

    def test_experts_by_task(self) -> None:
        strategy = {**self.EXPERTS, "by": "task", "experts": {"code": "large"}}
        assert decided(compiled(strategy=strategy), facts(signals=signals())).pool == "large"
        even = signals(task_probs={"code": 0.5, "chat": 0.5})
        assert decided(compiled(strategy=strategy), facts(signals=even)).pool == "eyes"

    def test_the_task_of_a_language_whose_bundle_knows_no_tasks_is_not_clear(self) -> None:
        strategy = {**self.EXPERTS, "by": "task", "experts": {"code": "large"}}
        decision = decided(compiled(strategy=strategy), facts(signals=signals(task="", task_probs={})))
        assert (decision.pool, decision.reason) == ("eyes", "task is unknown in its language (entropy 0.00)")

    def test_a_label_that_the_bundle_does_not_have_is_a_configuration_error(self) -> None:
        [problem] = problems_of([], {**self.EXPERTS, "experts": {"maths": "large"}})
        assert problem == "bundle test has no domain 'maths' (did you mean 'math'?)"


class TestWithoutReading:
    def test_a_pool_as_the_target_needs_no_signals(self) -> None:
        assert decided(compiled(otherwise={"pool": "small"}), facts()).pool == "small"

    def test_weights_are_met_and_the_same_request_id_goes_to_the_same_pool(self) -> None:
        subject = compiled(strategy={"kind": "weighted", "weights": {"small": 9, "large": 1}})
        ids = [f"id-{n}" for n in range(4_000)]
        drawn = {i: decided(subject, facts(headers={"x-request-id": i})).pool for i in ids}
        assert Counter(drawn.values())["large"] / len(ids) == pytest.approx(0.1, abs=0.02)
        assert all(decided(subject, facts(headers={"x-request-id": i})).pool == drawn[i] for i in ids[:50])

    def test_weights_of_pools_that_could_not_answer_are_shared_out(self) -> None:
        subject = compiled(strategy={"kind": "weighted", "weights": {"small": 9, "large": 1}})
        assert decided(subject, facts({"tools": 1})).pool == "large"

    def test_the_unit_interval_is_deterministic_and_differs_by_name(self) -> None:
        assert unit_interval("a", "x") == unit_interval("a", "x")
        assert unit_interval("a", "x") != unit_interval("b", "x")
        assert 0.0 <= unit_interval("a", "x") < 1.0

    def test_without_a_request_id_the_text_is_drawn_by(self) -> None:
        subject = compiled(strategy={"kind": "weighted", "weights": {"small": 1, "large": 1}})
        texts = [facts({"turns": (Turn("user", f"question {n}"),)}) for n in range(400)]
        pools = [decided(subject, each).pool for each in texts]
        assert 0.4 < pools.count("large") / len(pools) < 0.6
        assert [decided(subject, each).pool for each in texts] == pools


class TestControllers:
    def test_a_budget_leans_its_own_strategy_alone(self) -> None:
        wanted = facts(signals=signals(difficulty=0.6), conditions=Conditions(bias={"s": 1.0}))
        decision = decided(compiled(), wanted)
        assert decision.pool == "large"
        assert decision.reason == (
            "difficulty 0.60 is at least 0.46, the top 54% of the reference scores (budget +1.00)"
        )
        other = facts(signals=signals(difficulty=0.6), conditions=Conditions(bias={"t": 1.0}))
        assert decided(compiled(), other).pool == "small"

    def test_the_load_is_in_the_reason_the_trace_and_the_share(self) -> None:
        wanted = facts(signals=signals(difficulty=0.8), conditions=Conditions({"large": 0.5}, floor=0.05))
        decision = decided(compiled(), wanted)
        assert decision.pool == "small"
        assert decision.reason == (
            "difficulty 0.80 is below 0.82, the top 18% of the reference scores (load share 0.30 to 0.17)"
        )
        assert ("controller", "load") in [(step.what, step.name) for step in decision.trace]
        assert decision.choice.share == pytest.approx(0.175)


class TestSession:
    def held(
        self, pool: str, difficulty: float = 0.5, lock: Lock = Lock.NONE, **changes: Any
    ) -> RoutingContext:
        margin = changes.pop("margin", 0.3)
        return facts(signals=signals(difficulty=difficulty), held=Held(pool, lock, margin), **changes)

    @pytest.mark.parametrize(
        ("pool", "difficulty", "stays", "session"),
        [
            ("small", 0.5, "small", ""),
            ("small", 0.75, "small", "kept"),
            ("small", 0.85, "large", "moved"),
            ("large", 0.1, "large", "kept"),
        ],
    )
    def test_a_conversation_moves_only_where_the_need_clearly_rises(
        self, pool: str, difficulty: float, stays: str, session: str
    ) -> None:
        decision = decided(compiled(), self.held(pool, difficulty))
        assert (decision.pool, decision.session) == (stays, session)

    def test_what_was_kept_says_so_and_shows_what_the_strategy_thought(self) -> None:
        decision = decided(compiled(), self.held("small", 0.75))
        assert decision.reason == (
            "conversation stays in small: difficulty 0.75 is at least 0.70, "
            "the top 30% of the reference scores"
        )
        assert (decision.choice.score, decision.strategy) == (0.75, "s")

    @pytest.mark.parametrize("lock", [Lock.TOOL_LOOP, Lock.STATEFUL])
    def test_a_lock_holds_whatever_the_score_and_asks_no_encoder(self, lock: Lock) -> None:
        decision = decided(compiled(), facts(held=Held("small", lock)))
        assert (decision.pool, decision.session, decision.strategy) == ("small", "locked", "s")
        assert decision.reason == f"conversation stays in small: {lock}"

    def test_a_pool_that_could_not_answer_holds_nothing(self) -> None:
        wanted = facts({"tools": 1}, signals=signals(difficulty=0.1), held=Held("small", Lock.TOOL_LOOP))
        assert decided(compiled(), wanted).pool == "large"

    def test_a_pool_that_is_gone_holds_nothing(self) -> None:
        assert decided(compiled(), self.held("gone", 0.1)).pool == "small"

    def test_a_rule_that_names_a_pool_is_not_held_against(self) -> None:
        rules = [{"name": "r", "when": "true", "pool": "small"}]
        assert decided(compiled(rules), facts(held=Held("large", Lock.STATEFUL))).pool == "small"

    @pytest.mark.parametrize(
        ("lock", "pool"), [(Lock.NONE, "small"), (Lock.TOOL_LOOP, "small"), (Lock.STATEFUL, "large")]
    )
    def test_a_promise_is_held_against_by_state_on_the_server_alone(self, lock: Lock, pool: str) -> None:
        assert decided(compiled(), self.held("large", 0.9, lock, quality=0.0)).pool == pool

    def test_strategies_that_are_not_held_go_where_they_like(self) -> None:
        held = Held("large", strategies=("s",))
        assert decided(compiled(), facts(signals=signals(difficulty=0.1), held=held)).pool == "large"
        wanted = facts(signals=signals(difficulty=0.1), held=Held("large", strategies=("other",)))
        assert decided(compiled(), wanted).pool == "small"

    def test_a_draw_by_weight_is_kept_for_the_whole_conversation(self) -> None:
        subject = compiled(strategy={"kind": "weighted", "weights": {"small": 1, "large": 1}})
        pools = {
            decided(subject, facts(headers={"x-request-id": f"id-{n}"}, held=Held("small"))).pool
            for n in range(50)
        }
        assert pools == {"small"}


class TestReasoning:
    BANDS = {
        "bands": [{"below": 0.3, "effort": "off"}, {"below": 0.7, "effort": "medium"}, {"effort": "high"}]
    }

    @pytest.mark.parametrize(
        ("difficulty", "effort"),
        [(0.0, "none"), (0.29, "none"), (0.3, "medium"), (0.7, "high"), (1.0, "high")],
    )
    def test_the_effort_follows_the_difficulty(self, difficulty: float, effort: str) -> None:
        subject = compiled(otherwise={"pool": "large", "reasoning": self.BANDS})
        decision = decided(subject, facts(signals=signals(difficulty=difficulty)))
        assert (decision.reasoning, decision.override) == (effort, False)
        assert decision.reason == f"always large, reasoning {effort}"
        assert decision.trace[-1].what == "reasoning"

    def test_bands_ask_for_signals_even_where_the_pool_is_fixed(self) -> None:
        subject = compiled(otherwise={"pool": "large", "reasoning": self.BANDS})
        assert subject.decide_now(facts()) is None

    def test_without_signals_the_models_own_default_is_left(self) -> None:
        subject = compiled(otherwise={"pool": "small", "reasoning": self.BANDS})
        decision = decided(subject, facts(fallback="deadline"))
        assert (decision.pool, decision.reasoning) == ("small", None)

    def test_for_an_unknown_text_the_models_own_default_is_left(self) -> None:
        subject = compiled(otherwise={"pool": "large", "reasoning": self.BANDS})
        decision = decided(subject, facts(signals=signals(difficulty=0.1, unknown=True)))
        assert (decision.reasoning, decision.trace[-1].result) == (None, "the text is unknown, no effort")

    @pytest.mark.parametrize("plain", ["off", "none", False, {"effort": "off"}])
    def test_one_effort_may_be_said_plainly(self, plain: Any) -> None:
        subject = compiled(otherwise={"pool": "large", "reasoning": plain})
        assert decided(subject, facts()).reasoning == "none"

    def test_an_override_is_told(self) -> None:
        subject = compiled(otherwise={"pool": "large", "reasoning": {"effort": "low", "override": True}})
        assert decided(subject, facts()).override

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({}, "exactly one of effort and bands"),
            ({"effort": "low", "bands": [{"effort": "high"}]}, "exactly one of effort and bands"),
            ({"bands": [{"below": 0.3, "effort": "off"}]}, "the last band"),
            ({"bands": [{"effort": "off"}, {"effort": "high"}]}, "the last band"),
            (
                {
                    "bands": [
                        {"below": 0.5, "effort": "off"},
                        {"below": 0.5, "effort": "low"},
                        {"effort": "max"},
                    ]
                },
                "must ascend",
            ),
        ],
    )
    def test_bands_that_leave_a_gap_are_refused(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            compiled(otherwise={"pool": "large", "reasoning": wrong})


class TestLimits:
    PRICES = {"small": 1.0, "eyes": 2.0, "large": 10.0}

    def plan(self, **policy: Any) -> PolicyPlan:
        pools = {
            name: {**pool, "price": {"input": self.PRICES[name], "output": self.PRICES[name]}}
            for name, pool in POOLS.items()
        }
        policies = {"main": {"otherwise": {"strategy": "s"}, **policy}}
        return plans(config(pools=pools, policies=policies))["main"]

    def spent(self, key: str, left: float) -> Conditions:
        ledger = Ledger("strategy:s" if key else "tenant:acme", Limit(tokens=1_000, window_seconds=60), 0)
        ledger.begin(60.0, 0.0)
        ledger.spend(1_000 - left, 0.0, 60.0)
        return Conditions(limits={key: ledger})

    @pytest.mark.parametrize(("key", "limit"), [("", "tenant"), ("s", "strategy")])
    def test_a_spent_limit_leaves_the_cheapest_pool_and_says_so(self, key: str, limit: str) -> None:
        context = facts(signals=signals(difficulty=0.9), conditions=self.spent(key, 0.0))
        found = decided(self.plan(), context)
        assert (found.pool, found.limited) == ("small", limit)
        assert f"but large lacks budget: the {limit}'s 1000 tokens per 60 s are spent" in found.reason

    def test_what_is_left_is_for_requests_that_it_covers(self) -> None:
        """A request counts 410 tokens: 10 of the prompt, and 400 of an answer."""
        for left, pool in ((409.0, "small"), (411.0, "large")):
            context = facts(signals=signals(difficulty=0.9), conditions=self.spent("", left))
            assert decided(self.plan(), context).pool == pool

    def test_it_holds_for_the_pools_of_rules_and_of_conversations(self) -> None:
        found = decided(self.plan(otherwise={"pool": "large"}), facts(conditions=self.spent("", 0.0)))
        assert (found.pool, found.limited) == ("small", "tenant")
        held = Held("large", margin=0.3)
        context = facts(signals=signals(difficulty=0.9), conditions=self.spent("", 0.0), held=held)
        assert decided(self.plan(), context).pool == "small"

    def test_a_conversation_that_a_pool_stores_stays_there(self) -> None:
        held = Held("large", Lock.STATEFUL)
        context = facts(signals=signals(difficulty=0.9), conditions=self.spent("", 0.0), held=held)
        assert decided(self.plan(), context).pool == "large"

    def test_the_only_pool_that_can_serve_a_request_is_its_cheapest(self) -> None:
        context = facts({"images": True}, signals=signals(difficulty=0.9), conditions=self.spent("", 0.0))
        found = decided(self.plan(), context)
        assert (found.pool, found.limited) == ("eyes", "")

    def test_a_limit_of_another_strategy_does_not_matter(self) -> None:
        context = facts(signals=signals(difficulty=0.9), conditions=self.spent("other", 0.0))
        assert (decided(self.plan(), context).pool, decided(self.plan(), context).limited) == ("large", "")
