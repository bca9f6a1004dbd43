//! From the sections `[[prefix]]` to tokens that the engine keeps on disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{Config, Prefix};
use crate::engine::generate::Engine;
use crate::engine::template::ChatRequest;
use crate::scheduler::backend::Sampling;
use crate::transport::fields::Fields;
use crate::transport::tools;

/// Longest file of instructions or tools.
const MAX_FILE: u64 = 1 << 20;

/// Pins what the configuration names.
///
/// # Errors
///
/// Naming the prefix and the file or key that cannot be used.
pub(super) fn pin(engine: &mut Engine, config: &Config) -> Result<(), String> {
    if config.prefix.is_empty() {
        return Ok(());
    }
    let context = engine.runner().context();
    let pins = config.prefix.iter().map(|prefix| {
        let named = |reason: String| format!("prefix {}: {reason}", prefix.name);
        let request = request(prefix).map_err(named)?;
        let tokens = engine.beginning(&request).map_err(|error| named(error.to_string()))?;
        match tokens.len() {
            0 => Err(named("the chat template puts nothing of it at the beginning of a prompt".into())),
            // The question and the answer have to fit, too.
            len if len + 2 > context => Err(named(format!(
                "it has {len} tokens, and the context holds {context}; raise `context` in the section [model]"
            ))),
            _ => Ok((prefix.name.clone(), tokens)),
        }
    });
    let pins = pins.collect::<Result<Vec<_>, String>>()?;
    engine.pin(&config.cache.prefix_dir, config.cache.disk_mb << 20, pins).map_err(|error| error.to_string())
}

/// The conversation of which only the beginning is known.
fn request(prefix: &Prefix) -> Result<ChatRequest, String> {
    let system = match &prefix.system_file {
        Some(file) => Some(read("system_file", file)?),
        None => prefix.system.clone(),
    };
    let tools = prefix.tools_file.as_deref().map(declarations).transpose()?;
    let messages = system.into_iter().map(|text| json!({"role": "system", "content": text})).collect();
    Ok(ChatRequest { messages, tools, enable_thinking: Some(prefix.enable_thinking) })
}

/// The tools in `file` as requests declare them to the template.
fn declarations(file: &Path) -> Result<Vec<Value>, String> {
    let named = |reason: String| format!("tools_file: {}: {reason}", file.display());
    let tools: Value = serde_json::from_str(&read("tools_file", file)?).map_err(|error| named(error.to_string()))?;
    let mut fields = Fields::from(Map::from_iter([("tools".to_owned(), tools)]));
    match tools::take(&mut fields, &mut Sampling::default(), tools::Shape::Chat) {
        Ok(Value::Array(tools)) => Ok(tools),
        Ok(_) => Err(named("there are no tools in it".into())),
        Err(error) => Err(named(error.message)),
    }
}

fn read(key: &str, file: &Path) -> Result<String, String> {
    let named = |reason: &dyn std::fmt::Display| format!("{key}: {}: {reason}", file.display());
    let mut text = String::new();
    let found = std::fs::metadata(file).map_err(|error| named(&error))?;
    if !found.is_file() || found.len() > MAX_FILE {
        return Err(named(&format_args!("expected a file of at most {MAX_FILE} bytes")));
    }
    let read = File::open(file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map_err(|error| named(&error))?;
    Ok(text)
}
