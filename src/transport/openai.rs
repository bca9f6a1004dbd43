//! OpenAI's chat completions and completions as JSON, without I/O.

use std::sync::Arc;

use serde_json::{Value, json};

use super::fields::{Fields, messages, unsupported, wrong};
use super::preset::Presets;
use super::sessions::Session;
use super::tools::Shape;
use super::{logprobs, tools};
use crate::scheduler::backend::{Call, Finish, Input, InputError, Logprob, MAX_TOP, Sampling, Vocabulary};
use crate::scheduler::{Answer, Code, Failure};

/// Fields of the API that change the answer in ways this daemon does not offer, and the values that are harmless.
const UNSUPPORTED: [(&str, &[&str]); 8] = [
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("n", &["1"]),
    ("best_of", &["1"]),
    ("modalities", &["[\"text\"]"]),
    ("audio", &[]),
    ("prediction", &[]),
    ("web_search_options", &[]),
];

/// The same of `POST /v1/completions` alone.
const UNSUPPORTED_TEXT: [(&str, &[&str]); 2] = [("echo", &["false"]), ("suffix", &["\"\""])];

/// What `reasoning_effort` can be. The model knows no degrees: it thinks or does not.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

pub(super) fn refuse(fields: &mut Fields, unsupported_fields: &[(&str, &[&str])]) -> Result<(), InputError> {
    for (name, harmless) in unsupported_fields {
        if fields.take(name).is_some_and(|value| !harmless.contains(&value.to_string().as_str())) {
            return Err(unsupported(name));
        }
    }
    Ok(())
}

/// `stream`, and whether `stream_options` want the token counts.
fn streaming(fields: &mut Fields) -> Result<(bool, bool), InputError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = match fields.take("stream_options") {
        None => false,
        Some(Value::Object(_)) if !stream => {
            return Err(InputError::new("stream_options", "stream_options: allowed only with \"stream\": true"));
        }
        Some(options) => options["include_usage"].as_bool().unwrap_or(false),
    };
    Ok((stream, include_usage))
}

/// Whether the model may think first: `enable_thinking`, or OpenAI's name of it, at `path`.
pub(super) fn thinking(fields: &mut Fields, path: &str, effort: Option<Value>) -> Result<bool, InputError> {
    let flag = fields.flag("enable_thinking")?;
    let Some(effort) = effort else { return Ok(flag.unwrap_or(false)) };
    let known = effort.as_str().filter(|effort| EFFORTS.contains(effort));
    let wanted = known.ok_or_else(|| wrong(path, EFFORTS.join(", "), &effort))? != "none";
    if flag.is_some_and(|flag| flag != wanted) {
        return Err(InputError::new(path, format!("{path}: says something else than enable_thinking")));
    }
    Ok(wanted)
}

/// How many alternatives a chat wants to hear of with every token, if it wants to hear how likely they were.
fn chat_logprobs(fields: &mut Fields) -> Result<Option<usize>, InputError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    match fields.integer("top_logprobs", 0..=MAX_TOP as u64)? {
        Some(1..) if !wanted => Err(InputError::new("top_logprobs", "top_logprobs: only with \"logprobs\": true")),
        top => Ok(wanted.then_some(top.unwrap_or(0) as usize)),
    }
}

/// A parsed `POST /v1/chat/completions` or `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The conversation.
    pub input: Input,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether the answer is wanted in pieces.
    pub stream: bool,
    /// Whether a last piece with the token counts is wanted.
    pub include_usage: bool,
    /// The conversation that it continues.
    pub session: Option<Session>,
}

impl ChatRequest {
    /// Reads a request body.
    ///
    /// # Errors
    ///
    /// Naming the field that is missing, malformed or not supported.
    pub fn parse(body: &[u8]) -> Result<ChatRequest, InputError> {
        ChatRequest::parse_with(body, &Presets::default())
    }

    /// As [`ChatRequest::parse`]; what the request leaves out comes from the preset that its field `preset` names.
    ///
    /// # Errors
    ///
    /// As there, and a preset that there is not.
    pub fn parse_with(body: &[u8], presets: &Presets) -> Result<ChatRequest, InputError> {
        let mut fields = Fields::parse(body)?;
        let most = presets.apply(&mut fields)?;
        refuse(&mut fields, &UNSUPPORTED)?;
        let (stream, include_usage) = streaming(&mut fields)?;
        let effort = fields.take("reasoning_effort");
        let enable_thinking = thinking(&mut fields, "reasoning_effort", effort)?;
        let messages = messages(fields.take("messages"))?;
        let session = Session::take(&mut fields)?;
        let mut sampling = fields.sampling()?;
        sampling.max_tokens = most.into_iter().chain(sampling.max_tokens).min();
        sampling.logprobs = chat_logprobs(&mut fields)?;
        let tools = tools::take(&mut fields, &mut sampling, Shape::Chat)?;
        Ok(ChatRequest {
            input: Input::Chat { messages, tools, enable_thinking },
            sampling,
            stream,
            include_usage,
            session,
        })
    }

    /// Reads the body of `POST /v1/completions`: a `prompt` that the model continues, without a template.
    ///
    /// # Errors
    ///
    /// As [`ChatRequest::parse`].
    pub fn parse_text(body: &[u8]) -> Result<ChatRequest, InputError> {
        let mut fields = Fields::parse(body)?;
        refuse(&mut fields, &UNSUPPORTED)?;
        refuse(&mut fields, &UNSUPPORTED_TEXT)?;
        let (stream, include_usage) = streaming(&mut fields)?;
        let prompt = match fields.take("prompt") {
            Some(Value::String(text)) => text,
            Some(Value::Array(texts)) if matches!(texts[..], [Value::String(_)]) => {
                texts[0].as_str().unwrap_or_default().to_owned()
            }
            Some(other) => return Err(wrong("prompt", "a string, or an array of one", &other)),
            None => return Err(InputError::new("prompt", "prompt: missing")),
        };
        let logprobs = fields.integer("logprobs", 0..=MAX_TOP as u64)?.map(|top| top as usize);
        let sampling = Sampling { logprobs, ..fields.sampling()? };
        Ok(ChatRequest { input: Input::Raw(prompt), sampling, stream, include_usage, session: None })
    }
}

/// What completions and their pieces are called.
const TEXT_OBJECT: &str = "text_completion";

/// Whose shape an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    Chat,
    /// Text only.
    Text,
}

/// What all pieces of one answer have in common.
#[derive(Clone)]
pub struct Envelope {
    /// Of chat or text.
    pub kind: Kind,
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// For who asked how likely the tokens were.
    pub words: Option<Arc<dyn Vocabulary>>,
}

impl Envelope {
    /// The whole answer.
    pub fn completion(&self, answer: &Answer) -> Value {
        if self.kind == Kind::Text {
            let mut value = self.piece(&answer.text, &answer.logprobs, &mut 0, Some(finish(answer)));
            count(&mut value, answer);
            return value;
        }
        let mut message = json!({"role": "assistant", "content": answer.text});
        if !answer.thought.is_empty() {
            message["reasoning_content"] = json!(answer.thought);
        }
        if !answer.calls.is_empty() {
            message["tool_calls"] = tools::calls(self.number(), 0, &answer.calls);
            if answer.text.is_empty() {
                message["content"] = Value::Null;
            }
        }
        let logprobs = self.logprobs(&answer.logprobs);
        let choice = json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish(answer)});
        let mut value = self.object("chat.completion", json!([choice]));
        count(&mut value, answer);
        value
    }

    /// The first piece: who speaks. Text has no speaker.
    pub fn role(&self) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| self.chunk(json!({"role": "assistant", "content": ""}), None))
    }

    /// A piece of the answer, whose tokens have their places `offset` characters after its beginning.
    pub fn text(&self, text: &str, tokens: &[Logprob], offset: &mut usize) -> Value {
        match self.kind {
            Kind::Chat => {
                let mut chunk = self.chunk(json!({"content": text}), None);
                if self.words.is_some() {
                    chunk["choices"][0]["logprobs"] = self.logprobs(tokens);
                }
                chunk
            }
            Kind::Text => self.piece(text, tokens, offset, None),
        }
    }

    /// Null where nobody asked.
    fn logprobs(&self, tokens: &[Logprob]) -> Value {
        let Some(words) = &self.words else { return Value::Null };
        json!({"content": logprobs::content(words.as_ref(), tokens), "refusal": null})
    }

    /// A piece of what the model thinks, for which text has no place.
    pub fn thought(&self, text: &str) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| self.chunk(json!({"reasoning_content": text}), None))
    }

    /// Calls of tools, each whole; `first` went before.
    pub fn calls(&self, first: usize, calls: &[Call]) -> Value {
        let mut calls = tools::calls(self.number(), first, calls);
        let indexed = calls.as_array_mut().into_iter().flatten().zip(first..);
        indexed.for_each(|(call, index)| call["index"] = json!(index));
        self.chunk(json!({"tool_calls": calls}), None)
    }

    /// The id without what it is the id of.
    fn number(&self) -> &str {
        self.id.split_once('-').map_or(&self.id, |(_, number)| number)
    }

    /// The piece that says why the answer ended.
    pub fn finish(&self, answer: &Answer) -> Value {
        match self.kind {
            Kind::Chat => self.chunk(json!({}), Some(finish(answer))),
            Kind::Text => self.piece("", &[], &mut 0, Some(finish(answer))),
        }
    }

    /// The piece with the token counts.
    pub fn usage(&self, answer: &Answer) -> Value {
        let object = if self.kind == Kind::Chat { "chat.completion.chunk" } else { TEXT_OBJECT };
        let mut value = self.object(object, json!([]));
        count(&mut value, answer);
        value
    }

    fn piece(&self, text: &str, tokens: &[Logprob], offset: &mut usize, finish: Option<&str>) -> Value {
        let words = self.words.as_ref().filter(|_| !text.is_empty());
        let logprobs = words.map_or(Value::Null, |words| logprobs::text(words.as_ref(), tokens, offset));
        let choice = json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish});
        self.object(TEXT_OBJECT, json!([choice]))
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Value {
        self.object("chat.completion.chunk", json!([{"index": 0, "delta": delta, "finish_reason": finish}]))
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }
}

fn count(value: &mut Value, answer: &Answer) {
    value["usage"] = usage(answer);
    value["seed"] = json!(answer.seed);
    value["timings"] = timings(answer);
}

/// `stop`, `length` or `tool_calls`.
pub fn finish(answer: &Answer) -> &'static str {
    match answer.finish {
        Finish::Stop if !answer.calls.is_empty() => "tool_calls",
        Finish::Stop | Finish::Cancelled => "stop",
        Finish::Length => "length",
    }
}

/// Token counts.
pub fn usage(answer: &Answer) -> Value {
    let (prompt, completion) = (answer.prompt_tokens, answer.completion_tokens);
    let mut details = json!({"cached_tokens": answer.cached_tokens});
    if let Some(at) = answer.broken_at {
        details["broken_at"] = json!(at);
    }
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": answer.thought_tokens},
    })
}

/// Where the time went, in milliseconds and tokens per second.
pub fn timings(answer: &Answer) -> Value {
    let t = &answer.timings;
    let round = |x: f64| (x * 100.0).round() / 100.0;
    json!({
        "queue_ms": t.queue.as_millis() as u64,
        "prefill_ms": t.prefill.as_millis() as u64,
        "decode_ms": t.decode.as_millis() as u64,
        "prefill_per_s": round(t.prefill_per_s),
        "decode_per_s": round(t.decode_per_s),
    })
}

/// Status and body of a failure.
pub fn failure(failure: &Failure) -> (u16, Value) {
    let (status, code) = match failure.code {
        Code::BadRequest => (400, failure.code.name()),
        Code::SessionBusy => (409, failure.code.name()),
        Code::SessionGone => (410, failure.code.name()),
        Code::DuplicateMismatch => (422, failure.code.name()),
        // The name that OpenAI's clients know.
        Code::TooLarge => (400, "context_length_exceeded"),
        // As a 5xx it would be asked again by OpenAI's clients.
        Code::Cancelled => (499, failure.code.name()),
        Code::Busy | Code::ShuttingDown | Code::Overheated | Code::LowMemory => (503, failure.code.name()),
        Code::Expired => (504, failure.code.name()),
        Code::Internal => (500, failure.code.name()),
    };
    (status, error(status, code, &failure.message, failure.param.as_deref()))
}

/// An error in OpenAI's shape.
pub fn error(status: u16, code: &str, message: &str, param: Option<&str>) -> Value {
    let kind = if status < 500 { "invalid_request_error" } else { "server_error" };
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(extra: &str) -> Result<ChatRequest, InputError> {
        ChatRequest::parse(
            format!(r#"{{"model":"any","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#).as_bytes(),
        )
    }

    #[test]
    fn known_and_unsupported_fields_are_refused_by_name() {
        for (extra, param) in [
            (r#","tools":[{"type":"function"}]"#, "tools[0].function.name"),
            (r#","tool_choice":"required""#, "tool_choice"),
            (r#","response_format":{"type":"xml"}"#, "response_format.type"),
            (r#","logprobs":1"#, "logprobs"),
            (r#","top_logprobs":2"#, "top_logprobs"),
            (r#","logprobs":true,"top_logprobs":21"#, "top_logprobs"),
            (r#","reasoning_effort":"much""#, "reasoning_effort"),
            (r#","reasoning_effort":"low","enable_thinking":false"#, "reasoning_effort"),
            (r#","n":2"#, "n"),
            (r#","logit_bias":{"1":500}"#, "logit_bias"),
            (r#","audio":{}"#, "audio"),
            (r#","presence_penalty":5"#, "presence_penalty"),
            (r#","stream_options":{"include_usage":true}"#, "stream_options"),
            (r#","stream":"yes""#, "stream"),
        ] {
            assert_eq!(with(extra).unwrap_err().param.as_deref(), Some(param), "{extra}");
        }
    }

    #[test]
    fn harmless_values_and_unknown_fields_pass() {
        let plain = with("").unwrap();
        assert!(!plain.stream && !plain.include_usage);
        let extra = r#","tools":[],"n":1,"response_format":{"type":"text"},"logprobs":false,"user":"u","logit_bias":{},
                      "tool_choice":null,"anything":{"else":[]}"#;
        assert_eq!(with(extra).unwrap(), plain);
        assert_eq!(with(r#","top_logprobs":0,"reasoning_effort":"none""#).unwrap(), plain);
        let told = |extra: &str| with(extra).unwrap().sampling.logprobs;
        assert_eq!(told(r#","logprobs":true"#), Some(0));
        assert_eq!(told(r#","logprobs":true,"top_logprobs":20"#), Some(20));
        let thinks = with(r#","reasoning_effort":"low","enable_thinking":true"#).unwrap().input;
        assert!(matches!(thinks, Input::Chat { enable_thinking: true, .. }));
        let streamed =
            with(r#","stream":true,"stream_options":{"include_usage":true},"enable_thinking":true"#).unwrap();
        assert!(streamed.stream && streamed.include_usage);
        assert!(matches!(streamed.input, Input::Chat { enable_thinking: true, .. }));
    }

    #[test]
    fn texts_to_continue_are_read() {
        let read = |json: &str| ChatRequest::parse_text(json.as_bytes());
        let plain = read(r#"{"prompt":"a","max_tokens":3,"echo":false,"suffix":"","anything":1}"#).unwrap();
        assert_eq!((plain.input, plain.sampling.max_tokens, plain.stream), (Input::Raw("a".into()), Some(3), false));
        assert_eq!(read(r#"{"prompt":["b"]}"#).unwrap().input, Input::Raw("b".into()));
        assert_eq!(read(r#"{"prompt":"a","logprobs":0}"#).unwrap().sampling.logprobs, Some(0));
        for (json, param) in [
            ("{}", "prompt"),
            (r#"{"prompt":["a","b"]}"#, "prompt"),
            (r#"{"prompt":[1,2]}"#, "prompt"),
            (r#"{"prompt":"a","echo":true}"#, "echo"),
            (r#"{"prompt":"a","suffix":"b"}"#, "suffix"),
            (r#"{"prompt":"a","logprobs":21}"#, "logprobs"),
            (r#"{"prompt":"a","logprobs":true}"#, "logprobs"),
            (r#"{"prompt":"a","best_of":2}"#, "best_of"),
        ] {
            assert_eq!(read(json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
    }

    #[test]
    fn failures_have_openais_shape() {
        let busy = Failure { retry_after_s: Some(3), ..Failure::new(Code::Busy, "full") };
        let (status, body) = failure(&busy);
        assert_eq!(status, 503);
        assert_eq!(body, json!({"error": {"message": "full", "type": "server_error", "param": null, "code": "busy"}}));
        assert_eq!(failure(&Failure::new(Code::TooLarge, "")).0, 400);
    }
}
