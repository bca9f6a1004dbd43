//! Reading a JSON object field by field, so that a refusal can name the field.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::{Problem, quote};

/// Longest configuration file that is read: a parsed value takes up to sixteen times its text.
pub(super) const MAX_JSON: usize = 4 << 20;

/// An object and the path that leads to it, `text_config.` for example.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
}

/// `json` as an object.
pub(super) fn parse_object(json: &str) -> Result<Map<String, Value>, Problem> {
    if json.len() > MAX_JSON {
        return Err(Problem::whole(format!("at most {MAX_JSON} bytes of JSON"), format!("{} bytes", json.len())));
    }
    serde_json::from_str(json).map_err(|e| Problem::whole("a JSON object", quote(&e.to_string())))
}

/// A value as part of a message.
pub(super) fn show(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::String(s)) => format!("\"{}\"", quote(s)),
        Some(Value::Array(a)) => format!("a list of {}", a.len()),
        Some(Value::Object(o)) => format!("an object of {}", o.len()),
        Some(value) => value.to_string(),
    }
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>, path: &'a str) -> Fields<'a> {
        Fields { object, path }
    }

    /// The field, `None` when it is absent or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|v| !v.is_null())
    }

    /// Whether the field is not there at all; null is a value for some.
    pub(super) fn absent(&self, name: &str) -> bool {
        !self.object.contains_key(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A refusal of the field `name`.
    pub(super) fn refuse(&self, name: &str, expected: impl Into<String>) -> Problem {
        Problem::at(format!("{}{name}", self.path), expected, show(self.get(name)))
    }

    /// An integer in `range`; `default` when absent.
    pub(super) fn integer(
        &self,
        name: &str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Result<usize, Problem> {
        let value = match self.get(name) {
            None => default,
            Some(value) => value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| range.contains(v)),
        };
        value.ok_or_else(|| self.refuse(name, format!("an integer from {} to {}", range.start(), range.end())))
    }

    /// As [`Fields::integer`], a multiple of 16: what the kernels work in.
    pub(super) fn multiple_of_16(&self, name: &str, max: usize, default: Option<usize>) -> Result<usize, Problem> {
        match self.integer(name, 16..=max, default) {
            Ok(value) if value.is_multiple_of(16) => Ok(value),
            _ => Err(self.refuse(name, format!("a multiple of 16 up to {max}"))),
        }
    }

    /// A finite number in `range`; `default` when absent.
    pub(super) fn number(&self, name: &str, range: RangeInclusive<f64>, default: Option<f64>) -> Result<f64, Problem> {
        let value = match self.get(name) {
            None => default,
            Some(value) => value.as_f64().filter(|v| range.contains(v)),
        };
        value.ok_or_else(|| self.refuse(name, format!("a number from {} to {}", range.start(), range.end())))
    }

    /// A truth value; `default` when absent.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, Problem> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(name, "true or false")),
        }
    }

    /// A token id or a list of up to 64; empty when absent.
    pub(super) fn token_ids(&self, name: &str, vocab_size: usize) -> Result<Vec<u32>, Problem> {
        let id = |v: &Value| v.as_u64().filter(|&v| v < vocab_size as u64).map(|v| v as u32);
        let ids = match self.get(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) if list.len() <= 64 => list.iter().map(id).collect(),
            Some(value) => id(value).map(|v| vec![v]),
        };
        ids.ok_or_else(|| self.refuse(name, format!("a token id below {vocab_size} or a list of up to 64")))
    }

    /// An object; `None` when absent.
    pub(super) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Problem> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_object().map(Some).ok_or_else(|| self.refuse(name, "an object")),
        }
    }
}
