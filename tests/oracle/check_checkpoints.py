"""Whole models through loaders of both kinds, at full size. Slow; nothing is committed.

    check_checkpoints.py PROGRAM GGUF ...       each file is dequantised by PyPI gguf to a safetensors checkpoint in the
        Hugging Face layout (q and k un-permuted, tokenizer.json), whose logits must equal the file's own; and that
        checkpoint, converted back by `kvfold convert`, is read by PyPI gguf and gives them too
    check_checkpoints.py PROGRAM --full FOLDER  what make_checkpoints.py --full wrote, against transformers' logits

PROGRAM is build/release/experiments/kvfold. Logits are compared to 1e-4 of the largest.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import safetensors.numpy

BOUND = 1e-4
TEXT = "The capital of France is Paris. Wasser kocht bei 100 Grad; 水在一百度沸腾。"
NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
         "output.weight": "lm_head.weight"}
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PRE_TOKENIZERS = {
    "smollm": [{"type": "Digits", "individual_digits": True},
               {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}],
    "qwen2": [{"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False},
              {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}],
}


class Source:
    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        self.architecture = self.get("general.architecture")

    def get(self, key, default=None):
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def of(self, key, default=None):
        return self.get(f"{self.architecture}.{key}", default)


def unpermuted(rows, heads):
    """Interleaved pairs (2i, 2i+1) of each head to halves (i, i + n/2)."""
    per_head = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(per_head.swapaxes(1, 2).reshape(rows.shape))


def write_tensors(source, folder):
    heads = source.of("attention.head_count")
    kv_heads = source.of("attention.head_count_kv", heads)
    tensors = {}
    for tensor in source.reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in WHOLE:
            tensors[WHOLE[tensor.name]] = values
            continue
        if tensor.name == "rope_freqs.weight":
            raise SystemExit(f"{tensor.name}: this check does not write scaled RoPE")
        _, layer, role, kind = tensor.name.split(".")
        if source.architecture == "llama" and role in ("attn_q", "attn_k"):
            values = unpermuted(values, heads if role == "attn_q" else kv_heads)
        tensors[f"model.layers.{layer}.{NAMES[role]}.{kind}"] = values
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return "lm_head.weight" not in tensors


def write_config(source, folder, tied, vocabulary):
    heads = source.of("attention.head_count")
    config = {"model_type": source.architecture, "hidden_act": "silu", "tie_word_embeddings": tied,
              "num_hidden_layers": source.of("block_count"), "hidden_size": source.of("embedding_length"),
              "intermediate_size": source.of("feed_forward_length"), "num_attention_heads": heads,
              "num_key_value_heads": source.of("attention.head_count_kv", heads), "vocab_size": vocabulary,
              "max_position_embeddings": source.of("context_length"),
              "rms_norm_eps": source.of("attention.layer_norm_rms_epsilon"),
              "rope_theta": source.of("rope.freq_base", 10000.0),
              "eos_token_id": source.get("tokenizer.ggml.eos_token_id")}
    if source.of("attention.key_length"):
        config["head_dim"] = source.of("attention.key_length")
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(source, folder):
    tokens, types = source.get("tokenizer.ggml.tokens"), source.get("tokenizer.ggml.token_type")
    pre = source.get("tokenizer.ggml.pre")
    added = [{"id": i, "content": token, "special": types[i] == 3, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False} for i, token in enumerate(tokens) if types[i] in (3, 4)]
    vocabulary = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": added, "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]}, "post_processor": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": source.get("tokenizer.ggml.merges")}}, ensure_ascii=False))
    return len(tokens)


def logits(program, model, folder, text=TEXT):
    out = folder / "logits.npy"
    subprocess.run([program, "logits", str(model), "--exact", "--cache-type", "f32", "--text", text, "--out", str(out)],
                   check=True, stdout=subprocess.DEVNULL)
    return np.load(out)


def compare(what, ours, reference):
    error = float(np.abs(ours - reference).max() / np.abs(reference).max())
    print(f"{what}: {error:.1e} of the largest logit, over {len(reference)} positions", flush=True)
    return error < BOUND


def check_gguf(program, path):
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        source = Source(path)
        tied = write_tensors(source, checkpoint)
        write_config(source, checkpoint, tied, write_tokenizer(source, checkpoint))
        reference = logits(program, path, folder)
        good = compare(f"{path.name} as safetensors", logits(program, checkpoint, folder), reference)
        back = folder / "back.gguf"
        subprocess.run([program, "convert", str(checkpoint), str(back)], check=True, stdout=subprocess.DEVNULL)
        names = {tensor.name for tensor in gguf.GGUFReader(back).tensors}
        same = names == {tensor.name for tensor in source.reader.tensors}
        print(f"{path.name} and back: {'the same tensors' if same else 'other tensors'}")
        return compare(f"{path.name} and back", logits(program, back, folder), reference) and good and same


def check_full(program, folder):
    """The vocabulary of these is small letters, the space and two control tokens."""
    alphabet = list("abcdefghijklmnopqrstuvwxyz ") + ["<s>", "</s>"]
    reference = np.load(folder / "logits.npy")
    text = "".join(alphabet[i] for i in json.loads((folder / "tokens.json").read_text()))
    with tempfile.TemporaryDirectory() as temporary:
        ours = logits(program, folder, pathlib.Path(temporary), text)
    return compare(folder.name, ours[-len(reference):], reference)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--full", type=pathlib.Path)
    options = parser.parse_args()
    checks = [check_gguf(options.program, path) for path in options.files]
    if options.full:
        checks += [check_full(options.program, folder) for folder in sorted(options.full.iterdir())]
    return 0 if checks and all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
