"""What `kvfold bench` measures, measured of llama.cpp through the C functions of PyPI's llama-cpp-python.

    python bench/peer.py MODEL.gguf --threads N --flash 0|1 --repeat N [--parts decode prefill depth batch]

Prints one line of JSON with the keys of `kvfold bench --json`. f16 KV; the same token ids, counts and depths.
"""
import argparse
import json
import statistics
import time

import llama_cpp as ll

PREFILL, DECODE, DECODE_AT_DEPTH, BATCH, DEPTHS = 512, 128, 32, 16, (512, 1024, 2048, 4096)


def some_tokens(vocabulary, count, offset=0):
    return [(1000 + (i + offset) * 37) % vocabulary for i in range(count)]


def process_memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


silent = ll.llama_log_callback(lambda level, text, data: None)


class Peer:
    def __init__(self, path, threads, flash):
        started = time.perf_counter()
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp does not load it")
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.load_ms = (time.perf_counter() - started) * 1e3
        self.context = self.make_context(threads, flash)
        self.memory = ll.llama_get_memory(self.context)
        self.batch = ll.llama_batch_init(PREFILL, 0, 1)
        self.filled = 0
        self.fill(1)
        self.load_to_first_logits_ms = (time.perf_counter() - started) * 1e3

    def close(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.context)
        ll.llama_model_free(self.model)

    def make_context(self, threads, flash):
        params = ll.llama_context_default_params()
        params.n_ctx = max(DEPTHS) + DECODE_AT_DEPTH + 32 + BATCH * DECODE_AT_DEPTH
        params.n_batch = params.n_ubatch = PREFILL
        params.n_seq_max = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = True
        context = ll.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit("llama.cpp makes no context")
        return context

    def feed(self, rows):
        """rows: (token, position, sequence, whether its logits are wanted), at most PREFILL of them."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        if ll.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        # Logits are there when this returns, as a user who samples from them needs it.
        ll.llama_synchronize(self.context)

    def clear(self):
        ll.llama_memory_clear(self.memory, True)
        self.filled = 0

    def fill(self, depth):
        """Goes on from what sequence 0 holds."""
        ids = some_tokens(self.vocabulary, depth)
        for begin in range(self.filled, depth, PREFILL):
            end = min(depth, begin + PREFILL)
            self.feed([(ids[i], i, 0, i + 1 == depth) for i in range(begin, end)])
        self.filled = depth

    def prefill(self, tokens):
        self.clear()
        started = time.perf_counter()
        self.fill(tokens)
        return tokens / (time.perf_counter() - started)

    def decode(self, depth, sequences, tokens):
        """Tokens a second of sequences that share `depth` rows, which stay when this returns."""
        if self.filled > depth:
            self.clear()
        self.fill(depth)
        for sequence in range(1, sequences):
            ll.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        ids = some_tokens(self.vocabulary, sequences, depth)
        started = time.perf_counter()
        for t in range(tokens):
            self.feed([(ids[s], depth + t, s, True) for s in range(sequences)])
        took = time.perf_counter() - started
        for sequence in range(sequences):
            ll.llama_memory_seq_rm(self.memory, sequence, depth if sequence == 0 else -1, -1)
        return sequences * tokens / took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--flash", type=int, choices=(0, 1), default=0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--parts", nargs="*", default=["decode", "prefill", "depth", "batch"])
    options = parser.parse_args()
    ll.llama_backend_init()
    ll.llama_log_set(silent, None)
    loads, first_logits, peer = [], [], None
    for _ in range(options.repeat):
        if peer:
            peer.close()
        peer = Peer(options.model, options.threads, options.flash)
        loads.append(peer.load_ms)
        first_logits.append(peer.load_to_first_logits_ms)
    out = {"model": options.model, "backend": f"llama.cpp (llama-cpp-python {ll.__version__})",
           "threads": options.threads, "load_ms": spread(loads),
           "load_to_first_logits_ms": spread(first_logits)}

    def measure(name, function, *arguments):
        out[name] = spread([function(*arguments) for _ in range(options.repeat)])

    if "decode" in options.parts:
        measure("decode_128_tokens_per_s", peer.decode, 1, 1, DECODE)
    out["peak_bytes_after_decode"] = process_memory("VmHWM:")
    if "prefill" in options.parts:
        measure("prefill_512_tokens_per_s", peer.prefill, PREFILL)
    if "depth" in options.parts:
        for depth in DEPTHS:
            measure(f"decode_at_{depth}_tokens_per_s", peer.decode, depth, 1, DECODE_AT_DEPTH)
    if "batch" in options.parts:
        measure("batch_16_tokens_per_s", peer.decode, PREFILL // 4, BATCH, DECODE_AT_DEPTH)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
