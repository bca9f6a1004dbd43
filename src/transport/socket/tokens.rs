//! `/tokenize` and `/detokenize`, with the fields of llama.cpp's server.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::super::fields::{Fields, wrong};
use super::refusal::{Refusal, json_text};
use super::service::Service;
use crate::scheduler::backend::{InputError, Vocabulary};
use crate::scheduler::{Code, Failure};

/// Token ids of a text, with what each stands for where that was asked.
#[derive(Serialize)]
struct Split {
    tokens: Tokens,
    count: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Tokens {
    Ids(Vec<u32>),
    Pieces(Vec<Token>),
}

#[derive(Serialize)]
struct Token {
    id: u32,
    piece: Piece,
}

/// A token's bytes: text, or numbers where they are no UTF-8.
#[derive(Serialize)]
#[serde(untagged)]
enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

#[derive(Serialize)]
struct Joined {
    content: String,
}

/// Token ids of a text.
pub(super) async fn tokenize(State(service): State<Service>, request: HttpRequest) -> Result<Response, Refusal> {
    let body = service.body(request).await?;
    work(&service, move |words| split(words, Fields::parse(&body)?)).await
}

/// The text of token ids.
pub(super) async fn detokenize(State(service): State<Service>, request: HttpRequest) -> Result<Response, Refusal> {
    let body = service.body(request).await?;
    work(&service, move |words| join(words, Fields::parse(&body)?)).await
}

/// Beside the thread that serves everybody, for a long text takes its time; one after the other, and of those that wait for it as
/// many as there are connections. What was begun goes on when its client has hung up, and keeps its place until then.
async fn work<T: Serialize>(
    service: &Service,
    what: impl FnOnce(&dyn Vocabulary) -> Result<T, InputError> + Send + 'static,
) -> Result<Response, Refusal> {
    let words = Arc::clone(&service.model().vocabulary);
    let internal = |error: &dyn std::fmt::Display| Failure::new(Code::Internal, error.to_string());
    let place = service.counting().await;
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        what(words.as_ref()).map(|value| serde_json::to_string(&value))
    });
    let text = done.await.map_err(|error| internal(&error))??.map_err(|error| internal(&error))?;
    Ok(json_text(200, text))
}

fn split(words: &dyn Vocabulary, mut fields: Fields) -> Result<Split, InputError> {
    let text = match (fields.text("content")?, fields.text("prompt")?) {
        (Some(text), None) | (None, Some(text)) => text,
        (Some(_), Some(_)) => return Err(InputError::new("prompt", "prompt: not together with content")),
        (None, None) => return Err(InputError::new("content", "content: missing")),
    };
    let begin = fields.flag("add_special")?.unwrap_or(false);
    let controls = fields.flag("parse_special")?.unwrap_or(false);
    let ids = words.encode(&text, begin, controls);
    let count = ids.len();
    if !fields.flag("with_pieces")?.unwrap_or(false) {
        return Ok(Split { tokens: Tokens::Ids(ids), count });
    }
    let piece = |id: u32| match String::from_utf8(words.bytes(id).unwrap_or_default()) {
        Ok(text) => Token { id, piece: Piece::Text(text) },
        Err(error) => Token { id, piece: Piece::Bytes(error.into_bytes()) },
    };
    Ok(Split { tokens: Tokens::Pieces(ids.into_iter().map(piece).collect()), count })
}

fn join(words: &dyn Vocabulary, mut fields: Fields) -> Result<Joined, InputError> {
    let ids = match fields.take("tokens") {
        Some(Value::Array(ids)) => ids,
        Some(other) => return Err(wrong("tokens", "an array of token ids", &other)),
        None => return Err(InputError::new("tokens", "tokens: missing")),
    };
    let mut bytes = Vec::new();
    for (at, value) in ids.iter().enumerate() {
        let known = value.as_u64().and_then(|id| words.bytes(u32::try_from(id).ok()?));
        bytes.extend(known.ok_or_else(|| wrong(&format!("tokens[{at}]"), "a token id of this model", value))?);
    }
    Ok(Joined { content: String::from_utf8_lossy(&bytes).into_owned() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A token for every byte, 256 before every text, and 257, which is spelled `<x>`.
    struct Bytes;

    impl Vocabulary for Bytes {
        fn encode(&self, text: &str, begin: bool, controls: bool) -> Vec<u32> {
            let rest = text.strip_prefix("<x>").filter(|_| controls);
            let marks = begin.then_some(256).into_iter().chain(rest.map(|_| 257));
            marks.chain(rest.unwrap_or(text).bytes().map(u32::from)).collect()
        }

        fn bytes(&self, id: u32) -> Option<Vec<u8>> {
            match id {
                256 => Some(Vec::new()),
                257 => Some(b"<x>".to_vec()),
                _ => u8::try_from(id).ok().map(|byte| vec![byte]),
            }
        }
    }

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn texts_become_tokens_and_back() {
        let split = |value: Value| json!(split(&Bytes, fields(&value)).unwrap());
        assert_eq!(split(json!({"content": "ab"})), json!({"tokens": [97, 98], "count": 2}));
        assert_eq!(split(json!({"prompt": "a", "add_special": true}))["tokens"], json!([256, 97]));
        assert_eq!(split(json!({"content": "<x>"}))["count"], 3);
        assert_eq!(split(json!({"content": "<x>", "parse_special": true}))["tokens"], json!([257]));
        let pieces = json!([{"id": 97, "piece": "a"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]);
        assert_eq!(split(json!({"content": "aé", "with_pieces": true}))["tokens"], pieces);
        let join = |value: Value| json!(join(&Bytes, fields(&value)).unwrap());
        assert_eq!(join(json!({"tokens": [256, 257, 97, 195, 169]})), json!({"content": "<x>aé"}));
        assert_eq!(join(json!({"tokens": [195]})), json!({"content": "\u{fffd}"}));
    }

    #[test]
    fn malformed_bodies_are_refused_by_field() {
        for (value, param) in [
            (json!({}), "content"),
            (json!({"content": 1}), "content"),
            (json!({"content": "a", "prompt": "b"}), "prompt"),
            (json!({"content": "a", "add_special": "yes"}), "add_special"),
        ] {
            assert_eq!(split(&Bytes, fields(&value)).err().unwrap().param.as_deref(), Some(param), "{value}");
        }
        for (value, param) in [
            (json!({}), "tokens"),
            (json!({"tokens": 1}), "tokens"),
            (json!({"tokens": [1, 258]}), "tokens[1]"),
            (json!({"tokens": [-1]}), "tokens[0]"),
            (json!({"tokens": [4_294_967_296_u64]}), "tokens[0]"),
        ] {
            assert_eq!(join(&Bytes, fields(&value)).err().unwrap().param.as_deref(), Some(param), "{value}");
        }
    }
}
