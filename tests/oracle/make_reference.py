"""What reference.py says about the two models of weights/models.json: tests/data/reference/<model>.*

    python tests/oracle/make_reference.py [folder of the GGUF files, else weights/cache]

<model>.json       token ids, greedy continuations and their margins, mean negative log-likelihood of text.txt
<model>.top.npy    {id, log-probability} of the TOP most probable tokens, best first: [rows][TOP]. Rows: after
                   each token of text.txt, then at the start of each of the JSON's `continuations`
<model>.every.npy  every STRIDE-th logit after each prompt: f32 [prompts][vocabulary / STRIDE, rounded up]
"""
import json
import pathlib
import sys

import numpy as np

import reference

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data" / "reference"
MODELS = ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]
STEPS, TOP, STRIDE = 24, 64, 8

PROMPTS = {
    "short": "Water boils at a temperature of",
    "long": "The baker opened her shop before sunrise, as she had done every day since her father "
            "retired. Flour hung in the warm air, and the first loaves were already cooling on the "
            "rack by the window. When the bell over the door rang, she looked up and was surprised to"
            " see that her first customer of the day was",
    "chat": "<|im_start|>system\nYou answer in one short sentence.<|im_end|>\n<|im_start|>user\n"
            "Name the largest planet of the solar system.<|im_end|>\n<|im_start|>assistant\n",
}
# The trial of phase 2a in the framing `qa`.
SOURCE = "Hello, my name is Lyra and I live in Seattle.\n"
TARGET = "Question: What is your name and where do you live?\nAnswer:"


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def top(logits: np.ndarray) -> np.ndarray:
    scores = log_probabilities(logits)
    ids = np.argsort(-scores, axis=-1, kind="stable")[..., :TOP]
    out = np.empty(ids.shape, [("id", "<i4"), ("log_probability", "<f4")])
    out["id"], out["log_probability"] = ids, np.take_along_axis(scores, ids, axis=-1)
    return out


class Recorder:
    def __init__(self, model: reference.Model):
        self.model, self.tokenizer = model, reference.tokenizer(model)
        self.rows, self.every = [], []

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, text: str) -> dict:
        ids = self.encode(text)
        states, _ = self.model.feed(self.model.empty_cache(), ids)
        scores = []
        for at, state in enumerate(states):
            logits = self.model.logits(state)
            self.rows.append(top(logits))
            scores.append(log_probabilities(logits)[ids[at + 1]] if at + 1 < len(ids) else 0)
        return {"ids": ids, "mean_nll": -sum(scores) / (len(ids) - 1)}

    def continuation(self, name: str, cache: reference.Cache, ids: list[int]) -> dict:
        """What follows the cache and `ids`."""
        states, _ = self.model.feed(cache, ids)
        logits = self.model.logits(states[-1])
        self.rows.append(top(logits))
        if name in PROMPTS:
            self.every.append(logits[::STRIDE])
        greedy, margins = self.model.greedy(cache, ids, STEPS)
        text = self.tokenizer.decode(greedy, skip_special_tokens=False)
        print(f"  {name}: {text!r}, least margin {min(margins):.4f}", flush=True)
        return {"name": name, "greedy": greedy, "margins": [round(m, 6) for m in margins], "text": text}

    def transfer(self) -> tuple[dict, list[dict]]:
        source, target = self.encode(SOURCE), self.encode(TARGET)
        none = self.model.empty_cache()
        _, source_rows = self.model.feed(none, source)
        _, target_rows = self.model.feed(none, target[:-1])
        return {"source": source, "target": target}, [
            self.continuation("baseline", none, target),
            self.continuation("transfer", source_rows, target),
            # The source before rows that were computed without it: all of these take new positions.
            self.continuation("moved", source_rows + target_rows, target[-1:]),
        ]


def record(name: str, folder: pathlib.Path) -> None:
    print(name, flush=True)
    recorder = Recorder(reference.Model(folder / f"{name}.gguf"))
    text = recorder.text((DATA / "text.txt").read_text(encoding="utf-8"))
    out = {"model": name, "text": text, "stride": STRIDE, "continuations": []}
    for prompt, text in PROMPTS.items():
        ids = recorder.encode(text)
        out["continuations"].append({**recorder.continuation(prompt, recorder.model.empty_cache(), ids),
                                     "prompt": text, "ids": ids})
    out["transfer"], continuations = recorder.transfer()
    out["continuations"] += continuations
    (DATA / f"{name}.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
    np.save(DATA / f"{name}.top.npy", np.stack(recorder.rows))
    np.save(DATA / f"{name}.every.npy", np.stack(recorder.every).astype("<f4"))


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "weights" / "cache"
    for name in MODELS:
        record(name, folder)


if __name__ == "__main__":
    main()
