//! A conversation to prompt text, by the checkpoint's own `chat_template.jinja`, and to token ids.
//!
//! Rendered as Hugging Face transformers renders it: Jinja2 with `trim_blocks` and `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now` and a `tojson` that escapes nothing for HTML.

mod mask;
mod python;
mod request;

use std::io::Read;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};

pub use request::{ChatRequest, MAX_DEPTH, MAX_MESSAGES, MAX_TEXT, MAX_TOOLS, MAX_VALUES, RequestError};

use super::tokenizer::{Segment, Tokenizer};
use mask::Mask;

/// Largest `chat_template.jinja` or `tokenizer_config.json` that is read; published ones have 17 and 2 KB.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// Longest template: parsing takes a stack frame or two for every operator of an expression.
const MAX_SOURCE: usize = 48 << 10;

/// A stack on which [`MAX_SOURCE`] bytes of nothing but operators can be parsed; who loads templates gives it to the
/// thread that does so. Only what is touched takes memory.
pub const STACK_BYTES: usize = 64 << 20;

/// Work that one render may do, in minijinja's unit: an instruction or 64 bytes, so also at most 256 MB. Gemma's template
/// passes with `MAX_MESSAGES` short messages (tested). Known gap: `{% set ns.s = ns.s + ns.s %}` on a list, 60 times, did
/// not end within a minute under minijinja 3.1; that takes such a template file, a request alone cannot do it.
const FUEL: u64 = 4_000_000;

/// The plain turn format, for checkpoints that come without a template.
const PLAIN: &str = "\
{{- bos_token -}}
{%- if tools -%}
    {{- raise_exception('tools need the chat_template.jinja of the checkpoint, which is missing') -}}
{%- endif -%}
{%- if enable_thinking is defined and enable_thinking -%}
    {{- raise_exception('thinking needs the chat_template.jinja of the checkpoint, which is missing') -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'tool' -%}
        {{- raise_exception('tool messages need the chat_template.jinja of the checkpoint, which is missing') -}}
    {%- endif -%}
    {%- set role = {'assistant': 'model', 'developer': 'system'}.get(message['role'], message['role']) -%}
    {{- '<|turn>' + role + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- else -%}
        {%- for part in message['content'] or [] -%}{{- part['text'] | trim -}}{%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{{- '<|turn>model\\n' -}}
";

/// Why a template was refused or a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file is there and cannot be read.
    #[error("{}: cannot read it: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The conversation is not one.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The template refused the conversation, failed, or did more work than any conversation needs.
    #[error("{}: {reason}", path.display())]
    Render {
        /// The template.
        path: PathBuf,
        /// The template's own message, or Jinja's.
        reason: String,
    },
}

/// A compiled chat template and the names of the special tokens that it may print.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    path: PathBuf,
    special: Vec<(String, String)>,
}

const NAME: &str = "chat";

/// The template of a checkpoint directory.
pub const TEMPLATE: &str = "chat_template.jinja";

/// What names the special tokens, and in older directories holds the template.
pub const CONFIG: &str = "tokenizer_config.json";

impl ChatTemplate {
    /// The template of a checkpoint directory: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`,
    /// else the plain turn format.
    ///
    /// # Errors
    ///
    /// A file is there and cannot be read, is too large, or is not Jinja or JSON.
    pub fn load(dir: &Path) -> Result<ChatTemplate, TemplateError> {
        ChatTemplate::from_texts(dir, read(&dir.join(TEMPLATE))?, read(&dir.join(CONFIG))?)
    }

    /// As [`ChatTemplate::load`], of the texts of the two files of `dir`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn from_texts(
        dir: &Path,
        mut source: Option<String>,
        config: Option<String>,
    ) -> Result<ChatTemplate, TemplateError> {
        let (mut path, config_path) = (dir.join(TEMPLATE), dir.join(CONFIG));
        let config = match config {
            None => serde_json::Value::Null,
            Some(text) => serde_json::from_str(&text).map_err(|error| TemplateError::File {
                path: config_path.clone(),
                reason: format!("not JSON: {error}"),
            })?,
        };
        if let (None, Some(inline)) = (&source, config["chat_template"].as_str()) {
            source = Some(inline.to_owned());
            path = config_path;
        }
        let mut special =
            vec![("bos_token".to_owned(), "<bos>".to_owned()), ("eos_token".to_owned(), "<eos>".to_owned())];
        for (name, value) in config.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token")) {
            if let Some(token) = value.as_str().or(value["content"].as_str()) {
                special.retain(|(other, _)| other != name);
                special.push((name.clone(), token.to_owned()));
            }
        }
        let source = source.unwrap_or_else(|| PLAIN.to_owned());
        if source.len() > MAX_SOURCE {
            let reason = format!("a template of {} bytes, expected at most {MAX_SOURCE}", source.len());
            return Err(TemplateError::File { path, reason });
        }
        ChatTemplate::new(source, path, special)
    }

    fn new(source: String, path: PathBuf, special: Vec<(String, String)>) -> Result<ChatTemplate, TemplateError> {
        let refused =
            |error: Error| TemplateError::File { path: path.clone(), reason: format!("not a Jinja template: {error}") };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(refused)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        python::install(&mut environment);
        environment.add_template_owned(NAME, source.clone()).map_err(refused)?;
        Ok(ChatTemplate { environment, source, path, special })
    }

    /// The prompt text of `request`, as the reference renders it. Text from the request stands in it as it came: what
    /// looks like a control token there is only safe in [`ChatTemplate::prompt`].
    ///
    /// # Errors
    ///
    /// The request is not a conversation, or the template refuses it.
    pub fn render(&self, request: &ChatRequest) -> Result<String, TemplateError> {
        request.validate()?;
        self.render_checked(request)
    }

    /// The prompt of `request` as token ids. Control tokens come from the template alone, never from the request.
    ///
    /// Every character that a control token begins or ends with is replaced in the request's strings before the
    /// template sees them, so the control tokens in what it prints are its own; what lies between is put back and
    /// encoded as plain text. Thoughts in earlier answers, which the template would drop, are dropped beforehand.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::render`].
    pub fn prompt(&self, request: &ChatRequest, tokenizer: &Tokenizer) -> Result<Vec<u32>, TemplateError> {
        request.validate()?;
        let stripped = request.without_thoughts();
        let mask = Mask::new(tokenizer, &stripped, &self.source)?;
        let rendered = self.render_checked(&mask.request(&stripped))?;
        let mut segments = tokenizer.split_controls(&rendered);
        for segment in &mut segments {
            if let Segment::Text(text) = segment {
                *text = mask.restore(text).into();
            }
        }
        Ok(tokenizer.encode_prompt(&segments))
    }

    fn render_checked(&self, request: &ChatRequest) -> Result<String, TemplateError> {
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", Value::from(Serde(&request.messages))),
            ("tools", Value::from(Serde(&request.tools))),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(true)),
        ];
        context.extend(self.special.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))));
        context.extend(request.enable_thinking.map(|on| ("enable_thinking", Value::from(on))));
        let render = || self.environment.get_template(NAME)?.render(Value::from_pairs(context));
        render().map_err(|error| {
            let reason = match error.kind() {
                ErrorKind::OutOfFuel => "rendering this conversation takes too much work".to_owned(),
                _ => error.to_string(),
            };
            TemplateError::Render { path: self.path.clone(), reason }
        })
    }
}

/// The text of a file, or `None` where there is no such file.
fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    let read = |source| TemplateError::Read { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // A FIFO would block at `open`.
        Ok(kind) if !kind.is_file() => return Err(read(std::io::Error::other("not a regular file"))),
        _ => {}
    }
    let file = std::fs::File::open(path).map_err(read)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("larger than {MAX_FILE_BYTES} bytes");
        return Err(TemplateError::File { path: path.to_owned(), reason });
    }
    Ok(Some(text))
}
