"""Build a chat model so small that vLLM serves it on two busy cores; offline, with random weights.

    python tests/vllm/tiny_model.py FOLDER

Runs in the environment of `make test-vllm`, which has torch, transformers and tokenizers. Its answers
are gibberish that ends by length, of digits and the letters A and B for the most part, so that a judge finds
its labels among them. Its chat template is made for watching: what reaches it by way of
`enable_thinking`, `thinking`, `thinking_mode` and `reasoning_effort` it writes as a number of marks,
one token each, so that `prompt_tokens` in the answer tells which switches vLLM rendered with.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 1_024
TEXT_CHARACTERS = 400_000
"""Of the standard library's sources, on which the tokenizer is trained."""

CONTEXT = 6_144
END, BEGIN, PAD, MARK = "<|end|>", "<|begin|>", "<|pad|>", "<|mark|>"

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
LABELS = ("1", "2", "3", "4", "5", "A", "B")
"""What the model likes to say: the labels that a judge is asked for."""

LIKING = 1.5
UNITS = {"enable_thinking": 1, "thinking": 3, "thinking_mode": 9, "reasoning_effort": 27}
"""Marks a switch is worth: a digit in base three each, 0 for not given, and the effort above them."""

TEMPLATE = (
    """\
{%- for message in messages -%}
{{ begin }}{{ message['role'] }}
{{ message['content'] }}{{ end }}
{% endfor -%}
{%- set seen = namespace(marks=0) -%}
{%- if enable_thinking is defined and enable_thinking is not none -%}
{%- set seen.marks = seen.marks + (1 if enable_thinking else 2) -%}
{%- endif -%}
{%- if thinking is defined and thinking is not none -%}
{%- set seen.marks = seen.marks + (3 if thinking else 6) -%}
{%- endif -%}
{%- if thinking_mode is defined and thinking_mode is not none -%}
{%- set seen.marks = seen.marks + (9 if thinking_mode == 'enabled' else 18) -%}
{%- endif -%}
{%- if reasoning_effort is defined and reasoning_effort is not none -%}
{%- set seen.marks = seen.marks + 27 * (1 + efforts.index(reasoning_effort)) -%}
{%- endif -%}
{{ '<|mark|>' * seen.marks }}
{%- if add_generation_prompt -%}{{ begin }}assistant
{% endif -%}
""".replace("{{ begin }}", BEGIN)
    .replace("{{ end }}", END)
    .replace("efforts.index", f"{list(EFFORTS)}.index")
)


def switches(marks: int) -> dict[str, object]:
    """The switches that a number of marks stands for; raises ValueError for a number no template writes."""
    effort, rest = divmod(marks, UNITS["reasoning_effort"])
    if not 0 <= effort <= len(EFFORTS):
        raise ValueError(f"{marks} marks stand for nothing")
    found: dict[str, object] = {}
    values = {"enable_thinking": (True, False), "thinking": (True, False)}
    for name, (on, off) in {**values, "thinking_mode": ("enabled", "disabled")}.items():
        if digit := rest // UNITS[name] % 3:
            found[name] = on if digit == 1 else off
    if effort:
        found["reasoning_effort"] = EFFORTS[effort - 1]
    return found


def main(folder: Path) -> None:
    """Write the model's files into `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, BEGIN, PAD, MARK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # The same value in one dimension of every token makes a bias of that dimension's output weights.
        model.model.embed_tokens.weight[:, 0] = 0.2
        model.lm_head.weight.normal_(std=0.3)
        model.lm_head.weight[[fast.convert_tokens_to_ids(label) for label in LABELS], 0] += LIKING
    model.to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)


def _text() -> Iterator[str]:
    left = TEXT_CHARACTERS
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(errors="replace")[:left]
        yield text
        left -= len(text)
        if not left:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
