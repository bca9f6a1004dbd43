//! Stand-ins for the characters that control tokens begin or end with.
//!
//! The last character too, not only the first: a template that prints `<` and then a name from the request must not
//! complete a token with it.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::request::{ChatRequest, RequestError};
use crate::engine::tokenizer::Tokenizer;

/// Which character stands for which; the stand-ins occur neither in the request nor in the template.
pub(super) struct Mask(Vec<(char, char)>);

impl Mask {
    pub(super) fn new(tokenizer: &Tokenizer, request: &ChatRequest, template: &str) -> Result<Mask, RequestError> {
        let edges: BTreeSet<char> = tokenizer
            .control_tokens()
            .flat_map(|(name, _)| [name.chars().next(), name.chars().last()])
            .flatten()
            .collect();
        let mut taken: HashSet<char> = template.chars().filter(is_private).collect();
        for value in request.messages.iter().chain(request.tools.iter().flatten()) {
            collect(value, &mut taken);
        }
        let free = ('\u{f0000}'..='\u{10fffd}').filter(is_private).filter(|c| !taken.contains(c));
        let pairs: Vec<(char, char)> = edges.iter().copied().zip(free).collect();
        if pairs.len() < edges.len() {
            let reason = "uses every private-use character of Unicode, none is left".to_owned();
            return Err(RequestError { field: "messages".to_owned(), reason });
        }
        Ok(Mask(pairs))
    }

    /// `request` with every string masked, keys included. Roles stay: they come from a closed list.
    pub(super) fn request(&self, request: &ChatRequest) -> ChatRequest {
        let message = |message: &Value| {
            let mut masked = self.value(message);
            masked["role"] = message["role"].clone();
            masked
        };
        ChatRequest {
            messages: request.messages.iter().map(message).collect(),
            tools: request.tools.as_ref().map(|tools| tools.iter().map(|tool| self.value(tool)).collect()),
            enable_thinking: request.enable_thinking,
        }
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(text).into(),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(entries) => entries.iter().map(|(key, value)| (self.text(key), self.value(value))).collect(),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        let mask = |c| self.0.iter().find(|(original, _)| *original == c).map_or(c, |(_, mask)| *mask);
        text.chars().map(mask).collect()
    }

    /// The inverse, on what a template printed.
    pub(super) fn restore(&self, text: &str) -> String {
        let restore = |c| self.0.iter().find(|(_, mask)| *mask == c).map_or(c, |(original, _)| *original);
        text.chars().map(restore).collect()
    }
}

/// The two private-use planes, without the two code points at the end of each that are no characters.
fn is_private(c: &char) -> bool {
    matches!(c, '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}')
}

fn collect(value: &Value, taken: &mut HashSet<char>) {
    match value {
        Value::String(text) => taken.extend(text.chars().filter(is_private)),
        Value::Array(items) => items.iter().for_each(|item| collect(item, taken)),
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            taken.extend(key.chars().filter(is_private));
            collect(value, taken);
        }),
        _ => {}
    }
}
