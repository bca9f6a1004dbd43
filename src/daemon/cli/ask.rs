//! `emberd ask`: a client of the socket. Hanging up is how it takes a request back, so Ctrl-C needs no protocol.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::super::error::Error;
use super::client;
use super::model::print;

/// Longest prompt that is read from standard input.
const MAX_PROMPT: u64 = 64 << 20;

/// Longest schema that is read; the daemon takes less.
const MAX_SCHEMA: u64 = 1 << 20;

#[derive(Args)]
pub(super) struct Ask {
    /// The prompt; read from standard input when absent
    prompt: Vec<String>,
    /// Print the whole answer as one JSON object when it is complete
    #[arg(long)]
    json: bool,
    /// Instructions that go before the prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of the answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// Answer with JSON that the schema in this file accepts
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// 0 always takes the most likely token
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Continue the conversation of this name, which the daemon keeps
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// What the request leaves out comes from this preset of the daemon's configuration
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Path of the daemon's socket
    #[arg(long, value_name = "PATH", env = "EMBERD__SOCKET__PATH", default_value = "/run/emberd/emberd.sock")]
    socket: PathBuf,
}

pub(super) fn run(ask: &Ask) -> Result<(), Error> {
    let body = ask.body()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::System("cannot start the I/O runtime", error))?.block_on(async {
        tokio::select! {
            result = ask.talk(body) => result,
            _ = tokio::signal::ctrl_c() => {
                Progress::new().clear();
                let _ = writeln!(std::io::stdout());
                Err(Error::Interrupted)
            }
        }
    })
}

impl Ask {
    fn body(&self) -> Result<Value, Error> {
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": self.prompt()?}));
        let mut body = json!({"messages": messages, "stream": !self.json});
        let options = [
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("session", self.session.clone().map(Value::from)),
            ("preset", self.preset.clone().map(Value::from)),
            ("response_format", self.json_schema.as_deref().map(response_format).transpose()?),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        Ok(body)
    }

    fn prompt(&self) -> Result<String, Error> {
        if !self.prompt.is_empty() {
            return Ok(self.prompt.join(" "));
        }
        if std::io::stdin().is_terminal() {
            return Err(Error::Usage("no prompt: give it as an argument or on standard input".into()));
        }
        let mut text = String::new();
        let read = std::io::stdin().take(MAX_PROMPT).read_to_string(&mut text);
        read.map_err(|error| Error::System("cannot read standard input", error))?;
        Ok(text)
    }

    async fn talk(&self, body: Value) -> Result<(), Error> {
        let mut body = client::request(&self.socket, "/v1/chat/completions", Some(body)).await?;
        if self.json {
            return print(&client::read_all(&mut body).await?);
        }
        stream_answer(&mut body).await
    }
}

/// What the API calls the schema in the file at `path`.
fn response_format(path: &Path) -> Result<Value, Error> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SCHEMA).read_to_string(&mut text));
    let place = path.display();
    read.map_err(|error| Error::Usage(format!("--json-schema: {place}: cannot read it: {error}")))?;
    let schema: Value = serde_json::from_str(&text)
        .map_err(|error| Error::Usage(format!("--json-schema: {place}: not a JSON schema: {error}")))?;
    Ok(json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}))
}

async fn stream_answer(body: &mut Incoming) -> Result<(), Error> {
    let mut progress = Progress::new();
    let mut buffer = Vec::new();
    let mut last_byte = b'\n';
    while let Some(chunk) = client::next_chunk(body).await? {
        buffer.extend_from_slice(&chunk);
        if buffer.len() > client::MAX_ANSWER {
            return Err(Error::Refused("the daemon sends a line without end".into()));
        }
        let Some(complete) = buffer.iter().rposition(|&byte| byte == b'\n') else { continue };
        let rest = buffer.split_off(complete + 1);
        let lines = String::from_utf8_lossy(&std::mem::replace(&mut buffer, rest)).into_owned();
        for line in lines.lines() {
            if let Some(comment) = line.strip_prefix(": ") {
                progress.show(comment);
            } else if line == "data: [DONE]" {
                progress.clear();
                return if last_byte == b'\n' { Ok(()) } else { print("\n") };
            } else if let Some(data) = line.strip_prefix("data: ") {
                let value: Value = serde_json::from_str(data).unwrap_or_default();
                if value["error"].is_object() {
                    progress.clear();
                    return Err(client::failure(&value));
                }
                let text = value["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                if let Some(&byte) = text.as_bytes().last() {
                    progress.clear();
                    last_byte = byte;
                    print(text)?;
                }
            }
        }
    }
    Err(Error::Refused("the daemon ended the connection before the answer was complete".into()))
}

/// One line on standard error, if that is a terminal.
struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal(), shown: false }
    }

    fn show(&mut self, text: &str) {
        if self.terminal {
            self.shown = true;
            let _ = write!(std::io::stderr(), "\r\x1b[K{text} ");
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
