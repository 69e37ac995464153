"""A second opinion: llama and qwen2 models of a GGUF file in numpy, in f32.

Written from the papers: RMSNorm (Zhang and Sennrich, 2019), rotary positions (Su et al., 2021), grouped-query
attention (Ainslie et al., 2023), SwiGLU (Shazeer, 2020), byte-level BPE (Radford et al., 2019). Weights are
decoded by PyPI gguf and every product is a BLAS product in f32; nothing is tuned.

A cache row holds the key before its rotation. A row's position is its place in the cache, so that rows of one
text can be put before rows of another by joining arrays.
"""
import dataclasses
import pathlib

import gguf
import numpy as np
import tokenizers

CONTROL, USER_DEFINED = 3, 4  # GGUF's token types that stand in a text as they are


@dataclasses.dataclass
class Cache:
    keys: list[np.ndarray]    # a layer: [rows, kv_heads, head_dim], not rotated
    values: list[np.ndarray]  # a layer: [rows, kv_heads, head_dim]

    def rows(self) -> int:
        return len(self.keys[0])

    def __add__(self, other: "Cache") -> "Cache":
        """These rows, then the other's, which move to the positions that follow."""
        return Cache([np.concatenate(pair) for pair in zip(self.keys, other.keys)],
                     [np.concatenate(pair) for pair in zip(self.values, other.values)])


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: np.float32) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Model:
    def __init__(self, path: str | pathlib.Path):
        self.file = gguf.GGUFReader(path)
        self.architecture = self.field("general.architecture")
        if self.architecture not in ("llama", "qwen2"):
            raise ValueError(f"{path}: architecture '{self.architecture}', expected llama or qwen2")
        self.layers = self.setting("block_count")
        self.heads = self.setting("attention.head_count")
        self.kv_heads = self.setting("attention.head_count_kv")
        self.head_dim = self.setting("embedding_length") // self.heads
        self.epsilon = np.float32(self.setting("attention.layer_norm_rms_epsilon"))
        # One angle a pair of numbers; f64, since a position times an angle is large.
        pairs = np.arange(self.head_dim // 2)
        self.frequencies = float(self.setting("rope.freq_base")) ** (-2.0 * pairs / self.head_dim)
        self.weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
                        for t in self.file.tensors}
        self.output = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def field(self, name: str):
        return self.file.fields[name].contents()

    def setting(self, name: str):
        return self.field(f"{self.architecture}.{name}")

    def empty_cache(self) -> Cache:
        none = np.zeros((0, self.kv_heads, self.head_dim), np.float32)
        return Cache([none] * self.layers, [none] * self.layers)

    def rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x [rows, heads, head_dim]. A llama GGUF pairs neighbours, qwen2 pairs the halves of a head."""
        angles = positions[:, None, None] * self.frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        half = self.head_dim // 2
        first, second = ((slice(0, None, 2), slice(1, None, 2)) if self.architecture == "llama"
                         else (slice(0, half), slice(half, None)))
        out = np.empty_like(x)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def attention(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """q [n, heads, head_dim] of the last n rows; keys and values of all rows."""
        n, rows = len(q), len(keys)
        k = self.rotate(keys, np.arange(rows))
        q = self.rotate(q, np.arange(rows - n, rows))
        hidden = np.arange(rows)[None, :] > np.arange(rows - n, rows)[:, None]
        out = np.empty_like(q)
        for h in range(self.heads):
            kv = h // (self.heads // self.kv_heads)
            scores = q[:, h] @ k[:, kv].T / np.float32(np.sqrt(self.head_dim))
            scores[hidden] = -np.inf
            out[:, h] = softmax(scores) @ values[:, kv]
        return out.reshape(n, -1)

    def feed(self, cache: Cache, ids: list[int]) -> tuple[np.ndarray, Cache]:
        """Returns the normalised state after each token, [n, dim], and the cache with their rows."""
        x = self.weights["token_embd.weight"][ids]
        grown = Cache([], [])
        for layer in range(self.layers):
            block = f"blk.{layer}"
            y = rms_norm(x, self.weights[f"{block}.attn_norm.weight"], self.epsilon)
            q = self.linear(f"{block}.attn_q", y).reshape(len(ids), self.heads, self.head_dim)
            k = self.linear(f"{block}.attn_k", y).reshape(len(ids), self.kv_heads, self.head_dim)
            v = self.linear(f"{block}.attn_v", y).reshape(len(ids), self.kv_heads, self.head_dim)
            grown.keys.append(np.concatenate([cache.keys[layer], k]))
            grown.values.append(np.concatenate([cache.values[layer], v]))
            x = x + self.linear(f"{block}.attn_output", self.attention(q, grown.keys[-1], grown.values[-1]))
            y = rms_norm(x, self.weights[f"{block}.ffn_norm.weight"], self.epsilon)
            gate, up = self.linear(f"{block}.ffn_gate", y), self.linear(f"{block}.ffn_up", y)
            x = x + self.linear(f"{block}.ffn_down", gate / (1 + np.exp(-gate)) * up)
        return rms_norm(x, self.weights["output_norm.weight"], self.epsilon), grown

    def logits(self, states: np.ndarray) -> np.ndarray:
        return states @ self.output.T

    def greedy(self, cache: Cache, ids: list[int], steps: int) -> tuple[list[int], list[float]]:
        """The most probable token `steps` times, past any end token, and its lead over the second."""
        out, margins = [], []
        for _ in range(steps):
            states, cache = self.feed(cache, ids)
            logits = self.logits(states[-1])
            second, first = np.argsort(logits)[-2:]
            out.append(int(first))
            margins.append(float(logits[first] - logits[second]))
            ids = [out[-1]]
        return out, margins


def tokenizer(model: Model) -> tokenizers.Tokenizer:
    """The file's byte-level BPE, with the pre-tokenizer that its name stands for."""
    split = tokenizers.pre_tokenizers
    words = {
        "smollm": [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)],
        "qwen2": [split.Split(tokenizers.Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
            split.ByteLevel(add_prefix_space=False, use_regex=False)],
    }[model.field("tokenizer.ggml.pre")]
    tokens = model.field("tokenizer.ggml.tokens")
    types = model.field("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in model.field("tokenizer.ggml.merges")]
    out = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    out.pre_tokenizer = split.Sequence(words)
    out.decoder = tokenizers.decoders.ByteLevel()
    # Found in a text as a whole, before it is split into words.
    out.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True)
                            for t, kind in zip(tokens, types) if kind in (CONTROL, USER_DEFINED)])
    return out
