//! `emberd ask`: a client of the socket. Hanging up is how it takes a request back, so Ctrl-C needs no protocol.

use std::io::{IsTerminal, Read};

use clap::Args;
use serde_json::{Value, json};

use super::super::error::Error;
use super::answer::View;
use super::client;
use super::model::print;
use super::options::{Options, message};

/// Longest prompt that is read from standard input.
const MAX_PROMPT: u64 = 64 << 20;

#[derive(Args)]
#[command(after_help = client::EXIT_CODES)]
pub(super) struct Ask {
    /// The prompt; read from standard input when absent
    prompt: Vec<String>,
    /// Print the whole answer as one JSON object when it is complete
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(ask: &Ask) -> Result<(), Error> {
    let body = ask.body()?;
    client::runtime()?.block_on(async {
        tokio::select! {
            result = ask.talk(body) => result,
            _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
        }
    })
}

impl Ask {
    fn body(&self) -> Result<Value, Error> {
        let mut body = self.options.fields()?;
        let system = self.options.system.as_deref().map(|text| message("system", text));
        let prompt = message("user", &self.prompt()?);
        body.insert("messages".into(), system.into_iter().chain([prompt]).collect());
        body.insert("stream".into(), json!(!self.json));
        if let Some(session) = &self.options.session {
            body.insert("session".into(), json!(session));
        }
        Ok(body.into())
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
        let mut body = client::request(&self.options.socket.socket, "/v1/chat/completions", Some(body)).await?;
        if self.json {
            return print(&client::read_all(&mut body).await?);
        }
        View::new(&self.options.color).stream(&mut body).await.map(drop)
    }
}
