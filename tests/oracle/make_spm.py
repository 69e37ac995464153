"""An SPM vocabulary as Llama's is made, and the ids that the `sentencepiece` library gives.

    make_spm.py                        writes tests/data/tokenizers/spm.model and spm.jsonl (500 strings and their ids)
    make_spm.py --check PROGRAM [MODEL ...]   20,000 strings through `PROGRAM tokenize`, for that vocabulary and MODELs

PROGRAM is build/release/experiments/kvfold; a MODEL is another tokenizer.model, such as those of PyPI mistral-common.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import sentencepiece
import tokenizer_strings

DATA = pathlib.Path(__file__).parent.parent / "data" / "tokenizers"
MODEL = DATA / "spm.model"


def train():
    """Options as Llama 2's tokenizer.model records them, and symbols of each type."""
    texts = tokenizer_strings.SCRIPTS * 20 + tokenizer_strings.strings(6000, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        corpus = pathlib.Path(folder) / "corpus.txt"
        lines = (line for text in texts for line in text.replace("\0", "").replace("\u2581", "").splitlines())
        corpus.write_text("\n".join(line for line in lines if line.strip()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(pathlib.Path(folder) / "spm"), model_type="bpe", vocab_size=2000,
            character_coverage=0.995, byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
            user_defined_symbols=["<|user|>", "->", "\u2581\u2581\u2581"], control_symbols=["[INST]"],
            max_sentence_length=100000, num_threads=1, minloglevel=2)
        return (pathlib.Path(folder) / "spm.model").read_bytes()


def expected(library, text):
    return library.encode(text)


def make():
    DATA.mkdir(parents=True, exist_ok=True)
    MODEL.write_bytes(train())
    library = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    with open(DATA / "spm.jsonl", "w", encoding="utf-8") as out:
        for text in tokenizer_strings.strings(500, seed=1):
            out.write(json.dumps({"text": text, "ids": expected(library, text)}) + "\n")


def check(program, model, count=20000):
    """Control tokens' names are text to the library, and it adds no BOS."""
    library = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = tokenizer_strings.strings(count, seed=2)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as lines:
        lines.writelines(json.dumps(text) + "\n" for text in texts)
        lines.flush()
        ran = subprocess.run([program, "tokenize", str(model), "--lines", lines.name, "--no-special", "--no-bos"],
                             stdout=subprocess.PIPE, check=True)
    ours = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(ours) == len(texts)
    wrong = [(text, ids, expected(library, text)) for text, ids in zip(texts, ours) if ids != expected(library, text)]
    print(f"{model.name}: {count - len(wrong)} of {count} equal")
    for text, ids, reference in wrong[:5]:
        print(f"  {text!r}\n    kvfold        {ids}\n    sentencepiece {reference}")
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", metavar="PROGRAM")
    parser.add_argument("models", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    if options.check is None:
        make()
        return 0
    return 0 if all([check(options.check, model) for model in [MODEL, *options.models]]) else 1


if __name__ == "__main__":
    sys.exit(main())
