"""Small random checkpoints made by transformers, and the logits that it computes from them.

    python -m venv .venv-checkpoints
    .venv-checkpoints/bin/pip install -r tests/oracle/requirements-checkpoints.txt
    .venv-checkpoints/bin/python tests/oracle/make_checkpoints.py            tests/data/checkpoints/<name>/
    .venv-checkpoints/bin/python tests/oracle/make_checkpoints.py --full DIR the shapes of real models, not committed

Each folder is a checkpoint as save_pretrained writes it, with a byte-level tokenizer, and tokens.json: token ids,
and logits.npy: the logits behind the last of them (the last eight in the large ones), f32 [rows, vocabulary].
"""
import argparse
import json
import pathlib
import shutil

import numpy as np
import tokenizers
import torch
import transformers

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = ROOT / "tests" / "data" / "checkpoints"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 10000.0}

# hidden, ffn, heads, KV heads, head_dim and what else the configuration says.
SMALL = {
    # The head counts of TinyLlama, SmolLM 360M and 135M, and Qwen 0.5B.
    "llama-32-4": ("llama", 64, 48, 32, 4, 2, {}, "f32"),
    "llama-15-5-tied": ("llama", 60, 96, 15, 5, 4, {"tie_word_embeddings": True}, "bf16"),
    "llama-9-3-tied": ("llama", 72, 40, 9, 3, 8, {"tie_word_embeddings": True}, "f32"),
    "qwen2-14-2-tied": ("qwen2", 56, 64, 14, 2, 4, {"tie_word_embeddings": True, "rope_theta": 1e6}, "bf16"),
    # One KV head, as many as heads, head_dim not hidden / heads, biases everywhere, scaled RoPE.
    "llama-1kv-48": ("llama", 48, 40, 2, 1, 48, {"rope_parameters": LLAMA3}, "f32"),
    "llama-bias": ("llama", 48, 40, 4, 4, 12, {"attention_bias": True}, "f32"),
    "mistral-128": ("mistral", 32, 48, 2, 1, 128, {"sliding_window": None}, "bf16"),
    "qwen2-all-heads": ("qwen2", 48, 48, 3, 3, 16, {}, "f32"),
    "qwen3-48": ("qwen3", 32, 40, 4, 2, 48, {}, "f32"),
    "qwen3-128-tied": ("qwen3", 32, 48, 2, 1, 128, {"tie_word_embeddings": True, "attention_bias": True}, "bf16"),
}
FULL = {
    "tinyllama": ("llama", 2048, 5632, 32, 4, 64, {}, "bf16"),
    "smollm-360m": ("llama", 960, 2560, 15, 5, 64, {"tie_word_embeddings": True}, "bf16"),
    "smollm-135m": ("llama", 576, 1536, 9, 3, 64, {"tie_word_embeddings": True}, "f32"),
    "qwen-0.5b": ("qwen2", 896, 4864, 14, 2, 64, {"tie_word_embeddings": True, "rope_theta": 1e6}, "f32"),
    "llama3": ("llama", 1024, 2048, 16, 4, 64,
               {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 64}}, "f32"),
    "mistral": ("mistral", 1024, 2048, 8, 2, 128, {"sliding_window": None}, "bf16"),
    "qwen3": ("qwen3", 1024, 3072, 16, 8, 128, {"tie_word_embeddings": True, "rope_theta": 1e6}, "f32"),
    "odd-48": ("qwen3", 720, 1000, 5, 1, 48, {}, "f32"),
}
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
# The folder that is written in shards, with an index.
SHARDED = ("llama-9-3-tied", "tinyllama")


def write_tokenizer(folder: pathlib.Path) -> int:
    """Small letters, the space and two control tokens, in GPT-2's manner. Returns the number of tokens."""
    alphabet = "abcdefghijklmnopqrstuvwxyz\u0120"
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    return tokenizer.get_vocab_size()


def randomise(model: torch.nn.Module) -> None:
    """Weights that let every part of the model show in the logits: biases and norms differ from 0 and 1, scores
    are not all alike."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.normal_(1.0, 0.2)
        elif name.endswith(".bias"):
            parameter.data.normal_(0.0, 0.3)
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.data.normal_(0.0, 0.2)
        else:
            parameter.data.normal_(0.0, 1.5 / parameter.shape[1] ** 0.5)


def make(folder: pathlib.Path, spec, rows: int) -> None:
    kind, hidden, ffn, heads, kv_heads, head_dim, more, dtype = spec
    shutil.rmtree(folder, ignore_errors=True)
    vocabulary = write_tokenizer(folder)
    config_class, model_class = CLASSES[kind]
    config = config_class(hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=2,
                          num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
                          vocab_size=vocabulary + 3, max_position_embeddings=256,
                          bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
                          **{"tie_word_embeddings": False, **more})
    torch.manual_seed(sum(folder.name.encode()))
    model = model_class(config)
    randomise(model)
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="60KB" if folder.name in SHARDED and hidden < 1000 else
                          "100MB" if folder.name in SHARDED else "5GB")
    # Read again, as .to(bfloat16) rounds RoPE's frequencies too, which no file holds.
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    rng = np.random.default_rng(len(folder.name))
    ids = rng.integers(0, vocabulary, rows).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    np.save(folder / "logits.npy", logits[-1 if rows <= 40 else -8:].astype("<f4").reshape(-1, logits.shape[-1]))
    (folder / "tokens.json").write_text(json.dumps(ids) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", type=pathlib.Path, help="write the large ones here instead")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for name, spec in (FULL if options.full else SMALL).items():
        folder = (options.full or DATA) / name
        make(folder, spec, rows=120 if options.full else 40)
        print(name, sum(f.stat().st_size for f in folder.iterdir()))


if __name__ == "__main__":
    main()
