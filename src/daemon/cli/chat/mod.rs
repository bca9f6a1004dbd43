//! `emberd chat`: a conversation with the running daemon, whose session holds it. Nothing of it is kept here but the lines that
//! were typed.

mod history;
mod lines;

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::{Map, Value, json};

use self::lines::{Editor, Line, Plain};
use super::super::error::Error;
use super::answer::{Ended, View};
use super::client;
use super::color::Paint;
use super::model::print;
use super::options::{Options, message};

const HELP: &str = "\
/help         this
/reset        forget the conversation and begin a new one
/system TEXT  instructions from the next message on; without TEXT: say which there are
/quit         end, as Ctrl-D does
//…           a message that begins with /
Ctrl-C takes back the answer that is being written. What follows \" \" at the head of a line is not kept in the history.
";

const ABOUT: &str = "\
Lines are messages; /help shows the commands. The conversation is a session of the daemon: one that --session names goes on where it \
ended and is kept, any other is forgotten at the end. Without a terminal, lines of standard input are messages and commands \
alike, answers alone are printed, and the first failure ends it.

Lines are kept in $XDG_STATE_HOME/emberd/chat_history (~/.local/state/emberd/chat_history), the last 1,000, readable by their owner alone.
";

/// How long an answer that was just taken back may keep its session busy.
const LETTING_GO: (u32, Duration) = (30, Duration::from_millis(100));

#[derive(Args)]
#[command(after_help = format!("{ABOUT}\n{}", client::EXIT_CODES))]
pub(super) struct Chat {
    /// Neither read nor write the history of lines
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(chat: &Chat) -> Result<(), Error> {
    let mut talk = Talk::new(&chat.options)?;
    let result = if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        talk.with_a_person(!chat.no_history)
    } else {
        talk.with_a_program()
    };
    if chat.options.session.is_none() {
        // The daemon forgets it by itself some time.
        let _ = talk.forget();
    }
    result
}

/// One conversation.
struct Talk<'a> {
    options: &'a Options,
    fields: Map<String, Value>,
    view: View,
    session: String,
    system: Option<String>,
    /// Whether the daemon is known to have the session, so that forgetting it would be noticed.
    begun: bool,
    /// Whether the last answer was taken back a moment ago.
    cancelled: bool,
}

/// What a line asks for.
enum Wish<'a> {
    Say(&'a str),
    Help,
    Reset,
    System(&'a str),
    Quit,
    Nothing,
}

fn wish(line: &str) -> Result<Wish<'_>, Error> {
    let line = line.trim();
    let Some(command) = line.strip_prefix('/') else {
        return Ok(if line.is_empty() { Wish::Nothing } else { Wish::Say(line) });
    };
    if command.starts_with('/') {
        return Ok(Wish::Say(command));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    match (name, rest.trim()) {
        ("help", "") => Ok(Wish::Help),
        ("reset", "") => Ok(Wish::Reset),
        ("quit", "") => Ok(Wish::Quit),
        ("system", text) => Ok(Wish::System(text)),
        ("help" | "reset" | "quit", _) => Err(Error::Usage(format!("/{name}: nothing may follow"))),
        _ => Err(Error::Usage(format!("/{name}: no such command; there are /help, /reset, /system TEXT and /quit"))),
    }
}

fn new_session() -> String {
    format!("chat-{:016x}", fastrand::u64(..))
}

impl<'a> Talk<'a> {
    fn new(options: &'a Options) -> Result<Talk<'a>, Error> {
        Ok(Talk {
            options,
            fields: options.fields()?,
            view: View::new(&options.color),
            session: options.session.clone().unwrap_or_else(new_session),
            system: options.system.clone(),
            begun: false,
            cancelled: false,
        })
    }

    /// Lines from a terminal: what fails is said, and the conversation goes on.
    fn with_a_person(&mut self, history: bool) -> Result<(), Error> {
        let (out, errors) =
            (self.options.color.paint(&std::io::stdout()), self.options.color.paint(&std::io::stderr()));
        let models = client::runtime()?.block_on(async {
            client::read_all(&mut client::request(&self.options.socket.socket, "/v1/models", None).await?).await
        })?;
        let models: Value = serde_json::from_str(&models).unwrap_or_default();
        let model = models["data"][0]["id"].as_str().unwrap_or("a model without a name");
        note(out, &format!("{model}. /help shows the commands, Ctrl-D ends."))?;
        let mut editor = Editor::new(out, history)?;
        loop {
            let line = match editor.read()? {
                Line::Text(line) => line,
                Line::Interrupted => {
                    note(out, "Ctrl-D ends.")?;
                    continue;
                }
                Line::End => return Ok(()),
            };
            match wish(&line).and_then(|wish| self.obey(&wish, true, out)) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(Error::Interrupted) => note(out, "taken back")?,
                Err(error @ Error::Unread) => return Err(error),
                Err(error) => eprintln!("{}", errors.red(&format!("emberd: {error}"))),
            }
        }
    }

    /// Lines from anything else.
    fn with_a_program(&mut self) -> Result<(), Error> {
        let (mut lines, out) = (Plain::new(), self.options.color.paint(&std::io::stdout()));
        while let Line::Text(line) = lines.read()? {
            if self.obey(&wish(&line)?, false, out)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether that was all.
    fn obey(&mut self, wish: &Wish<'_>, person: bool, out: Paint) -> Result<bool, Error> {
        match wish {
            Wish::Nothing => {}
            Wish::Quit => return Ok(true),
            Wish::Help => print(HELP)?,
            Wish::System("") if person => {
                let told =
                    self.system.as_deref().map_or("no instructions".into(), |text| format!("instructions: {text}"));
                note(out, &told)?;
            }
            Wish::System("") => {}
            Wish::System(text) => self.system = Some((*text).to_owned()),
            Wish::Reset => {
                self.reset()?;
                if person {
                    note(out, "a new conversation")?;
                }
            }
            Wish::Say(text) => {
                let had_begun = self.begun;
                let ended = self.say(text, person)?;
                if person && ended.cut {
                    note(out, "(cut at the most tokens)")?;
                }
                if person && !had_begun && ended.known > 0 {
                    note(out, &format!("(goes on after {} earlier messages)", ended.known))?;
                }
            }
        }
        Ok(false)
    }

    fn reset(&mut self) -> Result<(), Error> {
        match self.forget() {
            // Nothing was said yet, or the daemon has forgotten it already.
            Ok(()) | Err(Error::Gone(_)) if self.options.session.is_none() => self.session = new_session(),
            Ok(()) => {}
            Err(Error::Gone(_)) if !self.begun => {}
            Err(Error::Gone(message)) => {
                self.begun = false;
                return Err(Error::Gone(message));
            }
            Err(error) => return Err(error),
        }
        self.begun = false;
        Ok(())
    }

    fn forget(&self) -> Result<(), Error> {
        let path = format!("/v1/sessions/{}", self.session);
        client::runtime()?.block_on(client::send(&self.options.socket.socket, Method::DELETE, &path, None)).map(drop)
    }

    /// One message and its answer. Only a person takes an answer back by Ctrl-C and goes on.
    fn say(&mut self, text: &str, person: bool) -> Result<Ended, Error> {
        let mut body = self.fields.clone();
        let system = self.system.as_deref().map(|text| message("system", text));
        body.insert("messages".into(), system.into_iter().chain([message("user", text)]).collect());
        body.insert("stream".into(), json!(true));
        body.insert("session".into(), json!({"id": self.session, "resume": self.begun}));
        // Dropped with its connection at the end: the daemon learns at once that nobody listens any more.
        let result = client::runtime()?.block_on(async {
            if !person {
                return self.exchange(body).await;
            }
            tokio::select! {
                result = self.exchange(body) => result,
                _ = tokio::signal::ctrl_c() => Err(Error::Interrupted),
            }
        });
        self.cancelled = matches!(result, Err(Error::Interrupted));
        match result {
            Ok(ended) => {
                self.begun = true;
                Ok(ended)
            }
            Err(Error::Gone(message)) if self.begun => {
                self.begun = false;
                let what = message.split(';').next().unwrap_or_default();
                Err(Error::Gone(format!(
                    "{what}. It was idle for too long, others took its room, or the daemon was started again. Nothing \
                     was answered; the next message begins a new conversation under this name"
                )))
            }
            Err(Error::SessionBusy(_)) => Err(Error::SessionBusy(format!(
                "session {}: another program waits for its answer; try again after that, or take another --session",
                self.session
            ))),
            Err(error) => Err(error),
        }
    }

    async fn exchange(&self, body: Map<String, Value>) -> Result<Ended, Error> {
        let (mut tries, pause) = if self.cancelled { LETTING_GO } else { (0, Duration::ZERO) };
        loop {
            let body = Some(Value::Object(body.clone()));
            match client::request(&self.options.socket.socket, "/v1/chat/completions", body).await {
                Err(Error::SessionBusy(_)) if tries > 0 => {
                    tries -= 1;
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
                Ok(mut body) => return self.view.stream(&mut body).await,
            }
        }
    }
}

/// What emberd says, not the model.
fn note(out: Paint, text: &str) -> Result<(), Error> {
    print(&format!("{}\n", out.dim(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let said = |line| match wish(line) {
            Ok(Wish::Say(text)) => format!("say {text}"),
            Ok(Wish::System(text)) => format!("system {text}"),
            Ok(Wish::Help) => "help".into(),
            Ok(Wish::Reset) => "reset".into(),
            Ok(Wish::Quit) => "quit".into(),
            Ok(Wish::Nothing) => "nothing".into(),
            Err(error) => error.to_string(),
        };
        for (line, expected) in [
            (" hi there ", "say hi there"),
            ("  ", "nothing"),
            ("//etc/passwd", "say /etc/passwd"),
            ("/help", "help"),
            ("/reset ", "reset"),
            ("/quit", "quit"),
            ("/system  be brief ", "system be brief"),
            ("/system", "system "),
            ("/quit now", "/quit: nothing may follow"),
        ] {
            assert_eq!(said(line), expected, "{line}");
        }
        assert!(said("/exit").contains("no such command; there are /help"));
    }
}
