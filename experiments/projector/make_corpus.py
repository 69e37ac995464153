#!/usr/bin/env python3
"""Makes the corpus that projectors between models are fitted and judged on, into weights/cache/projector.

    experiments/projector/make_corpus.py [--out FOLDER] [--pin]

documents.jsonl: short texts, one a line: id, split (train, dev, test), package, kind, text. The texts are parts of Debian
packages, whose versions and hashes corpus.json pins, and generated facts. All parts of one document (an entry, a manual
page, a chapter) are in one split, and a text of dev or test that shares eight words in a row with one of train is left out.
facts.jsonl: sentences about invented people and places, and about real names in pairs that stand nowhere else, each with a
twin that says another name and city. No name or city of it is in documents.jsonl.

The same packages give the same bytes; corpus.json has their SHA-256, which --pin writes and every other run compares. The texts
are their packages' (see each one's copyright file) and are not kept in this repository. Exit 1: a package cannot be had.
"""

import argparse
import gzip
import hashlib
import html
import json
import random
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = HERE / "corpus.json"
LENGTH = 560  # characters at most: some hundred tokens, of which 64 are context and 32 are scored
SHORTEST = 330
# Texts of each kind at most: what there is most of must not be most of the corpus.
MOST = {"fortune": 2600, "gcide": 900, "wordnet": 900, "foldoc": 600, "essay": 1100, "policy": 250, "manual": 450, "fact": 900}
SHINGLE = 8  # words


class CorpusError(Exception):
    """Its text is one line, ready to be shown."""


# ---- packages ----


def unpack(name, pin, folder):
    """The folder of a package's files, downloaded by apt and unpacked once."""
    target = folder / f"{name}-{pin['sha256'][:12]}"
    if target.exists():
        return target
    got = subprocess.run(["apt-get", "download", f"{name}={pin['version']}"], cwd=folder, capture_output=True, text=True, check=False)
    if got.returncode:
        reason = [line for line in got.stderr.splitlines() if line.startswith("E:")] or ["no message"]
        raise CorpusError(f"apt-get download {name}={pin['version']}: {reason[0]} (the corpus is of Debian 12's packages)")
    deb = max(folder.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    found = hashlib.sha256(deb.read_bytes()).hexdigest()
    if found != pin["sha256"]:
        raise CorpusError(f"{deb.name}: its SHA-256 is {found}, expected {pin['sha256']}")
    partial = folder / f"{name}.part"
    subprocess.run(["dpkg-deb", "-x", deb, partial], check=True)
    partial.rename(target)
    deb.unlink()
    return target


def read(path):
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="replace")


# ---- texts ----


def clean(text):
    return re.sub(r"\s+", " ", text.replace("\x08", "")).strip()


def is_prose(text):
    """Mostly words: no tables, no code, no drawings, no replaced bytes."""
    letters = sum(c.isalpha() or c in " ,.'" for c in text)
    return letters >= 0.9 * len(text) and "\ufffd" not in text


def pieces(text, most=3):
    """Whole sentences of a text, in parts of SHORTEST to LENGTH characters."""
    out = []
    part = ""
    for sentence in re.findall(r".+?(?:[.!?][\"')]*(?= )|$) ?", clean(text)):
        if len(part) + len(sentence) > LENGTH:
            if len(part) >= SHORTEST:
                out.append(part.strip())
                if len(out) == most:
                    return out
            part = ""
        if len(sentence) <= LENGTH:
            part += sentence
    if len(part) >= SHORTEST:
        out.append(part.strip())
    return out[:most]


def fortunes(root):
    for path in sorted((root / "usr/share/games/fortunes").iterdir()):
        if path.suffix or path.name in ("ascii-art", "translate-me"):
            continue
        for i, entry in enumerate(read(path).split("\n%\n")):
            for text in pieces(entry, 2):
                yield f"fortunes/{path.name}/{i}", text


def dictionary(root, name):
    """Entries of a dictd dictionary: those lines that begin at the margin, and what is indented under them."""
    body = read(root / f"usr/share/dictd/{name}.dict.dz")
    for i, entry in enumerate(re.split(r"\n(?=\S)", body)):
        entry = re.sub(r"\[(1913 Webster|PJC|WordNet[^]]*|Obs\.|[^]]{0,3}=[^]]*)\]|\(\d{4}-\d\d-\d\d\)|\\[^\\]*\\|[{}]|<[^>]*>", " ", entry)
        for text in pieces(entry, 1):
            yield f"{name}/{i}", text


def wordnet(root):
    """Glosses are short: four neighbours, which belong together, make a text."""
    for part in ("noun", "verb", "adj"):
        glosses = []
        for line in read(root / f"usr/share/wordnet/data.{part}").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition("|")
            word = head.split()[4].replace("_", " ")
            glosses.append(f"{word[:1].upper()}{word[1:]}: {gloss.strip()}.")
        for i in range(0, len(glosses) - 8, 8):
            for text in pieces(" ".join(glosses[i : i + 8]), 1):
                yield f"wordnet/{part}/{i}", text


def pages(root, folder, name, most):
    """Paragraphs of HTML pages."""
    for path in sorted((root / folder).glob("*.html")):
        body = re.sub(r"(?s)<(script|style|head).*?</\1>|<[^>]*>", " ", read(path))
        for text in pieces(html.unescape(body), most):
            yield f"{name}/{path.stem}", text


def policy(root):
    body = read(root / "usr/share/doc/debian-policy/policy.txt.gz")
    for i, chapter in enumerate(re.split(r"\n(?=\d+(?:\.\d+)+\. )", body)):
        for text in pieces(chapter, 2):
            yield f"policy/{i}", text


def manuals(root):
    for path in sorted((root / "usr/share/man").glob("man*/*.gz")):
        lines = [line for line in read(path).splitlines() if not line.startswith((".", "'"))]
        for text in pieces(re.sub(r"\\f.|\\[&-]|\\\(..", "", " ".join(lines)), 2):
            yield f"manual/{path.stem}", text


# ---- facts ----

SYLLABLES = "ba bel bra cor da del dor el fa fen gar gil hal ile jor ka kel lan lor ma mir na nor ol pa per quin ra rin sa sel ta tor ul va vel wen xan yor zel".split()
PLACES = "ton ville ham burg field mouth ford stead haven port".split()
TRADES = "baker,carpenter,teacher,pilot,nurse,gardener,translator,painter,farmer,librarian,plumber,violinist,chemist,tailor,fisherman,lawyer".split(",")
ANIMALS = "cat,dog,horse,parrot,goat,turtle,rabbit,canary,hedgehog,donkey".split(",")
COLOURS = "red,green,blue,yellow,white,black,grey,purple,orange,brown".split(",")
THINGS = "bicycle,boat,coat,door,piano,lamp,teapot,umbrella,suitcase,fence".split(",")
TELLS = [
    "Hello, my name is {n} and I live in {c}.",
    "Hi, I am {n}. I come from {c}.",
    "{n} lives in {c}.",
    "My name is {n} and my home is {c}.",
]
MORE = [
    "{n} works as a {t} and has a {a} with the name {p}.",
    "Every summer {n} travels from {c} to {d}, where the family of {p} has a house.",
    "The {h} of {n} is {o}, because {n} likes {o} most of all colours.",
    "Before that {n} was a {t} in {d}, and nobody there knew the {a} {p}.",
    "When {p} asked where the {h} was, {n} said that it had stayed in {d}.",
    "In {c} everybody knows the {t} {n}, who is {y} years old and sings well.",
    "At the age of {y}, {n} left {d} with a {o} {h} and a {a}.",
]
ASKS = [
    " Question: What is your name and where do you live? Answer: My name is {n} and I live in {c}.",
    " What is the name? {n}. Which city is it? {c}.",
    " In short: {n}, from {c}, has a {a} with the name {p}.",
]


def invented(rng, suffixes):
    return ("".join(rng.sample(SYLLABLES, rng.choice((2, 2, 3)))) + rng.choice(suffixes)).capitalize()


class Names:
    """People and places, each given out once: real ones from miscfiles and from WordNet, invented ones from syllables."""

    def __init__(self, miscfiles, wordnet_root, rng):
        self.rng = rng
        self.people = [n for n in read(miscfiles / "usr/share/dict/propernames.gz").split() if n.isalpha() and 3 <= len(n) <= 9]
        self.places = sorted({
            line.split()[4].replace("_", " ")
            for line in read(wordnet_root / "usr/share/wordnet/data.noun").splitlines()
            if not line.startswith("  ") and re.search(r"@i \d+ n", line) and re.search(r"\| .*\b(city|town|capital)\b", line)
        })
        self.places = [p[:1].upper() + p[1:] for p in self.places if re.fullmatch(r"[A-Za-z]{4,12}", p)]
        rng.shuffle(self.people)
        rng.shuffle(self.places)
        self.used = set()

    def pair(self, invent):
        if not invent:
            return self.people.pop(), self.places.pop()
        while True:
            name, city = invented(self.rng, ["", "a", "o", "in"]), invented(self.rng, PLACES)
            if name not in self.used and city not in self.used:
                self.used |= {name, city}
                return name, city


def fact_texts(names, count, rng):
    """Texts about invented people. Real names that facts.jsonl does not have may come often."""
    people, places = names.people[:], names.places[:]
    for i in range(count):
        made = rng.random() < 0.3
        n = invented(rng, ["", "a", "o", "in"]) if made else rng.choice(people)
        c = invented(rng, PLACES) if made else rng.choice(places)
        words = {
            "n": n, "c": c, "d": rng.choice(places), "p": rng.choice(people), "t": rng.choice(TRADES), "a": rng.choice(ANIMALS),
            "o": rng.choice(COLOURS), "h": rng.choice(THINGS), "y": rng.randrange(18, 80),
        }
        sentences = [rng.choice(TELLS), *rng.sample(MORE, rng.choice((2, 3)))]
        if rng.random() < 0.5:
            rng.shuffle(sentences)
        yield f"fact/{i}", (" ".join(sentences) + rng.choice(ASKS)).format(**words)


def fact_lines(names):
    """100 with real names and cities, 100 with invented ones; the twin of each is another one's."""
    for kind in ("known", "invented"):
        pairs = [names.pair(kind == "invented") for _ in range(100)]
        for i, (name, city) in enumerate(pairs):
            twin_name, twin_city = pairs[(i + 37) % len(pairs)]
            yield {"id": f"facts/{kind}/{i}", "kind": kind, "text": TELLS[0].format(n=name, c=city), "name": name, "city": city,
                   "twin_name": twin_name, "twin_city": twin_city}


# ---- splits ----


def split_of(document):
    """By the document's name alone: 4% dev, 8% test."""
    share = int.from_bytes(hashlib.sha256(document.encode()).digest()[:4], "big") / 2**32
    return "dev" if share < 0.04 else "test" if share < 0.12 else "train"


def shingles(text):
    words = re.findall(r"\w+", text.casefold())
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def choose(kind, package, texts, rng, forbidden):
    """At most MOST[kind] of the texts, as lines."""
    lines = []
    counts = {}
    for document, text in texts:
        if SHORTEST <= len(text) + (200 if kind == "fact" else 0) and is_prose(text) and not forbidden.search(text):
            counts[document] = counts.get(document, 0) + 1
            lines.append({"id": f"{document}#{counts[document]}", "split": split_of(document), "package": package, "kind": kind, "text": text})
    rng.shuffle(lines)
    return lines[: MOST[kind]]


def documents(roots, names, rng, facts):
    forbidden = re.compile(r"\b(" + "|".join(sorted({f[k] for f in facts for k in ("name", "city")})) + r")\b")
    sources = [
        ("fortune", "fortunes", (x for r in ("fortunes", "fortunes-min") for x in fortunes(roots[r]))),
        ("gcide", "dict-gcide", dictionary(roots["dict-gcide"], "gcide")),
        ("wordnet", "wordnet-base", wordnet(roots["wordnet-base"])),
        ("foldoc", "dict-foldoc", dictionary(roots["dict-foldoc"], "foldoc")),
        ("essay", "anarchism", pages(roots["anarchism"], "usr/share/doc/anarchism/html", "anarchism", 14)),
        ("policy", "debian-policy", policy(roots["debian-policy"])),
        ("manual", "manpages", manuals(roots["manpages"])),
        ("fact", "generated", fact_texts(names, 1000, rng)),
    ]
    lines = [line for kind, package, texts in sources for line in choose(kind, package, texts, rng, forbidden)]
    rng.shuffle(lines)  # any first part of them is a sample of all
    seen = set()
    for line in lines:
        if line["split"] == "train":
            seen |= shingles(line["text"])
    out = []
    texts = set()
    for line in lines:
        if line["text"] in texts or (line["kind"] != "fact" and line["split"] != "train" and shingles(line["text"]) & seen):
            continue
        texts.add(line["text"])
        out.append(line)
    return out


def write(path, lines):
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
    return hashlib.sha256(content).hexdigest()


def make(out, pin):
    pins = json.loads(PINS.read_text(encoding="utf-8"))
    packages = out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    roots = {name: unpack(name, wanted, packages) for name, wanted in pins["packages"].items()}
    rng = random.Random(20)  # noqa: S311
    names = Names(roots["miscfiles"], roots["wordnet-base"], rng)
    facts = list(fact_lines(names))
    lines = documents(roots, names, rng, facts)
    sums = {"documents_sha256": write(out / "documents.jsonl", lines), "facts_sha256": write(out / "facts.jsonl", facts)}
    counts = {split: sum(line["split"] == split for line in lines) for split in ("train", "dev", "test")}
    kinds = {kind: sum(line["kind"] == kind for line in lines) for kind in MOST}
    print(f"corpus: {len(lines)} texts ({counts}), {kinds}, {len(facts)} facts, in {out}", file=sys.stderr)
    if pin:
        PINS.write_text(json.dumps(pins | sums, indent=2) + "\n", encoding="utf-8")
        return
    for key, found in sums.items():
        if pins[key] != found:
            raise CorpusError(f"{key}: found {found}, expected {pins[key]} (corpus.json)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "weights/cache/projector")
    parser.add_argument("--pin", action="store_true", help="write the hashes of what comes out to corpus.json")
    options = parser.parse_args()
    try:
        make(options.out, options.pin)
    except (CorpusError, OSError) as problem:
        print(f"corpus: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
