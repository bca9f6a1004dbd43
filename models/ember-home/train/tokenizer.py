"""Learns the vocabulary and writes tokenizer.json in the form of the Gemma family: plain BPE with byte fallback.

    python tokenizer.py --out ..

Ids 0 to 106 are the family's (control tokens and unused names), then a newline, the 256 bytes, single characters, merges.
Digits stay single: a number is read and copied digit by digit. The merges are learned inside words and inside runs of
punctuation, so that encoding needs no pre-tokenizer.
"""

import argparse
import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

import home
from generate import draw

VOCAB = 2048
CONTROL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>",
           51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>"}
# A space belongs to the word after it; a run of punctuation, a word and a single digit are what merges may span, and the
# fixed parts of the answers' JSON, which make half of what the model writes.
FIXED = [r'\[\{"device":"', r'\}\},\{"device":"', r'"\},\{"device":"', r'","room":"', r'","room":null,"set":\{"', r'","set":\{"', r'\{"alarm":', r',"why":"']
PIECES = "|".join(FIXED) + r"|▁?[\p{L}_]+|\p{N}|▁?[^\p{L}\p{N}▁\n_]+|▁|\n"


def load_tokenizer():
    return Tokenizer.from_file(str(Path(__file__).parent.parent / "tokenizer.json"))


def corpus(seed, count):
    rng = random.Random(seed)
    home.MORE_PLACES.clear()  # no words of their own for these
    for _ in range(count):
        c = draw(rng)
        yield "\n".join(x for x in ("user", c["user"], "model", c["answer"], "system", c["system"]) if x)


def learn(seed, count):
    """Merges as pairs, and the single characters, most useful first."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    letters = [chr(c) for c in range(33, 127)] + list("▁°’éüöäñß€£")
    t.train_from_iterator(corpus(seed, count), trainers.BpeTrainer(vocab_size=VOCAB - 107 - 1 - 256, initial_alphabet=letters, limit_alphabet=len(letters), show_progress=False))
    model = json.loads(t.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, model["merges"]


def write(out, seed, count):
    pieces, merges = learn(seed, count)
    ids, unused = {}, 0
    for i in range(107):
        name = CONTROL.get(i)
        if i == 5:
            name = "[multimodal]"
        if name is None:
            name, unused = f"<unused{unused}>", unused + 1
        ids[name] = i
    ids["\n"] = 107
    for b in range(256):
        ids[f"<0x{b:02X}>"] = len(ids)
    for p in pieces:
        ids.setdefault(p, len(ids))
    assert len(ids) <= VOCAB, len(ids)
    while len(ids) < VOCAB:
        ids[f"<unused{unused}>"] = len(ids)
        unused += 1
    special = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, c in CONTROL.items()]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    full = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {"type": "TemplateProcessing", "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                  "ignore_merges": False, "vocab": ids, "merges": merges},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(full, ensure_ascii=False, indent=1) + "\n")
    return len(merges)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=Path(".."))
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--conversations", type=int, default=30000)
    a = ap.parse_args()
    print(write(a.out, a.seed, a.conversations), "merges")


if __name__ == "__main__":
    main()
