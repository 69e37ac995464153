"""Random programs of `kvfold cache` commands against a dense implementation of their own.

    cache_programs.py KVFOLD FOLDER PROGRAMS STEPS [SEED]

FOLDER holds a.safetensors and b.safetensors, f32 caches of one model. Every program starts from them; after each
command the file that it wrote is compared with what the dense implementation, which reads and writes no file but the
first two, says: vectors bit for bit where no arithmetic is done and to 1e-6 relative where there is (observed: 6e-8,
the rounding to f32), tokens, positions and the next position exactly. Refusals are compared too: exit 2, one line, no
file. Needs nothing but Python's own library.
"""

import json
import math
import pathlib
import random
import struct
import subprocess
import sys

TOLERANCE = 1e-6


def read_safetensors(path):
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, t in header.items():
        assert t["dtype"] == "F32", (name, t)
        begin, end = t["data_offsets"]
        values = struct.unpack_from(f"<{(end - begin) // 4}f", data, 8 + length + begin)
        tensors[name] = (t["shape"], values)
    return metadata, tensors


def write_vectors(path, tensors):
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        bytes_ = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(bytes_)]}
        data += bytes_
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


class Cache:
    """rows: [token, position]; vectors: {(part, layer, head): {slot: tuple}}."""

    def __init__(self, layers, heads):
        self.layers, self.heads, self.rows, self.next = layers, heads, [], 0
        self.vectors = {(p, l, h): {} for p in "kv" for l in range(layers) for h in range(heads)}

    def copy(self):
        other = Cache(self.layers, self.heads)
        other.rows, other.next = [list(r) for r in self.rows], self.next
        other.vectors = {lane: dict(held) for lane, held in self.vectors.items()}
        return other

    def take(self, slots):
        """The rows at these slots (None: a gap), renumbered."""
        other = Cache(self.layers, self.heads)
        other.rows, other.next = [list(self.rows[s]) for s in slots], self.next
        for lane, held in self.vectors.items():
            other.vectors[lane] = {i: held[s] for i, s in enumerate(slots) if s in held}
        return other

    def highest(self):
        return max([0] + [p + 1 for _, p in self.rows])


def read_cache(path):
    meta, tensors = read_safetensors(path)
    layers, heads, dim = (int(meta[k]) for k in ("layers", "kv_heads", "head_dim"))
    cache = Cache(layers, heads)
    cache.rows = [[t, p] for t, p in zip(json.loads(meta["tokens"]), json.loads(meta["positions"]))]
    cache.next = int(meta["next_position"])
    slots = json.loads(meta["slots"])
    for part, layer, head in cache.vectors:
        held = slots.get(f"{layer}.{head}", range(len(cache.rows)))
        if f"layers.{layer}.{part}" in tensors:
            shape, values = tensors[f"layers.{layer}.{part}"]
            values = values[head * shape[1] * dim : (head + 1) * shape[1] * dim]
        else:
            shape, values = tensors[f"layers.{layer}.heads.{head}.{part}"]
        assert len(values) == len(held) * dim, (part, layer, head)
        cache.vectors[part, layer, head] = {s: values[i * dim : (i + 1) * dim] for i, s in enumerate(held)}
    return cache


def bits(vector):
    return struct.pack(f"<{len(vector)}f", *vector)


def norm(vector):
    return math.sqrt(sum(x * x for x in vector))


class Refused(Exception):
    pass


class Select:
    """A selection and its text form."""

    def __init__(self, rng, cache, parts=True):
        self.layers = self.pick(rng, cache.layers)
        self.heads = self.pick(rng, cache.heads)
        self.rows = self.pick(rng, len(cache.rows))
        self.parts = rng.choice(["k", "v", "kv", "kv", "kv"]) if parts else "kv"

    @staticmethod
    def pick(rng, n):
        kind = rng.randrange(4)
        if n == 0 or kind == 0:
            return list(range(n))
        if kind == 1:
            first = rng.randrange(n)
            return list(range(first, rng.randrange(first, n) + 1))
        return [i for i in range(n) if rng.randrange(2)]

    @staticmethod
    def ranges(indices):
        out, i = [], 0
        while i < len(indices):
            j = i
            while j + 1 < len(indices) and indices[j + 1] == indices[j] + 1:
                j += 1
            out.append(str(indices[i]) if i == j else f"{indices[i]}-{indices[j]}")
            i = j + 1
        return ",".join(out)

    def text(self):
        r = self.ranges
        return f"layers={r(self.layers)} heads={r(self.heads)} parts={self.parts} rows={r(self.rows)}"

    def lanes(self):
        return {(p, l, h) for p in self.parts for l in self.layers for h in self.heads}

    def slice(self, cache):
        out = cache.take(self.rows)
        for lane in out.vectors:
            if lane not in self.lanes():
                out.vectors[lane] = {}
        return out


def insert(cache, new, at, positions):
    if not any(new.vectors.values()):
        return cache.copy()
    low, high = min(p for _, p in new.rows), max(p for _, p in new.rows)
    before = cache.rows[at - 1][1] + 1 if at else 0
    behind = cache.rows[at][1] if at < len(cache.rows) else cache.next
    kind, _, value = positions.partition(":")
    extent = high - low + 1
    begin, end = {"follow": (before, before + extent), "keep": (low, behind), "overlap": (behind, behind),
                  "gap": (before, behind), "from": (int(value or 0), behind)}[kind]
    if kind == "gap":
        begin = before + (int(value) if at else 0)
        end = begin + extent + int(value)
    moved = [[t, p + end - behind] for t, p in cache.rows[at:]]
    out = Cache(cache.layers, cache.heads)
    out.rows = [list(r) for r in cache.rows[:at]] + [[t, p - low + begin] for t, p in new.rows] + moved
    n = len(new.rows)
    for lane in out.vectors:
        out.vectors[lane] = {s if s < at else s + n: v for s, v in cache.vectors[lane].items()}
        out.vectors[lane] |= {s + at: v for s, v in new.vectors[lane].items()}
    out.next = max(cache.next, out.highest()) if kind in ("keep", "from") else cache.next + end - behind
    return out


def map_vectors(cache, select, change):
    out = cache.copy()
    for lane in select.lanes():
        for slot in select.rows:
            if slot in out.vectors[lane]:
                out.vectors[lane][slot] = change(lane, slot, out.vectors[lane][slot])
    return out


class Program:
    def __init__(self, kvfold, folder, seed):
        self.kvfold, self.folder, self.rng = kvfold, folder, random.Random(seed)
        self.files = 0
        self.caches = [(folder / name, read_cache(folder / name)) for name in ("a.safetensors", "b.safetensors")]
        dim = len(next(iter(self.caches[0][1].vectors["k", 0, 0].values())))
        self.dim = dim

    def run(self, *arguments):
        return subprocess.run([self.kvfold, "cache", *map(str, arguments)], capture_output=True, text=True)

    # Each operation: the command's arguments but --out, what the result must be, and whether it computes.

    def extract(self, path, cache):
        s = Select(self.rng, cache)
        out, extra = s.slice(cache), []
        for missing in set("kv") - set(s.parts):
            fill = self.rng.choice(["zero", "mean", "same"])
            extra = ["--fill", fill]
            lanes = [(missing, l, h) for l in s.layers for h in s.heads]
            whole = Select.__new__(Select)
            whole.__dict__ |= s.__dict__ | {"parts": "kv"}
            natural = whole.slice(cache)
            if fill == "same":  # the other half from a file: the same rows, values and keys alike
                other = self.new_file()
                assert self.run("extract", path, "--select", whole.text(), "--out", other).returncode == 0
                extra = ["--fill", other]
            for lane in lanes:
                held = natural.vectors[lane]
                if fill == "mean" and held:
                    mean = tuple(sum(v[i] for v in held.values()) / len(held) for i in range(self.dim))
                    held = dict.fromkeys(held, mean)
                elif fill == "zero":
                    held = dict.fromkeys(held, (0.0,) * self.dim)
                out.vectors[lane] = held
        out.next = out.highest()
        return ["extract", path, "--select", s.text(), *extra], out, "mean" in extra

    def insert(self, path, cache):
        other_path, other = self.rng.choice(self.caches)
        s = Select(self.rng, other, parts=False)
        at = self.rng.randrange(len(cache.rows) + 1)
        n = self.rng.randrange(30)
        positions = self.rng.choice(["follow", "keep", "overlap", f"gap:{n}", f"from:{n - 10}"])
        arguments = ["insert", path, other_path, "--select", s.text(), "--at", at, "--positions", positions]
        return arguments, insert(cache, s.slice(other), at, positions), False

    def overwrite(self, path, cache):
        other_path, other = self.rng.choice(self.caches)
        s = Select(self.rng, other)
        if len(s.rows) > len(cache.rows):
            s.rows = s.rows[: len(cache.rows)]
        rows = sorted(self.rng.sample(range(len(cache.rows)), len(s.rows)))
        arguments = ["overwrite", path, other_path, "--select", s.text(), "--rows", Select.ranges(rows)]
        out = cache.copy()
        new = s.slice(other)
        for lane, held in new.vectors.items():
            for slot, vector in held.items():
                if rows[slot] not in out.vectors[lane]:
                    return arguments, None, False  # the lane has no row to replace
                out.vectors[lane][rows[slot]] = vector
        if all(len(held) == len(new.rows) for held in new.vectors.values()):
            for slot, (token, _) in enumerate(new.rows):
                out.rows[rows[slot]][0] = token
        return arguments, out, False

    def erase(self, path, cache):
        s = Select(self.rng, cache, parts=False)
        out = cache.copy()
        for lane in s.lanes():
            for slot in s.rows:
                out.vectors[lane].pop(slot, None)
        gone = set(s.rows) if s.lanes() else set()
        left = [i for i in range(len(cache.rows)) if i not in gone or any(i in h for h in out.vectors.values())]
        return ["erase", path, "--select", s.text()], out.take(left), False

    def keep(self, path, cache):
        s = Select(self.rng, cache, parts=False)
        out = s.slice(cache)
        whole = len(s.lanes()) == len(out.vectors)
        left = [i for i in range(len(out.rows)) if whole or any(i in held for held in out.vectors.values())]
        return ["keep", path, "--select", s.text()], out.take(left), False

    def truncate(self, path, cache):
        n = self.rng.randrange(max(0, len(cache.rows) - 6), len(cache.rows) + 1)
        out = cache.take(range(n))
        if n < len(cache.rows):
            out.next = out.rows[-1][1] + 1 if n else 0
        return ["truncate", path, "--rows", n], out, False

    def shift(self, path, cache):
        rows = Select.pick(self.rng, len(cache.rows))
        delta = self.rng.randrange(-2000, 2000)
        out = cache.copy()
        for row in rows:
            out.rows[row][1] += delta
        if len(rows) == len(cache.rows):
            out.next += delta
        return ["shift", path, "--rows", Select.ranges(rows), "--delta", delta], out, False

    def set_positions(self, path, cache):
        if not cache.rows:
            return self.truncate(path, cache)
        out = cache.copy()
        for row in out.rows:
            row[1] = self.rng.randrange(-20, 100)
        out.next = out.highest()
        text = ",".join(str(p) for _, p in out.rows)
        return ["set-positions", path, f"--positions={text}"], out, False

    def concat(self, path, cache):
        paths, out = [path], cache.copy()
        for other_path, other in self.rng.choices(self.caches, k=self.rng.randrange(3)):
            paths.append(other_path)
            n = len(out.rows)
            out.rows += [list(r) for r in other.rows]
            for lane, held in other.vectors.items():
                out.vectors[lane] |= {s + n: v for s, v in held.items()}
        out.next = out.highest()
        return ["concat", *paths], out, False

    def mix(self, path, cache):
        other_path, other = self.rng.choice(self.caches)
        s = Select(self.rng, cache)
        alpha = self.rng.choice([0, 0.25, 0.5, 1, -1.5])
        arguments = ["mix", path, other_path, "--alpha", alpha, "--select", s.text()]
        both = [((p, l, h), slot) for l in s.layers for h in s.heads for slot in s.rows for p in "kv"]
        if len(other.rows) != len(cache.rows) or any(
            (slot in cache.vectors[lane]) != (slot in other.vectors[lane]) for lane, slot in both
        ):
            return arguments, None, False
        def interpolate(lane, slot, v):
            return tuple((1 - alpha) * x + alpha * y for x, y in zip(v, other.vectors[lane][slot]))
        return arguments, map_vectors(cache, s, interpolate), alpha != 0

    def add(self, path, cache):
        s = Select(self.rng, cache)
        vectors, coefficient = {}, self.rng.choice([1, 0.5, -2])
        for part in self.rng.choice(["k", "v", "kv"]):
            shape = self.rng.choice([[self.dim], [cache.layers, cache.heads, self.dim]])
            count = math.prod(shape)
            vectors[part] = shape, [self.rng.randrange(-64, 64) / 32 for _ in range(count)]
        write_vectors(self.folder / "steer.safetensors", vectors)
        def plus(lane, _, v):
            if lane[0] not in vectors:
                return v
            shape, values = vectors[lane[0]]
            first = 0 if len(shape) == 1 else (lane[1] * cache.heads + lane[2]) * self.dim
            return tuple(x + coefficient * values[first + i] for i, x in enumerate(v))
        arguments = ["add", path, "--vectors", self.folder / "steer.safetensors", "--coefficient", coefficient]
        return [*arguments, "--select", s.text()], map_vectors(cache, s, plus), True

    def scale(self, path, cache):
        s, factor = Select(self.rng, cache), self.rng.choice([0, 1, -0.3, 1.7])
        out = map_vectors(cache, s, lambda lane, slot, v: tuple(factor * x for x in v))
        return ["scale", path, "--factor", factor, "--select", s.text()], out, True

    def match_norm(self, path, cache):
        to_path, to = self.rng.choice(self.caches)
        s, by = Select(self.rng, cache), self.rng.choice(["row", "lane"])
        arguments = ["match-norm", path, to_path, "--by", by, "--select", s.text()]
        lanes = [(p, l, h) for p in "kv" for l in s.layers for h in s.heads]
        if by == "row":
            lacks = any(slot in cache.vectors[lane] and slot not in to.vectors[lane] for lane in lanes for slot in s.rows)
            if len(to.rows) != len(cache.rows) or lacks:
                return arguments, None, False
        elif any(not to.vectors[lane] for lane in lanes):
            return arguments, None, False
        def scaled(lane, slot, v):
            norms = [norm(x) for x in to.vectors[lane].values()]
            wanted = norm(to.vectors[lane][slot]) if by == "row" else sum(norms) / len(norms)
            return tuple(x * wanted / norm(v) for x in v) if norm(v) > 0 else v
        return arguments, map_vectors(cache, s, scaled), True

    def noise(self, path, cache):
        s, kind = Select(self.rng, cache), self.rng.choice(["zero", "mean"])
        lanes = {lane: [v for slot, v in cache.vectors[lane].items() if slot in s.rows] for lane in s.lanes()}
        def made_up(lane, _, v):
            if kind == "zero":
                return (0.0,) * self.dim
            return tuple(sum(x[i] for x in lanes[lane]) / len(lanes[lane]) for i in range(self.dim))
        return ["noise", path, "--kind", kind, "--select", s.text()], map_vectors(cache, s, made_up), kind == "mean"

    def round_trip(self, path, cache):
        """Out to the rotated form and back."""
        there = self.folder / "rotated.safetensors"
        if any(len(held) != len(cache.rows) for held in cache.vectors.values()):
            return ["export", path, "--rotated"], None, False
        assert self.run("export", path, "--rotated", "--out", there).returncode == 0
        return ["import", there, "--like", path], cache.copy(), True

    def malformed(self, path, cache):
        n = len(cache.rows)
        bad = self.rng.choice([f"rows={n}", "rows=3-1", "rows=-1", f"rows=0-{n}", "rows=1,1", "rows=2,0", "layers=99",
                               "heads=0-99", "parts=q", "rows=0-1,1-2", "rows=x", "columns=1", "rows=0 rows=0"])
        command = self.rng.choice(["keep", "erase", "extract", "noise"])
        return [command, path, "--select", bad], None, False

    def new_file(self):
        self.files += 1
        path = self.folder / f"p{self.files}.safetensors"
        path.unlink(missing_ok=True)  # of an earlier program
        return path

    def step(self):
        path, cache = self.rng.choice(self.caches)
        names = ["extract", "insert", "insert", "insert", "overwrite", "erase", "keep", "truncate", "shift",
                 "set_positions", "concat", "mix", "add", "scale", "match_norm", "noise", "round_trip", "malformed"]
        arguments, wanted, computed = getattr(self, self.rng.choice(names))(path, cache)
        out = self.new_file()
        ran = self.run(*arguments, "--out", out)
        said = f"{' '.join(map(str, arguments))}\n{ran.stdout}{ran.stderr}"
        if wanted is None:
            assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and ran.stdout == "", said
            assert not out.exists(), said
            return False
        assert ran.returncode == 0 and ran.stderr == "", said
        found = read_cache(out)
        assert found.rows == wanted.rows, f"{said}{found.rows}\n{wanted.rows}"
        assert found.next == wanted.next, f"{said}{found.next} {wanted.next}"
        for lane, held in wanted.vectors.items():
            assert list(found.vectors[lane]) == sorted(held), f"{said}{lane}"
            for slot, vector in held.items():
                same = found.vectors[lane][slot]
                if not computed:
                    assert bits(same) == bits(vector), f"{said}{lane} slot {slot}"
                    continue
                largest = max(map(abs, vector), default=0)
                off = max(abs(x - y) for x, y in zip(same, vector))
                assert off <= TOLERANCE * largest + 1e-30, f"{said}{lane} slot {slot}: {off} of {largest}"
        # The next steps start from the file's own numbers.
        if len(found.rows) > 60:
            return True
        if len(self.caches) < 4:
            self.caches.append((out, found))
        else:
            self.caches[self.rng.randrange(2, 4)] = (out, found)
        return True


def main(kvfold, folder, programs, steps, seed="1"):
    done = refused = 0
    for i in range(int(programs)):
        program = Program(kvfold, pathlib.Path(folder), int(seed) * 1000 + i)
        for _ in range(int(steps)):
            done += 1
            refused += not program.step()
    print(f"{done} commands in {programs} programs, {refused} of them refused as they must be")


if __name__ == "__main__":
    main(*sys.argv[1:])
