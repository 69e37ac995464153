"""BPE with byte fallback, as tokenizer.json has it of Llama's vocabularies, as Hugging Face `tokenizers` does it.

    make_fallback.py                    writes a small vocabulary, tests/data/tokenizers/fallback/tokenizer.json, the variants of its
                                        pipeline (variants.json: what each puts in place of the file's own keys), and the ids of
                                        150 strings for each (samples.jsonl)
    make_fallback.py --check PROGRAM    20,000 strings for each variant through `PROGRAM tokenize`

PROGRAM is build/release/experiments/kvfold.
"""
import argparse
import copy
import json
import pathlib
import subprocess
import sys
import tempfile

import tokenizers
import tokenizer_strings
from tokenizers import AddedToken, models, normalizers, trainers

DATA = pathlib.Path(__file__).parent.parent / "data" / "tokenizers" / "fallback"
BAR = "\u2581"
PREPEND = {"type": "Prepend", "prepend": BAR}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": BAR}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def metaspace(**more):
    return {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": BAR, "split": False, **more}}


def template(*single):
    parts = [{"Sequence" if part == "A" else "SpecialToken": {"id": part, "type_id": 0}} for part in single]
    special = {part: {"id": part, "ids": [{"<s>": 1, "</s>": 2}[part]], "tokens": [part]} for part in single if part != "A"}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": special}


# What stands in each variant's file. A key of "model" is put into the file's own, and None takes it out.
VARIANTS = {
    "llama": {},
    "replace": {"normalizer": REPLACE},
    "replace-sequence": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE]}},
    "always": metaspace(prepend_scheme="always"),
    "default": metaspace(),
    "old-always": metaspace(add_prefix_space=True),
    "first": metaspace(prepend_scheme="first", add_prefix_space=True),
    "never": metaspace(prepend_scheme="never"),
    "old-never": metaspace(prepend_scheme="never", add_prefix_space=False),
    "in-sequence": {"normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        metaspace(prepend_scheme="first")["pre_tokenizer"]]}},
    "begin-and-end": {"post_processor": template("<s>", "A", "</s>")},
    "end-in-sequence": {"post_processor": {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, template("A", "</s>")]}},
    "no-byte-tokens": {"model": {"vocab": "without byte tokens", "fuse_unk": True}},
    "unknown-is-text": {"added_tokens": "without <unk>"},
    "no-unknown": {"model": {"unk_token": None}},
}


def variant(base, changes):
    """The file of a variant."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        if value == "without <unk>":
            out[key] = [token for token in out[key] if token["content"] != "<unk>"]
        elif key == "model":
            for inner, new in value.items():
                renamed = {token.replace("<0x", "<no ") if token in BYTES else token: i for token, i in out["model"]["vocab"].items()}
                out["model"][inner] = renamed if new == "without byte tokens" else new
        else:
            out[key] = value
    return out


def train():
    """1,500 tokens of all scripts, with the characters that are seen most; the others are bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BAR), normalizers.Replace(" ", BAR)])
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False, limit_alphabet=250, max_token_length=12,
                                  special_tokens=["<unk>", "<s>", "</s>", *BYTES])
    texts = tokenizer_strings.SCRIPTS * 20 + tokenizer_strings.strings(3000, seed=7)
    tokenizer.train_from_iterator((word for text in texts for word in text.split(" ")), trainer)
    tokenizer.add_tokens([AddedToken("<|user|>", normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", normalized=False)])
    base = json.loads(tokenizer.to_str())
    base["added_tokens"] = [token for token in base["added_tokens"] if token["content"] not in BYTES]
    base["model"]["fuse_unk"] = True
    return base


def ids(library, text):
    return library.encode(text).ids


def made(base):
    """(name, file, the library's tokenizer)"""
    for name, changes in VARIANTS.items():
        file = json.dumps(variant(base, changes), ensure_ascii=False)
        yield name, file, tokenizers.Tokenizer.from_str(file)


def make():
    DATA.mkdir(parents=True, exist_ok=True)
    base = train()
    (DATA / "tokenizer.json").write_text(json.dumps(base, ensure_ascii=False) + "\n", encoding="utf-8")
    (DATA / "variants.json").write_text(json.dumps(VARIANTS, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    libraries = {name: library for name, _, library in made(base)}
    with open(DATA / "samples.jsonl", "w", encoding="utf-8") as out:
        for text in tokenizer_strings.strings(150, seed=5):
            of_each = {name: ids(library, text[:400]) for name, library in libraries.items()}
            # Most variants agree with Llama's about most strings.
            same = {name: got for name, got in of_each.items() if name == "llama" or got != of_each["llama"]}
            out.write(json.dumps({"text": text[:400], "ids": same}, ensure_ascii=False, separators=(",", ":")) + "\n")


def check(program, name, file, library, count=20000):
    texts = tokenizer_strings.strings(count, seed=6)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "tokenizer.json").write_text(file, encoding="utf-8")
        (path / "lines.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
        ran = subprocess.run([program, "tokenize", path / "tokenizer.json", "--lines", path / "lines.jsonl"],
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
    base = json.loads((DATA / "tokenizer.json").read_text(encoding="utf-8"))
    return 0 if all([check(options.check, *each) for each in made(base)]) else 1


if __name__ == "__main__":
    sys.exit(main())
