//! A conversation as it comes in, and what is accepted as one.

use serde::Deserialize;
use serde_json::Value;

/// Messages in a conversation. The work of Gemma's template grows with the square of this.
pub const MAX_MESSAGES: usize = 256;
/// Tools that are declared.
pub const MAX_TOOLS: usize = 256;
/// Arrays and objects inside each other, in a message or a tool.
pub const MAX_DEPTH: usize = 32;
/// JSON values in a request.
pub const MAX_VALUES: usize = 65_536;
/// Bytes of all strings of a request together.
pub const MAX_TEXT: usize = 8 << 20;

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "model", "tool"];

/// What a chat template renders. Messages and tools have the form of OpenAI's chat completions.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ChatRequest {
    /// `{"role": …, "content": …}` each, oldest first.
    pub messages: Vec<Value>,
    /// Declarations of functions that the model may call.
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    /// Whether the model thinks before it answers; the template decides when absent.
    #[serde(default)]
    pub enable_thinking: Option<bool>,
}

/// Why a request is not a conversation: the field, what was expected, what was found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {reason}")]
pub struct RequestError {
    /// As in `messages[2].content`.
    pub field: String,
    /// What was expected and what was found.
    pub reason: String,
}

fn refuse<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, RequestError> {
    Err(RequestError { field: field.into(), reason: reason.into() })
}

/// "an object", "a string", … for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl ChatRequest {
    /// Checks the form and the size of the request.
    ///
    /// # Errors
    ///
    /// The first field that is wrong.
    pub fn validate(&self) -> Result<(), RequestError> {
        let count = self.messages.len();
        if count == 0 || count > MAX_MESSAGES {
            return refuse("messages", format!("expected 1 to {MAX_MESSAGES} messages, found {count}"));
        }
        let tools = self.tools.as_deref().unwrap_or_default();
        if tools.len() > MAX_TOOLS {
            return refuse("tools", format!("expected at most {MAX_TOOLS} tools, found {}", tools.len()));
        }
        let mut budget = Budget { values: MAX_VALUES, text: MAX_TEXT };
        for (index, message) in self.messages.iter().enumerate() {
            let field = format!("messages[{index}]");
            budget.spend(&field, message, MAX_DEPTH)?;
            check_message(&field, message)?;
        }
        for (index, tool) in tools.iter().enumerate() {
            let field = format!("tools[{index}]");
            budget.spend(&field, tool, MAX_DEPTH)?;
            if !tool.is_object() {
                return refuse(field, format!("expected an object, found {}", kind(tool)));
            }
        }
        Ok(())
    }

    /// The request with the thoughts in earlier answers left out, as Gemma's template leaves them out: everything
    /// between `<|channel>` and `<channel|>`, or to the end where the second is missing.
    pub(super) fn without_thoughts(&self) -> ChatRequest {
        let mut request = self.clone();
        let of_model = |message: &&mut Value| message["role"] == "assistant" || message["role"] == "model";
        for message in request.messages.iter_mut().filter(of_model) {
            match message.get_mut("content") {
                Some(Value::String(text)) => *text = without_thoughts(text),
                Some(Value::Array(parts)) => {
                    for part in parts {
                        if let Some(Value::String(text)) = part.get_mut("text") {
                            *text = without_thoughts(text);
                        }
                    }
                }
                _ => {}
            }
        }
        request
    }
}

fn without_thoughts(text: &str) -> String {
    text.split("<channel|>").map(|part| part.split("<|channel>").next().unwrap_or_default()).collect()
}

fn check_message(field: &str, message: &Value) -> Result<(), RequestError> {
    let Value::Object(message) = message else {
        return refuse(field, format!("expected an object, found {}", kind(message)));
    };
    match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => {}
        Some(Value::String(role)) => {
            let role: String = role.chars().take(40).collect();
            return refuse(format!("{field}.role"), format!("expected one of {}, found {role:?}", ROLES.join(", ")));
        }
        other => {
            let found = other.map_or("nothing", kind);
            return refuse(format!("{field}.role"), format!("expected one of {}, found {found}", ROLES.join(", ")));
        }
    }
    let field = format!("{field}.content");
    let parts = match message.get("content") {
        None | Some(Value::Null | Value::String(_)) => return Ok(()),
        Some(Value::Array(parts)) => parts,
        Some(other) => {
            return refuse(field, format!("expected a string, null or an array of parts, found {}", kind(other)));
        }
    };
    for (index, part) in parts.iter().enumerate() {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(_)) => {}
            (Some("text"), None) => {
                return refuse(
                    format!("{field}[{index}].text"),
                    format!("expected a string, found {}", kind(&part["text"])),
                );
            }
            (Some(other), _) => {
                let other: String = other.chars().take(40).collect();
                let reason = format!(
                    "expected \"text\", found {other:?}: this daemon reads text only, no images, audio or video"
                );
                return refuse(format!("{field}[{index}].type"), reason);
            }
            (None, _) => return refuse(format!("{field}[{index}].type"), "expected \"text\", found nothing"),
        }
    }
    Ok(())
}

/// What a request may still use.
struct Budget {
    values: usize,
    text: usize,
}

impl Budget {
    fn spend(&mut self, field: &str, value: &Value, depth: usize) -> Result<(), RequestError> {
        if depth == 0 {
            return refuse(field, format!("nested more than {MAX_DEPTH} deep"));
        }
        match self.values.checked_sub(1) {
            Some(left) => self.values = left,
            None => return refuse(field, format!("the request has more than {MAX_VALUES} values")),
        }
        match value {
            Value::String(text) => self.spend_text(field, text),
            Value::Array(items) => items.iter().try_for_each(|item| self.spend(field, item, depth - 1)),
            Value::Object(entries) => entries.iter().try_for_each(|(key, value)| {
                self.spend_text(field, key)?;
                self.spend(field, value, depth - 1)
            }),
            _ => Ok(()),
        }
    }

    fn spend_text(&mut self, field: &str, text: &str) -> Result<(), RequestError> {
        match self.text.checked_sub(text.len()) {
            Some(left) => self.text = left,
            None => return refuse(field, format!("the request has more than {MAX_TEXT} bytes of text")),
        }
        Ok(())
    }
}
