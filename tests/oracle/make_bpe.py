"""Byte-level BPE as Hugging Face `tokenizers` does it: vocabularies for each pre-tokenizer, and ids of many strings.

    make_bpe.py                    writes small vocabularies, tests/data/tokenizers/NAME/tokenizer.json for each pre-tokenizer, and
                                   tests/data/tokenizers/bpe.jsonl: 500 strings and their ids, for those and both real models
    make_bpe.py --check PROGRAM    20,000 strings through `PROGRAM tokenize`, for the same six

PROGRAM is build/release/experiments/kvfold. A real model's tokenizer is built from its GGUF's own metadata, which names the
pre-tokenizer; the pipelines below are what the models' publishers use under those names.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import tokenizers
import tokenizer_strings
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data" / "tokenizers"
REAL = {name: ROOT / "weights" / "cache" / f"{name}.gguf"
        for name in ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")}


def split_by(digits):
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
               r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    return [pre_tokenizers.Split(Regex(pattern), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


PRE_TOKENIZERS = {
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True),
                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)],
    "qwen2": lambda: split_by(r"\p{N}"),
    "llama-bpe": lambda: split_by(r"\p{N}{1,3}"),
}


def pipeline(model, name):
    tokenizer = tokenizers.Tokenizer(model)
    steps = PRE_TOKENIZERS[name]()
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def train(name):
    """1,500 tokens of all scripts. Llama 3's own kind also has words that no merge makes."""
    tokenizer = pipeline(models.BPE(), name)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.train_from_iterator(tokenizer_strings.SCRIPTS * 20 + tokenizer_strings.strings(6000, seed=7), trainer)
    if name == "llama-bpe":
        made = json.loads(tokenizer.to_str())
        made["model"]["ignore_merges"] = True
        vocab = made["model"]["vocab"]
        for word in ["Ġseattle", "ĠSeattle", "196", "umps", "Ġ->", "Größenwahn"]:
            vocab.setdefault(word.replace("ö", "Ã¶").replace("ß", "ÃŁ"), len(vocab))
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(made))
    tokenizer.add_tokens([AddedToken("<|user|>", normalized=False)])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)


def from_gguf(path):
    """The tokenizer that a GGUF file's metadata describes."""
    fields = gguf.GGUFReader(path).fields
    field = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    tokens, types = field("tokens"), field("token_type")
    vocab = {}
    for i, token in enumerate(tokens):
        vocab.setdefault(token, i)
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    name = field("pre")
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=name == "llama-bpe")
    tokenizer = pipeline(model, name)
    named = lambda kind: [token for token, t in zip(tokens, types) if t == kind]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in named(gguf.TokenType.CONTROL)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in named(gguf.TokenType.USER_DEFINED)])
    assert tokenizer.get_vocab_size() == len(vocab), "an added token got an id of its own"
    return tokenizer


def all_tokenizers():
    """(name, what `kvfold tokenize` opens, the library's tokenizer)"""
    for name in PRE_TOKENIZERS:
        path = DATA / name / "tokenizer.json"
        yield name, path, tokenizers.Tokenizer.from_file(str(path))
    for name, path in REAL.items():
        yield name, path, from_gguf(path)


def ids(library, text):
    return library.encode(text, add_special_tokens=False).ids


def make():
    for name in PRE_TOKENIZERS:
        (DATA / name).mkdir(parents=True, exist_ok=True)
        (DATA / name / "tokenizer.json").write_text(train(name) + "\n", encoding="utf-8")
    libraries = {name: library for name, _, library in all_tokenizers()}
    with open(DATA / "bpe.jsonl", "w", encoding="utf-8") as out:
        for text in tokenizer_strings.strings(500, seed=3):
            of_each = {name: ids(library, text) for name, library in libraries.items()}
            out.write(json.dumps({"text": text, "ids": of_each}, ensure_ascii=False, separators=(",", ":")) + "\n")


def check(program, name, path, library, count=20000):
    texts = tokenizer_strings.strings(count, seed=4)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines:
        lines.writelines(json.dumps(text) + "\n" for text in texts)
        lines.flush()
        ran = subprocess.run([program, "tokenize", str(path), "--lines", lines.name, "--no-bos"],
                             stdout=subprocess.PIPE, check=True)
    ours = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(ours) == len(texts)
    wrong = [(text, got, want) for text, got, want in zip(texts, ours, (ids(library, text) for text in texts)) if got != want]
    print(f"{name}: {count - len(wrong)} of {count} equal")
    for text, got, want in wrong[:5]:
        print(f"  {text!r}\n    kvfold     {got}\n    tokenizers {want}")
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", metavar="PROGRAM")
    options = parser.parse_args()
    if options.check is None:
        make()
        return 0
    return 0 if all([check(options.check, *each) for each in all_tokenizers()]) else 1


if __name__ == "__main__":
    sys.exit(main())
