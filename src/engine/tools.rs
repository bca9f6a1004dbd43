//! Calls of tools in the family's form: `<|tool_call>call:name{key:<|"|>text<|"|>,other:[1,true]}<tool_call|>`.
//!
//! Texts stand between control tokens, so they need no escapes and nothing in them can end them. What comes out of the
//! model is read leniently; what is forced on it by a grammar has exactly this form.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::engine::tokenizer::Tokenizer;

/// Values inside each other that are read, and that a grammar follows a schema into.
pub const MAX_DEPTH: usize = 16;

/// Longest name of a function, in bytes.
pub const MAX_NAME: usize = 64;

/// Whether a function may have that name: one that every client and template knows.
pub fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(known)
}

/// A function that the model wants to have called.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name, as the model wrote it.
    pub name: String,
    /// The arguments by name.
    pub arguments: Map<String, Value>,
}

/// The ids of the control tokens that calls are made of.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// `<|tool_call>`.
    pub open: u32,
    /// `<tool_call|>`.
    pub close: u32,
    /// `<|"|>`.
    pub quote: u32,
}

impl Marks {
    /// Those of a vocabulary; `None` where one is missing.
    pub fn new(tokenizer: &Tokenizer) -> Option<Marks> {
        let id = |name| tokenizer.control_id(name);
        Some(Marks { open: id("<|tool_call>")?, close: id("<tool_call|>")?, quote: id("<|\"|>")? })
    }
}

/// What stands between `<|tool_call>` and `<tool_call|>`, token by token.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    bytes: Vec<u8>,
}

/// Stands for `<|"|>`; no UTF-8 text has it.
const QUOTE: u8 = 0xff;

impl Written {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        // A lone byte token may be 0xff; as text it would be U+FFFD like any other that is no UTF-8.
        self.bytes.extend(bytes.iter().map(|byte| if *byte == QUOTE { 0xfe } else { *byte }));
    }

    pub(super) fn quote(&mut self) {
        self.bytes.push(QUOTE);
    }

    /// The text, control tokens spelled.
    pub(super) fn spell(&self) -> String {
        let parts: Vec<_> = self.bytes.split(|byte| *byte == QUOTE).map(String::from_utf8_lossy).collect();
        parts.join("<|\"|>")
    }

    /// The call, when it is one.
    pub(super) fn call(&self) -> Option<Call> {
        let text = self.bytes.trim_ascii().strip_prefix(b"call:")?;
        let at = text.iter().position(|byte| *byte == b'{')?;
        let name = std::str::from_utf8(&text[..at]).ok()?.trim();
        let mut reader = Reader { rest: &text[at..] };
        let arguments = reader.object(MAX_DEPTH)?;
        reader.skip();
        (reader.rest.is_empty() && is_name(name)).then(|| Call { name: name.to_owned(), arguments })
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn take(&mut self, byte: u8) -> bool {
        self.skip();
        let found = self.rest.first() == Some(&byte);
        self.rest = &self.rest[usize::from(found)..];
        found
    }

    /// Everything before the first of `ends`, which stays.
    fn until(&mut self, ends: &[u8]) -> Option<&[u8]> {
        let at = self.rest.iter().position(|byte| ends.contains(byte))?;
        let (text, rest) = self.rest.split_at(at);
        self.rest = rest;
        Some(text)
    }

    /// Text to the closing quote.
    fn quoted(&mut self) -> Option<String> {
        let text = String::from_utf8_lossy(self.until(&[QUOTE])?).into_owned();
        self.take(QUOTE).then_some(text)
    }

    fn object(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut map = Map::new();
        if !self.take(b'{') {
            return None;
        }
        if self.take(b'}') {
            return Some(map);
        }
        loop {
            let key = if self.take(QUOTE) {
                self.quoted()?
            } else {
                let key = String::from_utf8_lossy(self.until(&[b':', b',', b'}', QUOTE])?).trim().to_owned();
                key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).map(str::to_owned).unwrap_or(key)
            };
            if key.is_empty() || !self.take(b':') {
                return None;
            }
            map.insert(key, self.value(depth - 1)?);
            if self.take(b'}') {
                return Some(map);
            }
            if !self.take(b',') {
                return None;
            }
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth == 0 {
            return None;
        }
        self.skip();
        match *self.rest.first()? {
            b'{' => self.object(depth).map(Value::Object),
            b'[' => self.list(depth).map(Value::Array),
            QUOTE => {
                self.take(QUOTE);
                self.quoted().map(Value::String)
            }
            _ => {
                let text = self.until(&[b',', b'}', b']', QUOTE])?.trim_ascii();
                let text = std::str::from_utf8(text).ok().filter(|text| !text.is_empty())?;
                Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
            }
        }
    }

    fn list(&mut self, depth: usize) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        if !self.take(b'[') {
            return None;
        }
        if self.take(b']') {
            return Some(items);
        }
        loop {
            items.push(self.value(depth - 1)?);
            if self.take(b']') {
                return Some(items);
            }
            if !self.take(b',') {
                return None;
            }
        }
    }
}

/// A grammar, in `llguidance`'s dialect of Lark, of one call of one of `tools` (OpenAI's declarations). Of a schema it knows
/// types, `properties`, `required`, `items`, `enum`, `const`, `nullable`, `anyOf`, `oneOf` and `$ref` within the schema, which is
/// what the official clients make of their data classes; other keywords are not enforced, nor is a schema within itself.
/// What it lets through nests no deeper than [`Written::call`] reads.
pub(super) fn lark(tools: &[Value], marks: Marks) -> String {
    let mut rules = Rules {
        text: String::new(),
        quote: marks.quote,
        count: 0,
        whole: &Value::Null,
        named: BTreeMap::new(),
        inside: Vec::new(),
    };
    let names: Vec<String> = tools.iter().map(|tool| rules.tool(&tool["function"])).collect();
    let (open, close, quote) = (marks.open, marks.close, marks.quote);
    let mut text = format!("start: <[{open}]> \"call:\" ({}) <[{close}]>\n", names.join(" | "));
    text += &rules.text;
    let _ = write!(
        text,
        "text: <[{quote}]> TEXT <[{quote}]>\n\
         any1: text | NUMBER | FLAG | NULL | \"[]\" | \"{{}}\"\n\
         TEXT: /(.|\\n)*/\n\
         KEY: /[A-Za-z_][A-Za-z0-9_]*/\n\
         INTEGER: /-?(0|[1-9][0-9]{{0,14}})/\n\
         NUMBER: /-?(0|[1-9][0-9]{{0,14}})(\\.[0-9]{{1,9}})?/\n\
         FLAG: \"true\" | \"false\"\n\
         NULL: \"null\"\n"
    );
    for depth in 2..MAX_DEPTH {
        let _ = writeln!(text, "any{depth}: text | NUMBER | FLAG | NULL | {} | {}", list(depth), anything(depth));
    }
    text
}

/// Any value that nests no deeper than `depth`, which is at least 1.
fn any(depth: usize) -> String {
    format!("any{depth}")
}

fn list_of(item: &str) -> String {
    format!("\"[\" ({item} (\",\" {item})*)? \"]\"")
}

/// A list of anything at this depth; only an empty one where nothing inside would be read.
fn list(depth: usize) -> String {
    if depth > 1 { list_of(&any(depth - 1)) } else { "\"[]\"".into() }
}

/// An object of anything at this depth.
fn anything(depth: usize) -> String {
    if depth <= 1 {
        return "\"{}\"".into();
    }
    let pair = format!("KEY \":\" {}", any(depth - 1));
    format!("\"{{\" ({pair} (\",\" {pair})*)? \"}}\"")
}

struct Rules<'a> {
    text: String,
    quote: u32,
    count: usize,
    /// The parameters of the tool, which references are into.
    whole: &'a Value,
    /// What references stand for by the depth at which they stand.
    named: BTreeMap<(&'a str, usize), String>,
    /// The references that are being followed.
    inside: Vec<&'a str>,
}

impl<'a> Rules<'a> {
    fn rule(&mut self, body: &str) -> String {
        self.count += 1;
        let _ = writeln!(self.text, "r{}: {body}", self.count);
        format!("r{}", self.count)
    }

    fn tool(&mut self, function: &'a Value) -> String {
        (self.whole, self.named) = (&function["parameters"], BTreeMap::new());
        let name = literal(function["name"].as_str().unwrap_or_default());
        let arguments = match &function["parameters"] {
            Value::Object(schema) => self.object(schema, MAX_DEPTH),
            _ => "\"{}\"".to_owned(),
        };
        self.rule(&format!("{name} {arguments}"))
    }

    fn quoted(&self, text: &str) -> String {
        let text = if text.is_empty() { String::new() } else { literal(text) };
        format!("<[{0}]> {text} <[{0}]>", self.quote)
    }

    /// `depth` counts as [`Reader::value`] does, and references and choices besides.
    fn value(&mut self, schema: &'a Value, depth: usize) -> String {
        let Value::Object(map) = schema else { return any(depth) };
        if let Some(Value::String(reference)) = map.get("$ref") {
            return self.reference(reference, depth);
        }
        let mut forms: Vec<String> = Vec::new();
        let one_of = ["anyOf", "oneOf"].iter().find_map(|name| map.get(*name)?.as_array()).filter(|_| depth > 1);
        if let Some(Value::Array(values)) = map.get("enum") {
            forms.extend(values.iter().filter_map(|value| self.constant(value)));
        } else if let Some(value) = map.get("const") {
            forms.extend(self.constant(value));
        } else if let Some(schemas) = one_of {
            forms.extend(schemas.iter().map(|schema| self.value(schema, depth - 1)));
        } else {
            match map.get("type") {
                Some(Value::String(name)) => forms.push(self.typed(name, map, depth)),
                Some(Value::Array(names)) => {
                    forms.extend(names.iter().filter_map(Value::as_str).map(|name| self.typed(name, map, depth)));
                }
                _ if map.contains_key("properties") => forms.push(self.object(map, depth)),
                _ => {}
            }
        }
        if forms.is_empty() {
            return any(depth);
        }
        if map.get("nullable") == Some(&Value::Bool(true)) {
            forms.push("NULL".into());
        }
        self.rule(&forms.join(" | "))
    }

    /// What stands at `reference`, one rule for each depth however often it is named there.
    fn reference(&mut self, reference: &'a str, depth: usize) -> String {
        let whole = self.whole;
        let schema = reference.strip_prefix('#').and_then(|path| whole.pointer(path));
        let Some(schema) = schema.filter(|_| depth > 1 && !self.inside.contains(&reference)) else {
            return any(depth);
        };
        if let Some(known) = self.named.get(&(reference, depth)) {
            return known.clone();
        }
        self.inside.push(reference);
        let rule = self.value(schema, depth - 1);
        self.inside.pop();
        self.named.insert((reference, depth), rule.clone());
        rule
    }

    fn typed(&mut self, name: &str, map: &'a Map<String, Value>, depth: usize) -> String {
        match name.to_ascii_lowercase().as_str() {
            "string" => "text".into(),
            "integer" => "INTEGER".into(),
            "number" => "NUMBER".into(),
            "boolean" => "FLAG".into(),
            "null" => "NULL".into(),
            "array" => match map.get("items").filter(|_| depth > 1) {
                Some(items) => list_of(&self.value(items, depth - 1)),
                None => list(depth),
            },
            "object" => self.object(map, depth),
            _ => any(depth),
        }
    }

    /// In the order of the names, as the family's template declares them; what is not required may be left out.
    fn object(&mut self, map: &'a Map<String, Value>, depth: usize) -> String {
        let Some(Value::Object(properties)) = map.get("properties").filter(|_| depth > 1) else {
            let none = map.get("additionalProperties") == Some(&Value::Bool(false));
            return if none { "\"{}\"".into() } else { anything(depth) };
        };
        let required = map.get("required").and_then(Value::as_array);
        let required = |name: &str| required.is_some_and(|names| names.iter().any(|other| other == name));
        let mut names: Vec<&String> = properties.keys().collect();
        names.sort();
        // From the last to the first: what may follow when nothing, or something, stands before.
        let (mut first, mut later) = ("\"}\"".to_owned(), "\"}\"".to_owned());
        for name in names.into_iter().rev() {
            let bare = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.$@/ ".contains(&byte));
            let key = if bare && name.trim() == name && !name.is_empty() { literal(name) } else { self.quoted(name) };
            let pair = format!("{key} \":\" {}", self.value(&properties[name], depth - 1));
            let (begin, go_on) = (format!("{pair} {later}"), format!("\",\" {pair} {later}"));
            let without = |rest: &str| if required(name) { String::new() } else { format!(" | {rest}") };
            (first, later) = (begin + &without(&first), go_on + &without(&later));
            (first, later) = (self.rule(&first), self.rule(&later));
        }
        format!("\"{{\" {first}")
    }

    fn constant(&self, value: &Value) -> Option<String> {
        match value {
            Value::String(text) => Some(self.quoted(text)),
            Value::Number(_) | Value::Bool(_) | Value::Null => Some(literal(&value.to_string())),
            _ => None,
        }
    }
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `"` stands for `<|"|>`.
    fn written(text: &str) -> Written {
        let mut written = Written::default();
        for (n, part) in text.split('"').enumerate() {
            if n > 0 {
                written.quote();
            }
            written.push(part.as_bytes());
        }
        written
    }

    fn read(text: &str) -> Option<(String, Value)> {
        written(text).call().map(|call| (call.name, Value::Object(call.arguments)))
    }

    #[test]
    fn calls_are_read() {
        for (text, name, arguments) in [
            ("call:f{}", "f", json!({})),
            ("call:set_light{level:30,room:\"kitchen\"}", "set_light", json!({"level": 30, "room": "kitchen"})),
            ("call:f{a:\"x}<,:{[]é\n\"}", "f", json!({"a": "x}<,:{[]é\n"})),
            ("call:f{a:\"\",b:-1.5e3,c:true,d:null}", "f", json!({"a": "", "b": -1.5e3, "c": true, "d": null})),
            (
                "call:f{l:[1,\"a\",[],{\"k\":{}}],o:{p:[false]}}",
                "f",
                json!({"l": [1, "a", [], {"k": {}}], "o": {"p": [false]}}),
            ),
            (" call: f { a : bare words , b:1 } ", "f", json!({"a": "bare words", "b": 1})),
        ] {
            assert_eq!(read(text), Some((name.to_owned(), arguments)), "{text}");
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        let deep = format!("call:f{{a:{}1{}}}", "[".repeat(40), "]".repeat(40));
        for text in [
            "",
            "call:",
            "f{}",
            "call:{}",
            "call:f",
            "call:f{",
            "call:f{a",
            "call:f{a:",
            "call:f{a:\"x",
            "call:f{a:\"x\"",
            "call:f{a:1,}",
            "call:f{:1}",
            "call:f{a:1}x",
            "call:f{a:[1,2}",
            "call:f{a:}",
            "call:f{a:\"x\"y}",
            "call:f{a:{}",
            "call:f{{}}",
            "call:get weather{}",
            "call:f(){}",
            "call:weather:get{}",
            "call:é{}",
            &deep,
            &format!("call:{}{{}}", "f".repeat(65)),
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(written("call:f{a:\"x").spell(), "call:f{a:<|\"|>x");
    }

    #[test]
    fn noise_never_panics_and_no_byte_is_taken_for_a_quote() {
        let mut rng = fastrand::Rng::with_seed(5);
        let alphabet = b"call:f{}[],:1\"\xff\xc3 -";
        for _ in 0..20_000 {
            let mut written = Written::default();
            written.push(b"call:f{");
            for _ in 0..rng.usize(..24) {
                match alphabet[rng.usize(..alphabet.len())] {
                    b'"' => written.quote(),
                    byte => written.push(&[byte]),
                }
            }
            let _ = (written.call(), written.spell());
        }
        let mut lone = Written::default();
        lone.push(b"call:f{a:\xffx\xff}");
        assert_eq!(lone.call(), None);
    }
}
