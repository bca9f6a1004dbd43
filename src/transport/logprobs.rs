//! How likely tokens were, in OpenAI's shapes: chat's, and the older one of completions.

use serde_json::{Map, Value, json};

use crate::scheduler::backend::{Logprob, Vocabulary};

/// Stands for what cannot be, which JSON has no number for.
const IMPOSSIBLE: f32 = -9999.0;

/// The tokens of a piece of a message.
pub fn content(words: &dyn Vocabulary, tokens: &[Logprob]) -> Value {
    let entry = |id: u32, logprob: f32| {
        let bytes = words.bytes(id).unwrap_or_default();
        json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
    };
    let token = |token: &Logprob| {
        let mut value = entry(token.id, token.logprob);
        value["top_logprobs"] = token.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
        value
    };
    tokens.iter().map(token).collect()
}

/// The tokens of a piece of a text, which begins `offset` characters after the text does; `offset` moves to the piece's end. The
/// chosen token is always among the likely ones.
pub fn text(words: &dyn Vocabulary, tokens: &[Logprob], offset: &mut usize) -> Value {
    let (mut texts, mut offsets, mut top) = (Vec::new(), Vec::new(), Vec::new());
    for token in tokens {
        let bytes = words.bytes(token.id).unwrap_or_default();
        offsets.push(*offset);
        // Every character has one byte that does not continue one.
        *offset += bytes.iter().filter(|byte| *byte & 0xc0 != 0x80).count();
        let all = token.top.iter().copied().chain([(token.id, token.logprob)]);
        let all: Map<String, Value> = all.map(|(id, p)| (spelling(words, id), json!(finite(p)))).collect();
        texts.push(spelling(words, token.id));
        top.push(all);
    }
    let own: Vec<f32> = tokens.iter().map(|token| finite(token.logprob)).collect();
    json!({"tokens": texts, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets})
}

/// A token as the key of an object: what is no UTF-8 of its own as its bytes.
fn spelling(words: &dyn Vocabulary, id: u32) -> String {
    match String::from_utf8(words.bytes(id).unwrap_or_default()) {
        Ok(text) => text,
        Err(error) => {
            let bytes: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}")
        }
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for every byte.
    struct Bytes;

    impl Vocabulary for Bytes {
        fn encode(&self, text: &str, _: bool, _: bool) -> Vec<u32> {
            text.bytes().map(u32::from).collect()
        }

        fn bytes(&self, id: u32) -> Option<Vec<u8>> {
            u8::try_from(id).ok().map(|byte| vec![byte])
        }
    }

    fn tokens(ids: &[u32]) -> Vec<Logprob> {
        let top = vec![(u32::from(b'x'), -0.25), (0xc3, f32::NEG_INFINITY)];
        ids.iter().map(|id| Logprob { id: *id, logprob: -2.0, top: top.clone() }).collect()
    }

    #[test]
    fn tokens_have_text_bytes_and_alternatives() {
        let value = content(&Bytes, &tokens(&[0x61, 0xc3]));
        let top = json!([{"token": "x", "logprob": -0.25, "bytes": [120]},
                         {"token": "\u{fffd}", "logprob": -9999.0, "bytes": [0xc3]}]);
        assert_eq!(value[0], json!({"token": "a", "logprob": -2.0, "bytes": [0x61], "top_logprobs": top}));
        assert_eq!((&value[1]["token"], &value[1]["bytes"]), (&json!("\u{fffd}"), &json!([0xc3])));
    }

    #[test]
    fn offsets_count_characters_from_piece_to_piece() {
        let mut offset = 0;
        let first = text(&Bytes, &tokens(&[0x61, 0xc3, 0xa9]), &mut offset);
        assert_eq!((&first["text_offset"], offset), (&json!([0, 1, 2]), 2), "a, and é in two tokens");
        assert_eq!(first["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9"]));
        assert_eq!(first["top_logprobs"][0], json!({"x": -0.25, "bytes:\\xc3": -9999.0, "a": -2.0}));
        let second = text(&Bytes, &tokens(&[0x62]), &mut offset);
        assert_eq!((&second["text_offset"], &second["token_logprobs"], offset), (&json!([2]), &json!([-2.0]), 3));
    }
}
