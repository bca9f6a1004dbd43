//! JSON objects from outside, field by field: every refusal names the field, the range and what was found.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::tools::{self, Shape};
use crate::scheduler::Priority;
use crate::scheduler::backend::{Format, Input, InputError, Sampling};

/// Most stop texts of a request.
pub const MAX_STOPS: usize = 16;

/// Longest stop text, in bytes.
pub const MAX_STOP_BYTES: usize = 256;

/// Most tokens with a bias of their own.
pub const MAX_BIASES: usize = 1024;

/// Most texts that an answer may be one of.
pub const MAX_CHOICES: usize = 256;

/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 256;

/// An object whose fields are taken out one by one; those that nobody asks for are ignored.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The object in `bytes`.
    ///
    /// # Errors
    ///
    /// When `bytes` is not a JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Fields, InputError> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(other) => Err(whole(format!("expected a JSON object, found {}", kind(&other)))),
            Err(error) => Err(whole(format!("the body is not JSON: {error}"))),
        }
    }

    /// Takes a field; null counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Puts a field in the place of what was there.
    pub fn set(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// A number within `range`.
    ///
    /// # Errors
    ///
    /// When it is no number or outside the range.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, InputError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong(name, format_args!("a number from {} to {}", range.start(), range.end()), &value)),
        }
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    ///
    /// When it is no whole number or outside the range.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, InputError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong(name, format_args!("a whole number from {} to {}", range.start(), range.end()), &value)),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    ///
    /// When it is neither.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, InputError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| wrong(name, "true or false", &value))
    }

    /// A string.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, InputError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// The sampling fields, under OpenAI's names where it has them.
    ///
    /// # Errors
    ///
    /// When one is of the wrong type or outside its range.
    pub fn sampling(&mut self) -> Result<Sampling, InputError> {
        let tokens = 1..=u64::from(u32::MAX);
        let max_tokens = match self.integer("max_completion_tokens", tokens.clone())? {
            None => self.integer("max_tokens", tokens)?,
            newer => newer,
        };
        let (format, format_field) = self.format()?;
        Ok(Sampling {
            temperature: self.number("temperature", 0.0..=2.0)?.map(|x| x as f32),
            top_k: self.integer("top_k", 0..=u64::from(u32::MAX))?.map(|x| x as usize),
            top_p: self.number("top_p", f64::from(f32::EPSILON)..=1.0)?.map(|x| x as f32),
            min_p: self.number("min_p", 0.0..=1.0)?.map(|x| x as f32),
            repetition_penalty: self.number("repetition_penalty", 0.1..=10.0)?.map(|x| x as f32),
            presence_penalty: self.number("presence_penalty", -2.0..=2.0)?.map(|x| x as f32),
            frequency_penalty: self.number("frequency_penalty", -2.0..=2.0)?.map(|x| x as f32),
            logit_bias: self.logit_bias()?,
            seed: self.seed()?,
            stop: self.stop()?,
            format,
            format_field,
            calls: false,
            logprobs: None,
            max_tokens: max_tokens.map(|x| x as usize),
        })
    }

    /// `priority`: high, normal or low.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn priority(&mut self) -> Result<Priority, InputError> {
        match self.take("priority") {
            None => Ok(Priority::Normal),
            Some(value) => match value.as_str() {
                Some("high") => Ok(Priority::High),
                Some("normal") => Ok(Priority::Normal),
                Some("low") => Ok(Priority::Low),
                _ => Err(wrong("priority", "\"high\", \"normal\" or \"low\"", &value)),
            },
        }
    }

    /// Numbers from -100 to 100 by token id.
    fn logit_bias(&mut self) -> Result<Vec<(u32, f32)>, InputError> {
        let Some(value) = self.take("logit_bias") else { return Ok(Vec::new()) };
        let entry = |(id, bias): (&String, &Value)| {
            let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
            Some((id.parse().ok()?, bias as f32))
        };
        let map = value.as_object().filter(|map| map.len() <= MAX_BIASES);
        let expected = format!("an object of up to {MAX_BIASES} token ids with numbers from -100 to 100");
        map.and_then(|map| map.iter().map(entry).collect()).ok_or_else(|| wrong("logit_bias", expected, &value))
    }

    /// Any 64-bit integer; a negative one stands for its two's complement.
    fn seed(&mut self) -> Result<Option<u64>, InputError> {
        let Some(value) = self.take("seed") else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        seed.map(Some).ok_or_else(|| wrong("seed", "a 64-bit integer", &value))
    }

    /// `response_format`, or llama.cpp's `grammar`, where an empty one is none; and which of them it was.
    fn format(&mut self) -> Result<(Option<Format>, &'static str), InputError> {
        const FORMAT: &str = "response_format";
        let wanted = self.take(FORMAT).map(|value| {
            // In a query, which has texts only.
            let read = value.as_str().and_then(|text| serde_json::from_str(text).ok());
            format(FORMAT, read.unwrap_or(value), Shape::Chat)
        });
        match (wanted.transpose()?.flatten(), self.text("grammar")?.filter(|text| !text.is_empty())) {
            (Some(_), Some(_)) => Err(InputError::new("grammar", "grammar: not together with response_format")),
            (None, Some(grammar)) => Ok((Some(Format::of_grammar(grammar)), "grammar")),
            (Some(format), None) => Ok((Some(format), FORMAT)),
            (None, None) => Ok((None, "")),
        }
    }

    fn stop(&mut self) -> Result<Vec<String>, InputError> {
        let expected = format!("a string or up to {MAX_STOPS} strings, each of 1 to {MAX_STOP_BYTES} bytes");
        let stops = match self.take("stop") {
            None => return Ok(Vec::new()),
            Some(Value::Array(stops)) if stops.len() <= MAX_STOPS => stops,
            Some(Value::Array(stops)) => {
                return Err(InputError::new(
                    "stop",
                    format!("stop: expected {expected}, found {} of them", stops.len()),
                ));
            }
            Some(one) => vec![one],
        };
        stops
            .into_iter()
            .map(|stop| match stop {
                Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text),
                other => Err(wrong("stop", &expected, &other)),
            })
            .collect()
    }
}

impl From<Map<String, Value>> for Fields {
    fn from(map: Map<String, Value>) -> Fields {
        Fields(map)
    }
}

/// OpenAI's form of an answer at `path`, and three kinds more; `None` is text.
///
/// # Errors
///
/// Naming what is missing, malformed or unknown.
pub fn format(path: &str, value: Value, shape: Shape) -> Result<Option<Format>, InputError> {
    const KINDS: &str = "text, json_object, json_schema, regex, grammar or choice";
    let Value::Object(map) = value else { return Err(wrong(path, "an object", &value)) };
    let mut fields = Fields(map);
    let at = |name: &str| format!("{path}.{name}");
    let missing = |name: &str| InputError::new(at(name), format!("{}: missing", at(name)));
    let text = |fields: &mut Fields, name: &str| match fields.take(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong(&at(name), "a string", &other)),
        None => Err(missing(name)),
    };
    let kind = text(&mut fields, "type")?;
    Ok(match kind.as_str() {
        "text" => None,
        "json_object" => Some(Format::Object),
        "json_schema" => {
            let (name, wanted) = match shape {
                Shape::Chat => {
                    ("json_schema.schema", fields.take("json_schema").map(|wanted| wanted["schema"].clone()))
                }
                Shape::Response => ("schema", fields.take("schema")),
            };
            match wanted {
                Some(schema @ (Value::Object(_) | Value::Bool(true))) => Some(Format::Schema(schema)),
                Some(Value::Null) | None => return Err(missing(name)),
                Some(other) => return Err(wrong(&at(name), "an object", &other)),
            }
        }
        "regex" => Some(Format::Regex(text(&mut fields, "regex")?)),
        "grammar" => {
            let grammar = text(&mut fields, "grammar")?;
            Some(match fields.take("syntax") {
                None => Format::of_grammar(grammar),
                Some(Value::String(name)) if name == "lark" => Format::Lark(grammar),
                Some(Value::String(name)) if name == "gbnf" => Format::Gbnf(grammar),
                Some(other) => return Err(wrong(&at("syntax"), "\"lark\" or \"gbnf\"", &other)),
            })
        }
        "choice" => {
            let expected = format!("an array of 1 to {MAX_CHOICES} strings that are not empty");
            let choices = fields.take("choice").ok_or_else(|| missing("choice"))?;
            let texts = choices.as_array().filter(|texts| (1..=MAX_CHOICES).contains(&texts.len()));
            let text = |text: &Value| text.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
            let texts = texts.and_then(|texts| texts.iter().map(text).collect());
            Some(Format::Choice(texts.ok_or_else(|| wrong(&at("choice"), &expected, &choices))?))
        }
        _ => return Err(wrong(&at("type"), KINDS, &Value::String(kind))),
    })
}

/// A conversation of one user message, with the instructions of `system` before it.
pub fn conversation(system: Option<&str>, prompt: &str, enable_thinking: bool) -> Input {
    let message = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let messages = system.map(|text| message("system", text)).into_iter().chain([message("user", prompt)]).collect();
    Input::Chat { messages, tools: Value::Null, enable_thinking }
}

/// The messages of a conversation with every content as one string.
///
/// # Errors
///
/// When it is no array of messages with a known role and text for content.
pub fn messages(value: Option<Value>) -> Result<Value, InputError> {
    let messages = match value {
        Some(Value::Array(messages)) if (1..=MAX_MESSAGES).contains(&messages.len()) => messages,
        Some(other) => {
            return Err(wrong("messages", format_args!("an array of 1 to {MAX_MESSAGES} messages"), &other));
        }
        None => return Err(InputError::new("messages", "messages: missing")),
    };
    messages.into_iter().enumerate().map(|(at, value)| message(&format!("messages[{at}]"), value)).collect()
}

fn message(path: &str, value: Value) -> Result<Value, InputError> {
    let Value::Object(map) = value else { return Err(wrong(path, "an object", &value)) };
    let mut fields = Fields(map);
    let at = |field: &str| format!("{path}.{field}");
    let role = match fields.take("role") {
        Some(Value::String(role)) if matches!(role.as_str(), "system" | "user" | "assistant" | "tool") => role,
        // OpenAI's newer name of the same thing.
        Some(Value::String(role)) if role == "developer" => "system".into(),
        Some(other) => return Err(wrong(&at("role"), "system, developer, user, assistant or tool", &other)),
        None => return Err(InputError::new(at("role"), format!("{}: missing", at("role")))),
    };
    let calls = fields.take("tool_calls").filter(|_| role == "assistant");
    let calls = calls.map(|calls| tools::earlier(&at("tool_calls"), calls)).transpose()?.unwrap_or_default();
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(n, part)| text_part(&at(&format!("content[{n}]")), part))
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong(&at("content"), "a string or an array of text parts", &other)),
        None if !calls.is_empty() => String::new(),
        None => return Err(InputError::new(at("content"), format!("{}: missing", at("content")))),
    };
    let mut message = serde_json::json!({"role": role, "content": content});
    if role == "tool" {
        message["tool_call_id"] = match fields.take("tool_call_id") {
            Some(id @ Value::String(_)) => id,
            Some(other) => return Err(wrong(&at("tool_call_id"), "a string", &other)),
            None => return Err(InputError::new(at("tool_call_id"), format!("{}: missing", at("tool_call_id")))),
        };
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
        if let Some(Value::String(thought)) = fields.take("reasoning_content") {
            message["reasoning_content"] = Value::String(thought);
        }
    }
    Ok(message)
}

fn text_part(path: &str, part: Value) -> Result<String, InputError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err(wrong(&format!("{path}.text"), "a string", &part["text"])),
        _ => Err(wrong(&format!("{path}.type"), "\"text\", the only kind this model is served with", &part["type"])),
    }
}

/// The refusal of a field that OpenAI knows and this daemon does not offer.
pub fn unsupported(name: &str) -> InputError {
    InputError::new(name, format!("{name}: not supported by this server"))
}

/// The refusal of a value: what was expected and what was found, cut to a bearable length.
pub fn wrong(name: &str, expected: impl Display, found: &Value) -> InputError {
    let mut found = found.to_string();
    if found.len() > 80 {
        let cut = (0..=80).rev().find(|&at| found.is_char_boundary(at)).unwrap_or(0);
        found.truncate(cut);
        found.push('…');
    }
    InputError::new(name, format!("{name}: expected {expected}, found {found}"))
}

fn whole(message: String) -> InputError {
    InputError { message, param: None }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(json: &str) -> Result<Sampling, InputError> {
        Fields::parse(json.as_bytes()).and_then(|mut fields| fields.sampling())
    }

    #[test]
    fn sampling_fields_and_their_defaults() {
        assert_eq!(sampling("{}").unwrap(), Sampling::default());
        let json = r#"{"temperature":0,"top_k":40,"top_p":0.9,"min_p":0.05,"repetition_penalty":1.1,"seed":-1,
                       "presence_penalty":-0.5,"frequency_penalty":2,"logit_bias":{"7":-100},
                       "stop":"END","max_tokens":7,"max_completion_tokens":9,"unheard_of":[1]}"#;
        let expected = Sampling {
            temperature: Some(0.0),
            top_k: Some(40),
            top_p: Some(0.9),
            min_p: Some(0.05),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(-0.5),
            frequency_penalty: Some(2.0),
            logit_bias: vec![(7, -100.0)],
            seed: Some(u64::MAX),
            stop: vec!["END".into()],
            format: None,
            format_field: "",
            calls: false,
            logprobs: None,
            max_tokens: Some(9),
        };
        assert_eq!(sampling(json).unwrap(), expected);
    }

    #[test]
    fn refusals_name_field_range_and_finding() {
        for (json, param, words) in [
            (r#"{"temperature":"hot"}"#, "temperature", "from 0 to 2, found \"hot\""),
            (r#"{"temperature":2.5}"#, "temperature", "found 2.5"),
            (r#"{"top_p":0}"#, "top_p", "found 0"),
            (r#"{"max_tokens":0}"#, "max_tokens", "from 1"),
            (r#"{"max_tokens":1.5}"#, "max_tokens", "whole number"),
            (r#"{"presence_penalty":3}"#, "presence_penalty", "from -2 to 2"),
            (r#"{"logit_bias":{"a":1}}"#, "logit_bias", "token ids"),
            (r#"{"logit_bias":{"1":101}}"#, "logit_bias", "-100 to 100"),
            (r#"{"logit_bias":[]}"#, "logit_bias", "an object"),
            (r#"{"seed":"x"}"#, "seed", "64-bit"),
            (r#"{"stop":[""]}"#, "stop", "1 to 256"),
            (r#"{"stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"]}"#, "stop", "found 17"),
        ] {
            let error = sampling(json).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{json}");
            assert!(error.message.contains(words), "{json}: {}", error.message);
        }
        assert!(sampling("[]").unwrap_err().message.contains("an array"));
        assert!(sampling("{").unwrap_err().message.contains("not JSON"));
        assert!(sampling(&"[".repeat(100_000)).unwrap_err().message.contains("not JSON"));
    }

    #[test]
    fn forms_of_an_answer() {
        let form = |json: &str| sampling(&format!(r#"{{"response_format":{json}}}"#));
        let schema = serde_json::json!({"type": "object"});
        for (json, expected) in [
            (r#"{"type":"text"}"#, None),
            (r#"{"type":"json_object"}"#, Some(Format::Object)),
            (
                r#"{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"object"}}}"#,
                Some(Format::Schema(schema)),
            ),
            (r#"{"type":"regex","regex":"a+"}"#, Some(Format::Regex("a+".into()))),
            (r#"{"type":"grammar","grammar":"start: \"a\""}"#, Some(Format::Lark("start: \"a\"".into()))),
            (r#"{"type":"grammar","grammar":"root ::= \"a\""}"#, Some(Format::Gbnf("root ::= \"a\"".into()))),
            (r#"{"type":"grammar","grammar":"a ::= b","syntax":"lark"}"#, Some(Format::Lark("a ::= b".into()))),
            (r#"{"type":"grammar","grammar":"start: b","syntax":"gbnf"}"#, Some(Format::Gbnf("start: b".into()))),
            (r#""{\"type\":\"choice\",\"choice\":[\"on\"]}""#, Some(Format::Choice(vec!["on".into()]))),
        ] {
            assert_eq!(form(json).unwrap().format, expected, "{json}");
        }
        for (json, param) in [
            ("7", "response_format"),
            (r#""text""#, "response_format"),
            ("{}", "response_format.type"),
            (r#"{"type":"xml"}"#, "response_format.type"),
            (r#"{"type":"json_schema"}"#, "response_format.json_schema.schema"),
            (r#"{"type":"json_schema","json_schema":"x"}"#, "response_format.json_schema.schema"),
            (r#"{"type":"json_schema","json_schema":{"schema":[]}}"#, "response_format.json_schema.schema"),
            (r#"{"type":"regex","regex":1}"#, "response_format.regex"),
            (r#"{"type":"grammar","grammar":"a ::= b","syntax":"bnf"}"#, "response_format.syntax"),
            (r#"{"type":"choice","choice":[]}"#, "response_format.choice"),
            (r#"{"type":"choice","choice":["a",""]}"#, "response_format.choice"),
        ] {
            assert_eq!(form(json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
    }

    #[test]
    fn a_grammar_can_stand_alone() {
        let form = |json: &str| sampling(json).map(|sampling| (sampling.format, sampling.format_field));
        let gbnf = Some(Format::Gbnf("root ::= \"a\"".into()));
        assert_eq!(form(r#"{"grammar":"root ::= \"a\""}"#), Ok((gbnf.clone(), "grammar")));
        let beside = r#"{"grammar":"root ::= \"a\"","response_format":{"type":"text"}}"#;
        assert_eq!(form(beside), Ok((gbnf, "grammar")));
        assert_eq!(form(r#"{"grammar":"start: \"a\""}"#).unwrap().0, Some(Format::Lark("start: \"a\"".into())));
        assert_eq!(form(r#"{"grammar":""}"#), Ok((None, "")));
        let format = (Some(Format::Object), "response_format");
        assert_eq!(form(r#"{"grammar":"","response_format":{"type":"json_object"}}"#), Ok(format));
        for bad in [r#"{"grammar":7}"#, r#"{"grammar":"root ::= \"a\"","response_format":{"type":"json_object"}}"#] {
            assert_eq!(sampling(bad).unwrap_err().param.as_deref(), Some("grammar"), "{bad}");
        }
    }

    #[test]
    fn long_values_are_cut_in_refusals() {
        let json = format!(r#"{{"temperature":"{}"}}"#, "é".repeat(10_000));
        assert!(sampling(&json).unwrap_err().message.len() < 200);
    }

    #[test]
    fn contents_become_one_string() {
        let value = serde_json::json!([
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        ]);
        let expected = serde_json::json!([{"role": "system", "content": "short"}, {"role": "user", "content": "ab"}]);
        assert_eq!(messages(Some(value)).unwrap(), expected);
    }

    #[test]
    fn messages_are_refused_by_path() {
        for (json, param) in [
            (r#"[]"#, "messages"),
            (r#"["x"]"#, "messages[0]"),
            (r#"[{"content":"x"}]"#, "messages[0].role"),
            (r#"[{"role":"root","content":"x"}]"#, "messages[0].role"),
            (r#"[{"role":"tool","content":"x"}]"#, "messages[0].tool_call_id"),
            (r#"[{"role":"user"}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":[{"type":"image_url"}]}]"#, "messages[0].content[0].type"),
            (
                r#"[{"role":"user","content":"x"},{"role":"assistant","content":"y","tool_calls":{}}]"#,
                "messages[1].tool_calls",
            ),
        ] {
            let error = messages(Some(serde_json::from_str(json).unwrap())).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{json}");
        }
    }
}
