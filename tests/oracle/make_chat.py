"""Chat templates rendered by Jinja as transformers renders them: writes tests/data/chat.json.

Templates: those inside both real models' GGUF files (named by model), and ChatML, Zephyr and Llama-2 as models of those families
carry them. BOS is written by encode() and so left off the front here. A conversation that a template refuses has "text": null.
"""
import json
import pathlib
import random

import gguf
from jinja2.sandbox import ImmutableSandboxedEnvironment
from make_bpe import REAL, ROOT

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}
{% else %}{% set system = none %}{% set turns = messages %}{% endif %}
{% for turn in turns %}
{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if loop.first and system is not none %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + turn['content'] %}
{% else %}{% set content = turn['content'] %}{% endif %}
{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""

WORDS = ["Hello, my name is Lyra and I live in Seattle.", "What is my name?", "", " two  spaces ", "\n\nlines\n", "\u00a0\u3000wide\u2003",
         "{{ braces }} {% and %} 'quotes' \"too\"", "Größe 😀", "\t\x1cseparators\x85", "<|im_end|> </s> [INST]", "a\u200b"]


class Refused(Exception):
    pass


def refuse(message):
    raise Refused(message)


def render(template, messages, generation, bos, eos):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    try:
        text = environment.from_string(template).render(messages=messages, add_generation_prompt=generation, bos_token=bos,
                                                        eos_token=eos, tools=None)
    except Refused:
        return None
    return text.removeprefix(bos)


def conversations():
    rng = random.Random(11)
    for i in range(24):
        messages = [{"role": "system", "content": rng.choice(WORDS)}] if rng.random() < 0.5 else []
        for turn in range(rng.randint(1, 4)):
            role = "user" if turn % 2 == 0 else "assistant"
            if i % 8 == 7:
                role = rng.choice(["user", "assistant"])
            messages.append({"role": role, "content": rng.choice(WORDS)})
        yield messages


def real(path):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"]
    name = lambda key: tokens.contents(fields[f"tokenizer.ggml.{key}_token_id"].contents())
    return fields["tokenizer.chat_template"].contents(), name("bos"), name("eos")


def main():
    templates = {"chatml": (CHATML, "<|im_start|>", "<|im_end|>"), "zephyr": (ZEPHYR, "<s>", "</s>"),
                 "llama-2": (LLAMA2, "<s>", "</s>")}
    made = []
    for name, (template, bos, eos) in (templates | {name: real(path) for name, path in REAL.items()}).items():
        # ChatML models open every turn with what GGUF names BOS, and encode() adds none.
        lead = "" if "im_start" in template else bos
        cases = [{"messages": messages, "generation": generation, "text": render(template, messages, generation, lead, eos)}
                 for messages in conversations() for generation in (False, True)]
        made.append({"name": name, "template": None if name in REAL else template, "bos": bos, "eos": eos, "cases": cases})
    (ROOT / "tests" / "data" / "chat.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
