//! A vocabulary for checkpoints that are only noise: control tokens and bytes at the family's ids, ASCII, no merges.

use serde_json::{Map, Value, json};

const CONTROL: [(u32, &str); 17] = [
    (0, "<pad>"),
    (1, "<eos>"),
    (2, "<bos>"),
    (3, "<unk>"),
    (4, "<mask>"),
    (46, "<|tool>"),
    (47, "<tool|>"),
    (48, "<|tool_call>"),
    (49, "<tool_call|>"),
    (50, "<|tool_response>"),
    (51, "<tool_response|>"),
    (52, "<|\"|>"),
    (98, "<|think|>"),
    (100, "<|channel>"),
    (101, "<channel|>"),
    (105, "<|turn>"),
    (106, "<turn|>"),
];

const NEWLINE: u32 = 107;
/// The space, and then the printable characters of ASCII.
const SPACE: u32 = 108;
const BYTES: u32 = 238;

/// Text of a `tokenizer.json` of 494 tokens.
pub(super) fn tokenizer_json() -> String {
    let mut tokens: Vec<String> = (0..BYTES).map(|id| format!("<unused{id}>")).collect();
    CONTROL.into_iter().for_each(|(id, name)| tokens[id as usize] = name.into());
    tokens[NEWLINE as usize] = "\n".into();
    tokens[SPACE as usize] = "▁".into();
    for (token, character) in tokens[SPACE as usize + 1..].iter_mut().zip('!'..='~') {
        *token = character.into();
    }
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let vocab: Map<String, Value> = tokens.into_iter().zip(0..).map(|(token, id)| (token, Value::from(id))).collect();
    let added: Vec<Value> = CONTROL
        .into_iter()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    format!("{file}\n")
}
