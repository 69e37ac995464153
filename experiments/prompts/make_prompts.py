#!/usr/bin/env python3
"""Makes the prompt sets (*.jsonl beside this file) from the tables in tables.py. The same tables give the same bytes.

`make prompts` runs it in an environment with tokenizers and gguf, which it needs for prompts that must be of one length
in the vocabularies of both fetched models. Keys of a line: ARCHITECTURE.md, "Prompt sets".
"""

import itertools
import json
import pathlib
import random
import re

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers

import tables as t

HERE = pathlib.Path(__file__).resolve().parent
WEIGHTS = HERE.parent.parent / "weights" / "cache"
MODELS = ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]


class Lengths:
    """Token counts of " text" (as it stands behind another word) in each model's vocabulary."""

    def __init__(self):
        self.tokenizers = [self.load(WEIGHTS / f"{name}.gguf") for name in MODELS]
        self.known = {}

    @staticmethod
    def load(path):
        fields = gguf.GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        # Both models take digits one by one.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        return tokenizer

    def __call__(self, text):
        if text not in self.known:
            self.known[text] = tuple(len(x.encode(" " + text).ids) for x in self.tokenizers)
        return self.known[text]

    def nearest(self, pool, like, used):
        """The first of `pool` whose counts differ least from those of `like`, summed over the models, among those without a
        content word in `used`; its words go there."""
        wanted = self(like)
        best = min((p for p in pool if used.isdisjoint(content_words(p))),
                   key=lambda p: sum(abs(a - b) for a, b in zip(self(p), wanted)))
        used.update(content_words(best))
        return best


def filler(i):
    return " ".join(t.FILLER[(i + k) % len(t.FILLER)] for k in range(4))


def half(i, n):
    return "calibration" if i < n // 2 else "test"


def others(pool, not_these, count, seed):
    taken = {w.lower() for w in not_these}
    rest = [w for w in dict.fromkeys(pool) if w.lower() not in taken]
    return random.Random(seed).sample(rest, count)


def trial(phase, family, number, **fields):
    line = {"id": f"{phase}-{family}-{number}", "phase": phase, "family": family, "set": "plan", "item": None, "source": None,
            "target": None, "markers": None, "answer": None, "contrast": None, "twin": None, "mismatched": None, "decoys": None,
            "filler": None, "mode": None, "entity": None, "truth_markers": [], "probes": {}}
    unknown = set(fields) - set(line)
    assert not unknown, unknown
    line.update(fields)
    line["item"] = line["item"] or line["id"]
    return line


def mismatch(trials):
    """Gives every trial another's source: a derangement of each half of a family in which neither's source says the other's
    words, found as a perfect matching (Kuhn's augmenting paths). The plan's cases take sources from the test half."""
    groups = {}
    for x in trials:
        groups.setdefault((x["family"], x["set"]), []).append(x)
    for (_, which), group in groups.items():
        if which == "plan":
            continue
        taken_by = [None] * len(group)

        def find(i, seen):
            for k in range(1, len(group)):
                j = (i + k) % len(group)
                if j in seen or not foreign(group[i], group[j]):
                    continue
                seen.add(j)
                if taken_by[j] is None or find(taken_by[j], seen):
                    taken_by[j] = i
                    return True
            return False

        for i, x in enumerate(group):
            assert find(i, set()), f"no derangement: {x['id']}"
        for j, i in enumerate(taken_by):
            group[i]["mismatched"] = group[j]["id"]
    used = set()
    for x in groups[("plan", "plan")]:
        y = next(y for y in trials if y["set"] == "test" and y["id"] not in used and y["mode"] == x["mode"] and foreign(x, y))
        x["mismatched"] = y["id"]
        used.add(y["id"])


def says(text, word):
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def foreign(a, b):
    """b's source says none of a's words, nor of its twin's, and is about another thing."""
    return a["item"] != b["item"] and not any(says(b["source"], w) for w in a["markers"] + a["twin"]["markers"])


# ---- 2a ----

IDENTITY = ["Hello, my name is {} and I live in {}", "Hi, I am {} and my home is in {}", "I am called {} and I have a house in {}",
            "Good morning, this is {} and I live in {}"]
ASK_IDENTITY = "What is your name and where do you live?"


def identity_parts(name, city):
    return {"markers": [name, city], "answer": f"My name is {name} and I live in {city}."}


def phase_2a():
    out = []

    def add(family, number, which, template, i, name, city, twin_name, twin_city):
        twin = {"source": template.format(twin_name, twin_city), **identity_parts(twin_name, twin_city)}
        decoys = others(t.NAMES, [name, twin_name], 4, i) + others(t.CITIES, [city, twin_city], 4, i)
        out.append(trial("2a", family, number, set=which, source=template.format(name, city), target=ASK_IDENTITY,
                         contrast={"prefix": "My name is", "marker": name, "twin": twin_name}, twin=twin, decoys=decoys,
                         filler=filler(i), **identity_parts(name, city)))

    add("plan", "identity", "plan", IDENTITY[0], 0, "Lyra", "Seattle", "Maya", "Boston")
    n = len(t.NAMES)
    for which, first in (("calibration", 0), ("test", n // 2)):
        names, cities = t.NAMES[first:first + n // 2], t.CITIES[first:first + n // 2]
        m = len(names)
        for i in range(2 * m):
            a, b = i % m, (i % m + 11 * (i // m)) % m
            add("identity", first * 2 + i, which, IDENTITY[i % 4], first * 2 + i, names[a], cities[b], names[(a + 5) % m],
                cities[(b + 7) % m])
    return out


# ---- 2b ----

def facts():
    """(source, target, answer prefix, true value, false value, twin's value, kind) of every fact; values deranged by rotation."""
    def rotated(values, by):
        return values[by:] + values[:by]

    capital_twins = rotated([c for _, _, c in t.CAPITALS], 5)
    for (country, capital, city), twin in zip(t.CAPITALS, capital_twins):
        yield (f"The capital of {country} is {{}}", f"What is the capital of {country}?", capital, city, twin, "capital", country)
    symbols = [s for _, s in t.ELEMENTS]
    for (element, symbol), wrong, twin in zip(t.ELEMENTS, rotated(symbols, 7), rotated(symbols, 3)):
        yield (f"The chemical symbol of {element} is {{}}", f"What is the chemical symbol of {element}?", symbol, wrong, twin, "symbol", element)
    moneys = [m for _, m in t.CURRENCIES]
    for (country, money), wrong, twin in zip(t.CURRENCIES, rotated(moneys, 6), rotated(moneys, 4)):
        yield (f"The currency of {country} is the {{}}", f"What is the currency of {country}?", money, wrong, twin, "currency", country)


def fact_trial(family, number, which, i, fact, value, twin_value, truth=None):
    statement, target, *_ = fact
    answer = statement.format("{}") + "."
    pool = {"capital": [c for row in t.CAPITALS for c in row[1:]], "symbol": [s for _, s in t.ELEMENTS],
            "currency": [m for _, m in t.CURRENCIES]}[fact[5]]
    return trial("2b", family, number, set=which, source=statement.format(value), target=target, markers=[value],
                 answer=answer.format(value), contrast={"prefix": statement.removesuffix(" {}"), "marker": value, "twin": twin_value},
                 twin={"source": statement.format(twin_value), "markers": [twin_value], "answer": answer.format(twin_value)},
                 decoys=others(pool, [value, twin_value, truth or value], 8, i), filler=filler(i),
                 truth_markers=[truth] if truth else [], probes={"truth": answer.format(truth)} if truth else {})


def phase_2b():
    out = [fact_trial("plan", "capital", "plan", 0, ("The capital of France is {}", "What is the capital of France?", "", "", "", "capital"),
                      "Paris", "Lyon")]
    boiling = "Water boils at {} degrees Celsius"
    out.append(trial("2b", "plan", "boiling-point", source=boiling.format(100), target="At what temperature does water boil?", markers=["100"],
                     answer=boiling.format(100) + ".", contrast={"prefix": "Water boils at", "marker": "100", "twin": "150"},
                     twin={"source": boiling.format(150), "markers": ["150"], "answer": boiling.format(150) + "."},
                     decoys=["20", "37", "60", "75", "180", "212", "250", "300"], filler=filler(1)))
    rows = list(facts())
    # Halves by kind, so that each half has facts of every kind.
    halves = {}
    for fact in rows:
        halves.setdefault(fact[5], []).append(fact)
    for family in ("known", "counterfactual"):
        number = 0
        made = []
        for kind_rows in halves.values():
            for i, fact in enumerate(kind_rows):
                which = half(i, len(kind_rows))
                _, _, true, false, twin, _, _ = fact
                if family == "known":
                    made.append(fact_trial(family, number, which, number, fact, true, false))
                else:
                    twin = twin if twin not in (true, false) else kind_rows[(i + 9) % len(kind_rows)][2]
                    made.append(fact_trial(family, number, which, number, fact, false, twin, truth=true))
                number += 1
        out += made
    return out


# ---- 2c ----

def cross(family, number, which, i, source, twin_source, markers, twin_markers, word, twin_word, target, truth, pool):
    return trial("2c", family, number, set=which, source=source, target=target, markers=markers, answer=f"{word}.",
                 contrast={"prefix": "", "marker": word, "twin": twin_word},
                 twin={"source": twin_source, "markers": twin_markers, "answer": f"{twin_word}."},
                 decoys=others(pool, source.split() + twin_source.split(), 8, i), filler=filler(i), truth_markers=[truth], probes={"truth": f"{truth}."})


def targets_2c():
    capitals = [(f"The capital of {country} is", capital) for country, capital, _ in t.CAPITALS]
    symbols = [(f"The chemical symbol for {element} is", symbol) for element, symbol in t.ELEMENTS]
    money = [(f"The currency of {country} is the", name) for country, name in t.CURRENCIES]
    return capitals + symbols + money


def phase_2c():
    out = [
        cross("plan", "mars-president", "plan", 0, "The 47th president of Mars was Zephyr", "The 47th president of Mars was Quillon",
              ["Mars", "Zephyr", "president"], ["Mars", "Quillon", "president"], "Zephyr", "Quillon", "The capital of France is", "Paris",
              t.INVENTED_PEOPLE),
        cross("plan", "glass-kingdom", "plan", 1, "Once upon a time in a kingdom of glass", "Once upon a time in a kingdom of sand",
              ["kingdom", "glass", "once upon a time"], ["kingdom", "sand", "once upon a time"], "glass", "sand",
              "The chemical formula for water is", "H2O", t.CREATIVE_MATTER)]
    # A half's targets, people and places are its own.
    targets = targets_2c()
    targets = targets[0::2] + targets[1::2]
    for i, (target, truth) in enumerate(targets):
        which = half(i, len(targets))
        first = 0 if which == "calibration" else 13
        place = t.INVENTED_PLACES[first + i % 13]
        a, b = t.INVENTED_PEOPLE[first + (i * 5) % 13], t.INVENTED_PEOPLE[first + (i * 5 + 4) % 13]
        office = t.OFFICES[i // 13 % 4]
        number = 21 + (i * 7) % 60
        ordinal = f"{number}{'th' if number // 10 == 1 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
        line = f"The {ordinal} {office} of {place} was {{}}"
        out.append(cross("office", i, which, i, line.format(a), line.format(b), [place, a, office], [place, b, office], a, b, target, truth,
                         t.INVENTED_PEOPLE))
    for i, (target, truth) in enumerate(targets):
        which = half(i, len(targets))
        first = 0 if which == "calibration" else 13
        place = t.CREATIVE_PLACES[(i + i // 13) % 13]
        a, b = t.CREATIVE_MATTER[first + i % 13], t.CREATIVE_MATTER[first + (i + 6) % 13]
        line = f"Once upon a time in a {place} of {{}}"
        out.append(cross("creative", i, which, i, line.format(a), line.format(b), [place, a], [place, b],
                         a, b, target, truth, t.CREATIVE_MATTER))
    return out


# ---- 2d ----

def people_pool():
    for a, b in itertools.product(t.FIRST_NAMES, t.LAST_NAMES):
        yield f"{a} {b}"
        yield f"Dr. {a} {b}"
        yield f"{a} {t.FIRST_NAMES[(t.FIRST_NAMES.index(a) + 7) % len(t.FIRST_NAMES)]} {b}"


CREATIVE_POOL = [f"{a} {b}".strip() for b in t.CREATIVE_TAILS for a in t.CREATIVE_HEADS]
PLAIN_POOL = [f"{a} {b}".strip() for b in t.PLAIN_TAILS for a in t.PLAIN_HEADS]
# Words that show nothing of a source.
COMMON = {"of", "a", "the", "in", "on", "it", "this", "Dr.", "von"} | {w for tail in t.PLAIN_TAILS for w in tail.split()}


def mode_values(lengths, rng, like, used):
    """One value of each mode of the length of `like` (a real name), as far as the pools go; never one used for the item before."""
    people = list(people_pool())
    rng.shuffle(people)
    creative = list(CREATIVE_POOL)
    rng.shuffle(creative)
    plain = list(PLAIN_POOL)
    rng.shuffle(plain)
    return {"confabulated": lengths.nearest(people, like, used), "creative": lengths.nearest(creative, like, used),
            "plain": lengths.nearest(plain, like, used)}


def content_words(value):
    return [w for w in value.split() if w not in COMMON]


def phase_2d(lengths):
    def make(family, number, which, i, source, twin_source, value, twin_value, target, truth, probes, **fields):
        pool = [w for x in (CREATIVE_POOL + [f"{a} {b}" for a, b in zip(t.FIRST_NAMES, t.LAST_NAMES)]) for w in content_words(x)]
        return trial("2d", family, number, set=which, source=source, target=target, markers=content_words(value), answer=f"{value}.",
                     contrast={"prefix": "", "marker": value, "twin": twin_value},
                     twin={"source": twin_source, "markers": content_words(twin_value), "answer": f"{twin_value}."},
                     decoys=others(pool, source.split() + twin_source.split(), 8, i), filler=filler(i),
                     truth_markers=[truth.split()[-1]], probes=probes, **fields)

    statement = "The inventor of {} was"
    bicycles = statement.format("quantum bicycles")
    phone = statement.format("the telephone")
    out = []
    rows = t.CREATORS
    n = len(rows)
    for i, (entity, truth) in enumerate(rows):
        # The other entity is of the same half, and so is everybody who is named.
        h = n // 2
        other, other_truth = rows[(i + 5) % h if i < h else h + (i - h + 5) % (n - h)]
        third_truth = rows[(i + 8) % h if i < h else h + (i - h + 8) % (n - h)][1]
        rng = random.Random(f"2d {entity}")
        used = {w for name in (truth, other_truth, third_truth) for w in content_words(name)}
        probe_values = mode_values(lengths, rng, truth, used)
        probes = {"truth": f"{truth}.", "factual": f"{third_truth}.", **{mode: f"{v}." for mode, v in probe_values.items()}}
        if i == 0:
            plan_probes = probes
            plan_truth = truth
        for where, subject, fact in (("same", entity, truth), ("other", other, other_truth)):
            values = {"factual": fact, **mode_values(lengths, rng, fact, used)}
            twins = {"factual": third_truth, **mode_values(lengths, rng, fact, used)}
            for mode in ("confabulated", "factual", "creative", "plain"):
                line = statement.format(subject)
                out.append(make("crossing", f"{i}-{mode}-{where}", half(i, n), i, f"{line} {values[mode]}", f"{line} {twins[mode]}", values[mode],
                                twins[mode], statement.format(entity), truth, probes, mode=mode, entity=where, item=f"2d-{entity}"))
    plan = [make("plan", "confabulation", "plan", 0, f"{bicycles} Dr. Helena Frost", f"{bicycles} Dr. Clara Stone", "Dr. Helena Frost",
                 "Dr. Clara Stone", phone, plan_truth, plan_probes, mode="confabulated", entity="other"),
            make("plan", "creative", "plan", 1, "Once upon a time in a kingdom of glass", "Once upon a time in a kingdom of sand",
                 "glass", "sand", phone, plan_truth, plan_probes, mode="creative", entity="other")]
    plan[1]["markers"] = ["kingdom", "glass", "once upon a time"]
    plan[1]["twin"]["markers"] = ["kingdom", "sand", "once upon a time"]
    return plan + out


# ---- 1.5 ----

def signatures(lengths):
    """Statements that are true, the same with the answers deranged (so the same tokens as a set), and of invented things,
    each of the same length in both vocabularies."""
    groups = [("capital", "The capital of {} is {}", [(c, x) for c, x, _ in t.CAPITALS]),
              ("currency", "The currency of {} is the {}", t.CURRENCIES), ("symbol", "The chemical symbol of {} is {}", t.ELEMENTS),
              ("inventor", "The inventor of {} was {}", t.CREATORS), ("author", "The author of {} was {}", t.AUTHORS),
              ("language", "The official language of {} is {}", t.LANGUAGES)]
    people = [f"{b}" for b in t.LAST_NAMES] + list(people_pool())
    singles = t.PLACE_WORDS
    places = singles + [f"{a} {b}" for a in singles for b in singles if a != b]
    out = []
    for template, statement, rows in groups:
        rng = random.Random(f"1.5 {template}")
        used = set()
        by_length = {}
        for subject, value in rows:
            by_length.setdefault(lengths(value), []).append(value)
        for i, (subject, value) in enumerate(rows):
            same = by_length[lengths(value)]
            if len(same) < 2:
                continue  # no answer of the same length to swap with
            swapped = same[(same.index(value) + 1) % len(same)]
            if swapped == value:
                continue
            things, answers = list(places), list(people)
            rng.shuffle(things)
            rng.shuffle(answers)
            if template in ("currency", "symbol", "inventor"):
                things = [x.lower() for x in things]
            if subject.startswith("the "):
                things = [f"the {x}" for x in things]
            if template in ("currency", "symbol", "language"):
                answers = [x for x in answers if " " not in x]
            if template == "currency":
                answers = [x.lower() for x in answers]
            pair = f"{template}-{i}"
            texts = {"grounded": statement.format(subject, value), "swapped": statement.format(subject, swapped)}
            thing = min((x for x in things if x not in used), key=lambda x: sum(abs(a - b) for a, b in zip(lengths(x), lengths(subject))))
            used.add(thing)
            answer = lengths.nearest(answers, value, {thing})
            if lengths(thing) != lengths(subject) or lengths(answer) != lengths(value):
                continue
            texts["confabulated"] = statement.format(thing, answer)
            for kind, text in texts.items():
                out.append({"id": f"1.5-{pair}-{kind}", "phase": "1.5", "kind": kind, "template": template, "pair": pair,
                            "set": half(i, len(rows)), "text": text})
    return out


def write(name, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (HERE / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{name}.jsonl: {len(lines)} lines")


def main():
    lengths = Lengths()
    for name, trials in (("2a", phase_2a()), ("2b", phase_2b()), ("2c", phase_2c()), ("2d", phase_2d(lengths))):
        mismatch(trials)
        assert len({x["id"] for x in trials}) == len(trials)
        write(name, trials)
    write("signatures", signatures(lengths))


if __name__ == "__main__":
    main()
