//! Named presets: what an operator fills in, so that a device sends three words.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::scheduler::backend::InputError;

/// Fields that a preset may have; a request has them too.
const KNOWN: [&str; 11] = [
    "system",
    "enable_thinking",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "max_tokens",
    "timeout_s",
];

/// Fields that a request need not bring.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preset {
    fields: Map<String, Value>,
    max_tokens: Option<usize>,
}

impl Preset {
    /// Checks the fields: those of a request with a `prompt`, without the prompt.
    ///
    /// # Errors
    ///
    /// Naming the field that is unknown or has a wrong value.
    pub fn new(fields: Map<String, Value>) -> Result<Preset, InputError> {
        if let Some(name) = fields.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(InputError::new(name, format!("{name}: unknown; expected one of {}", KNOWN.join(", "))));
        }
        let mut checked = Fields::from(fields.clone());
        checked.text("system")?;
        checked.flag("enable_thinking")?;
        checked.integer("timeout_s", 1..=86_400)?;
        let max_tokens = checked.sampling()?.max_tokens;
        Ok(Preset { fields, max_tokens })
    }

    /// Most tokens of an answer, whatever the request asks for.
    pub fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// Fills in what `request` leaves out. The instructions go before a conversation that does not begin with its own, and
    /// are left out where text is only continued.
    pub fn complete(&self, request: &mut Fields) {
        for (name, value) in &self.fields {
            match (name.as_str(), request.get("messages")) {
                ("system", _) if request.get("raw") == Some(&Value::Bool(true)) => {}
                ("system", Some(Value::Array(messages))) => {
                    let instructed = matches!(messages.first(), Some(first) if is_system(first));
                    if !instructed {
                        let mut messages = messages.clone();
                        messages.insert(0, json!({"role": "system", "content": value}));
                        request.set("messages", Value::Array(messages));
                    }
                }
                _ if request.get(name).is_none() => request.set(name, value.clone()),
                _ => {}
            }
        }
    }
}

fn is_system(message: &Value) -> bool {
    matches!(message["role"].as_str(), Some("system" | "developer"))
}

/// Presets by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Presets(BTreeMap<String, Preset>);

impl Presets {
    /// The preset of that name.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<&Preset, InputError> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<_> = self.0.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "there are none".into() } else { format!("there are {}", known.join(", ")) };
            let name: String = name.chars().take(40).collect();
            InputError::new("preset", format!("preset: {name:?} is not configured; {known}"))
        })
    }

    /// Takes `preset` out of `request`, fills in what the request leaves out, and returns the most tokens of its answer.
    ///
    /// # Errors
    ///
    /// When there is no such preset.
    pub fn apply(&self, request: &mut Fields) -> Result<Option<usize>, InputError> {
        let Some(name) = request.text("preset")? else { return Ok(None) };
        let preset = self.get(&name)?;
        preset.complete(request);
        Ok(preset.max_tokens())
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether there is a preset of that name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

impl FromIterator<(String, Preset)> for Presets {
    fn from_iter<I: IntoIterator<Item = (String, Preset)>>(presets: I) -> Presets {
        Presets(presets.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset(json: Value) -> Result<Preset, InputError> {
        match json {
            Value::Object(fields) => Preset::new(fields),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn wrong_presets_name_the_field() {
        for (json, param) in [
            (json!({"sytem": "x"}), "sytem"),
            (json!({"prompt": "x"}), "prompt"),
            (json!({"system": 1}), "system"),
            (json!({"temperature": 3}), "temperature"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"timeout_s": 0}), "timeout_s"),
            (json!({"enable_thinking": "yes"}), "enable_thinking"),
        ] {
            assert_eq!(preset(json).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        let presets: Presets = [("bell".to_owned(), Preset::default())].into_iter().collect();
        assert!(presets.get("bell").is_ok());
        let error = presets.get("bel\n").unwrap_err();
        assert!(error.message.contains("there are bell") && !error.message.contains('\n'), "{error}");
    }
}
