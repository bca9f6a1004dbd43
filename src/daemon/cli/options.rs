//! What `emberd ask` and `emberd chat` have in common: the options of a request.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::super::error::Error;
use super::client::Socket;
use super::color::Color;

/// Longest schema or grammar that is read; the daemon takes less.
const MAX_FORM: u64 = 1 << 20;

#[derive(Args)]
pub(super) struct Options {
    /// Instructions that go before the prompt
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// Answer with JSON that the schema in this file accepts
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// Answer with text of the grammar in this file: llama.cpp's GBNF, or llguidance's dialect of Lark
    #[arg(long, value_name = "FILE", conflicts_with = "json_schema")]
    grammar: Option<PathBuf>,
    /// 0 always takes the most likely token
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Let the model think first; a terminal shows the thought, on standard error
    #[arg(long)]
    think: bool,
    /// Continue the conversation of this name, which the daemon keeps
    #[arg(long, value_name = "ID")]
    pub(super) session: Option<String>,
    /// What the request leaves out comes from this preset of the daemon's configuration
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    #[command(flatten)]
    pub(super) color: Color,
    #[command(flatten)]
    pub(super) socket: Socket,
}

impl Options {
    /// The fields of a request, without messages and session.
    pub(super) fn fields(&self) -> Result<Map<String, Value>, Error> {
        let format = match (&self.json_schema, &self.grammar) {
            (Some(path), _) => Some(schema(path)?),
            (None, Some(path)) => Some(json!({"type": "grammar", "grammar": form("--grammar", path)?})),
            (None, None) => None,
        };
        let fields = [
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("enable_thinking", self.think.then_some(Value::Bool(true))),
            ("preset", self.preset.clone().map(Value::from)),
            ("response_format", format),
        ];
        Ok(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    }
}

/// One message of `role`.
pub(super) fn message(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

/// What the API calls the schema in the file at `path`.
fn schema(path: &Path) -> Result<Value, Error> {
    let text = form("--json-schema", path)?;
    let schema: Value = serde_json::from_str(&text)
        .map_err(|error| Error::Usage(format!("--json-schema: {}: not a JSON schema: {error}", path.display())))?;
    Ok(json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}))
}

fn form(flag: &str, path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FORM).read_to_string(&mut text));
    read.map_err(|error| Error::Usage(format!("{flag}: {}: cannot read it: {error}", path.display())))?;
    Ok(text)
}
