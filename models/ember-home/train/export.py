"""Writes the trained model as a checkpoint of the mobile-QAT schema, and what transformers computes from it.

    python export.py --checkpoint RUN/final.pt      ../config.json, model.safetensors, generation_config.json
    python export.py --golden FILE.safetensors      logits of one conversation and a greedy continuation
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import Config, Model
from tokenizer import load_tokenizer

HOME = Path(__file__).parent.parent
LM = "model.language_model."
STEPS = 24
# Up to the middle of what the model writes. It was trained on that alone: where it reads, one rounding that falls otherwise moves it far more.
PROMPT = (
    "<|turn>system\nAnswer briefly.<turn|>\n"
    '<|turn>user\n{"bedroom":{"temperature":26.3},"freezer":{"temp":-12.5}}\nIs it too warm in the bedroom?<turn|>\n<|turn>model\n'
    "<|channel>thought\nbedroom temperature above 24: 26.3 > 24 yes<channel|>"
)
PROJECTIONS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
               "ple_gate": "per_layer_input_gate", "ple_proj": "per_layer_projection"}
INPUTS = {"q": "attn_in", "k": "attn_in", "v": "attn_in", "o": "o_in", "gate": "mlp_in", "up": "mlp_in", "down": "down_in", "ple_gate": "gate_in", "ple_proj": "proj_in"}
NORMS = {"input_norm": "input_layernorm", "post_attn": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm", "post_mlp": "post_feedforward_layernorm",
         "post_ple": "post_per_layer_input_norm", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}


def pack(codes, bits):
    """Signed codes [n, k] -> stored form: int8, or uint8 with the first value in the lowest bits."""
    if bits == 8:
        return codes.to(torch.int8)
    fields = (codes + (1 << bits - 1)).to(torch.int32)
    assert fields.min() >= 0 and fields.max() < 1 << bits
    per_byte = 8 // bits
    grouped = fields.view(fields.shape[0], -1, per_byte)
    return (grouped << (torch.arange(per_byte) * bits)).sum(-1).to(torch.uint8)


def codes_of(weight, scale, bits):
    """The integers that the forward pass rounds to (same division, same rounding)."""
    return (weight / scale[:, None]).round().clamp(-(1 << bits - 1), (1 << bits - 1) - 1)


def bits_map(cfg):
    lower = f"[0-{cfg.first_shared - 1}]"
    return {"^lm_head$": 2, r"language_model\.embed_tokens$": 2, r"language_model\.embed_tokens_per_layer$": 4, rf"language_model\.layers\.{lower}\.mlp\.": 4, r"language_model\.layers\.\d+\.mlp\.": 2,
            r"language_model\.layers\.\d+\.per_layer_input_gate$": 8, r"language_model\.layers\.\d+\.per_layer_projection$": 8, r"language_model\.layers\.\d+\.self_attn\.": 4}


def config_of(cfg):
    types = ["full_attention" if cfg.is_full(i) else "sliding_attention" for i in range(cfg.num_hidden_layers)]
    return dict(
        architectures=["Gemma4ForConditionalGeneration"], model_type="gemma4", dtype="bfloat16", tie_word_embeddings=False, eos_token_id=[1, 106], vision_config=None, audio_config=None,
        text_config=dict(
            vars(cfg), use_double_wide_mlp=True, model_type="gemma4_text", layer_types=types, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, final_logit_softcapping=30.0,
            attention_bias=False, attention_k_eq_v=False, enable_moe_block=False, max_position_embeddings=1024, tie_word_embeddings=False, vocab_size_per_layer_input=cfg.vocab_size,
            use_bidirectional_attention=None, bos_token_id=2, eos_token_id=1, pad_token_id=0,
            rope_parameters=dict(full_attention=dict(rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25), sliding_attention=dict(rope_type="default", rope_theta=1e4))),
        quantization_config=dict(quant_method="gemma", num_bits=4, quantize_embeddings=True, module_quant_configs={k: {"num_bits": b} for k, b in bits_map(cfg).items()},
                                 modules_to_not_convert=["per_layer_model_projection"]))


@torch.no_grad()
def tensors_of(model):
    cfg, out = model.cfg, {}

    def linear(name, m, step_in):
        scale = m.log_scale.exp()
        out[name + ".weight"] = pack(codes_of(m.weight, scale, m.bits), m.bits)
        out[name + ".weight_scale"] = scale[:, None]
        out[name + ".input_activation_scale"] = step_in.log.exp().reshape(())
        out[name + ".output_activation_scale"] = m.out.log.exp().reshape(())

    def table(name, m):
        scale = m.log_scale.exp()
        codes = codes_of(m.weight.view(-1, m.width), scale, m.bits).view(m.weight.shape)
        out[name + ".embedding_quantized"], out[name + ".embedding_scale"] = pack(codes, m.bits), scale.view(-1, m.blocks)

    table(LM + "embed_tokens", model.embed)
    table(LM + "embed_tokens_per_layer", model.ple_table)
    out[LM + "per_layer_model_projection.weight"] = model.ple_project.bfloat16()
    out[LM + "per_layer_projection_norm.weight"] = model.ple_norm.weight.bfloat16()
    out[LM + "norm.weight"] = model.norm.weight.bfloat16()
    linear("lm_head", model.head, model.head_in)
    for i, layer in enumerate(model.layers):
        p, owner = f"{LM}layers.{i}.", model.layers[cfg.owner(i)]
        for ours, theirs in PROJECTIONS.items():
            # A layer that shares a cache has k_proj, v_proj and k_norm in the file, unused: its owner's.
            source = layer if hasattr(layer, ours) else owner
            linear(p + theirs, getattr(source, ours), getattr(source, INPUTS[ours]))
        for ours, theirs in NORMS.items():
            out[f"{p}{theirs}.weight"] = getattr(layer if hasattr(layer, ours) else owner, ours).weight.bfloat16()
        out[p + "layer_scalar"] = layer.scalar.bfloat16()
        for side in "kv":
            out[f"{p}self_attn.{side}_cache_scale"] = getattr(owner, side + "_step").log.exp().reshape(())
    return {k: v.detach().clone().contiguous() for k, v in out.items()}


def unpack(stored, bits):
    """The codes of `pack`, as float32."""
    if bits == 8:
        return stored.float()
    fields = (stored.int()[..., None] >> (torch.arange(8 // bits) * bits)) & (1 << bits) - 1
    return (fields.flatten(1) - (1 << bits - 1)).float()


@torch.no_grad()
def read(model, folder):
    """The inverse of `tensors_of`: weights on their codes, scales and steps of an exported checkpoint."""
    found = load_file(folder / "model.safetensors")

    def linear(name, m, step_in):
        scale = found[name + ".weight_scale"]
        m.weight.copy_(unpack(found[name + ".weight"], m.bits) * scale)
        m.log_scale.copy_(scale[:, 0].log())
        step_in.log.copy_(found[name + ".input_activation_scale"].log())
        m.out.log.copy_(found[name + ".output_activation_scale"].log())

    def table(name, m):
        scale = found[name + ".embedding_scale"].flatten()
        codes = unpack(found[name + ".embedding_quantized"], m.bits).view(-1, m.width)
        m.weight.copy_((codes * scale[:, None]).view(m.weight.shape))
        m.log_scale.copy_(scale.log())

    table(LM + "embed_tokens", model.embed)
    table(LM + "embed_tokens_per_layer", model.ple_table)
    model.ple_project.copy_(found[LM + "per_layer_model_projection.weight"])
    model.ple_norm.weight.copy_(found[LM + "per_layer_projection_norm.weight"])
    model.norm.weight.copy_(found[LM + "norm.weight"])
    linear("lm_head", model.head, model.head_in)
    for i, layer in enumerate(model.layers):
        p = f"{LM}layers.{i}."
        for ours, theirs in PROJECTIONS.items():
            if hasattr(layer, ours):
                linear(p + theirs, getattr(layer, ours), getattr(layer, INPUTS[ours]))
        for ours, theirs in NORMS.items():
            if hasattr(layer, ours):
                getattr(layer, ours).weight.copy_(found[f"{p}{theirs}.weight"])
        layer.scalar.copy_(found[p + "layer_scalar"])
        for side in "kv" if layer.owns else "":
            getattr(layer, side + "_step").log.copy_(found[f"{p}self_attn.{side}_cache_scale"].log())


def load_ours(path):
    state = torch.load(path, map_location="cpu")
    model = Model(Config(**json.loads(state["config"])))
    model.load_state_dict(state["model"])
    model.quantize(True)
    return model.eval()


def write(checkpoint):
    model = load_ours(checkpoint)
    (HOME / "config.json").write_text(json.dumps(config_of(model.cfg), indent=2) + "\n")
    (HOME / "generation_config.json").write_text(json.dumps(dict(bos_token_id=2, eos_token_id=[1, 106], pad_token_id=0, do_sample=False, max_new_tokens=256), indent=2) + "\n")
    save_file(tensors_of(model), HOME / "model.safetensors", metadata={"format": "pt"})


def load_theirs():
    """The checkpoint in transformers, in float32."""
    import transformers
    from transformers.integrations import gemma_quant

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    text = json.loads((HOME / "config.json").read_text())["text_config"]
    layers, width = text["num_hidden_layers"], text["num_hidden_layers"] * text["hidden_size_per_layer_input"]
    plain = gemma_quant.QuantizedEmbedding.__init__

    def init(self, num_embeddings, embedding_dim, *args, **kwargs):
        # transformers allocates one scale per row; the per-layer table has one per row and layer.
        plain(self, num_embeddings, embedding_dim, *args, **kwargs)
        if embedding_dim == width:
            self.embedding_scale = torch.nn.Parameter(torch.ones(num_embeddings, layers))

    gemma_quant.QuantizedEmbedding.__init__ = init
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(HOME, dtype=torch.float32, attn_implementation="eager")
    finally:
        gemma_quant.QuantizedEmbedding.__init__ = plain
    return model.eval().to(torch.float32)


def int8_cache(model):
    """A cache that rounds K (after RoPE) and V onto the checkpoint's grids, as an int8 cache does."""
    import transformers.models.gemma4.modeling_gemma4 as gemma4
    from transformers.integrations.gemma_quant import apply_srq

    tensors = load_file(HOME / "model.safetensors")

    class Int8Cache(gemma4.DynamicCache):
        def update(self, keys, values, layer, *args, **kwargs):
            k, v = (tensors[f"{LM}layers.{layer}.self_attn.{s}_cache_scale"] for s in "kv")
            return super().update(apply_srq(keys, k), apply_srq(values, v), layer, *args, **kwargs)

    return Int8Cache(config=model.config.get_text_config())


def kl(a, b):
    """Mean KL(a || b) over the positions."""
    a, b = (torch.log_softmax(x.double(), -1) for x in (a, b))
    return (a.exp() * (a - b)).sum(-1).mean().item()


def in_float64(model):
    """The same model with all arithmetic in float64: what an exact engine computes."""
    import transformers.models.gemma4.modeling_gemma4 as gemma4
    from transformers.integrations.gemma_quant import QuantizedEmbedding

    for module in model.double().modules():
        if isinstance(module, QuantizedEmbedding):
            module.output_dtype = torch.float64
        if isinstance(module, gemma4.Gemma4RMSNorm):  # it computes in float32 otherwise
            module.forward = lambda x, norm=module: norm._norm(x) * norm.weight.double() if norm.with_scale else norm._norm(x)
    return model


@torch.no_grad()
def golden(out):
    """Writes what transformers computes: logits of every position of PROMPT, and a greedy continuation of STEPS tokens."""
    theirs = load_theirs()
    ids = torch.tensor([load_tokenizer().encode(PROMPT).ids])
    caches = {"f32_kv": lambda: None, "int8_kv": lambda: int8_cache(theirs)}
    found = {"prompt_ids": ids[0].int()}
    for name, cache in caches.items():
        found[f"logits_{name}"] = theirs(input_ids=ids, past_key_values=cache(), use_cache=True, logits_to_keep=0).logits[0]
        found[f"greedy_ids_{name}"], found[f"greedy_logits_{name}"] = continuation(theirs, ids, cache())
    found["logits_f64_kv"] = in_float64(theirs)(input_ids=ids, logits_to_keep=0).logits[0].float()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in found.items()}, out)
    f32, f64, int8 = (found[f"logits_{k}_kv"] for k in ("f32", "f64", "int8"))
    print(f"{ids.shape[1]} tokens; mean KL of float32 from float64 {kl(f64, f32):.5f}, of the int8 cache from float32 {kl(f32, int8):.5f}")


def continuation(model, ids, cache):
    """(ids [STEPS], logits [STEPS, V]) of the most likely tokens, whatever they are."""
    made, logits = [], []
    for _ in range(STEPS):
        result = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = result.past_key_values
        logits.append(result.logits[0, -1])
        ids = logits[-1].argmax().view(1, 1)
        made.append(ids.item())
    return torch.tensor(made, dtype=torch.int32), torch.stack(logits)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--checkpoint", type=Path)
    ap.add_argument("--golden", type=Path)
    a = ap.parse_args()
    if a.checkpoint:
        write(a.checkpoint)
    if a.golden:
        golden(a.golden)


if __name__ == "__main__":
    main()
