//! An answer as it comes: server-sent events of the daemon become text on standard output.

use std::io::{IsTerminal, Write};

use hyper::body::Incoming;
use serde_json::Value;

use super::super::error::Error;
use super::client;
use super::color::{Color, Paint};
use super::model::print;

/// Where an answer goes, and how.
pub(super) struct View {
    /// What a model says must not steer the terminal.
    tame: bool,
    errors: Paint,
    errors_terminal: bool,
}

/// What an answer's last piece says.
pub(super) struct Ended {
    /// Messages of the session before it.
    pub(super) known: u64,
    /// Whether it reached the most tokens.
    pub(super) cut: bool,
}

impl View {
    pub(super) fn new(color: &Color) -> View {
        View {
            tame: std::io::stdout().is_terminal(),
            errors: color.paint(&std::io::stderr()),
            errors_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Prints the answer in `body` to its end.
    pub(super) async fn stream(&self, body: &mut Incoming) -> Result<Ended, Error> {
        let mut printer = Printer { view: self, shown: Shown::Nothing, last_byte: b'\n' };
        let mut ended = Ended { known: 0, cut: false };
        let mut buffer = Vec::new();
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
                    printer.progress(comment);
                } else if line == "data: [DONE]" {
                    printer.end()?;
                    return Ok(ended);
                } else if let Some(data) = line.strip_prefix("data: ") {
                    printer.piece(&serde_json::from_str(data).unwrap_or_default(), &mut ended)?;
                }
            }
        }
        Err(Error::Refused("the daemon ended the connection before the answer was complete".into()))
    }
}

/// What the last thing on standard error is.
#[derive(PartialEq)]
enum Shown {
    Nothing,
    Progress,
    Thought,
}

struct Printer<'a> {
    view: &'a View,
    shown: Shown,
    last_byte: u8,
}

impl Printer<'_> {
    fn piece(&mut self, value: &Value, ended: &mut Ended) -> Result<(), Error> {
        if value["error"].is_object() {
            return Err(client::failure(value));
        }
        ended.known = value["session"]["known_messages"].as_u64().unwrap_or(ended.known);
        let choice = &value["choices"][0];
        ended.cut |= choice["finish_reason"] == "length";
        if let Some(thought) = choice["delta"]["reasoning_content"].as_str() {
            self.thought(thought);
        }
        let text = choice["delta"]["content"].as_str().unwrap_or_default();
        let Some(&byte) = text.as_bytes().last() else { return Ok(()) };
        self.clear();
        self.last_byte = byte;
        if self.view.tame { print(&tamed(text)) } else { print(text) }
    }

    /// One line on standard error, if that is a terminal.
    fn progress(&mut self, text: &str) {
        if self.view.errors_terminal && self.shown != Shown::Thought && self.last_byte == b'\n' {
            self.shown = Shown::Progress;
            let _ = write!(std::io::stderr(), "\r\x1b[K{} ", self.view.errors.dim(text));
        }
    }

    fn thought(&mut self, text: &str) {
        if self.view.errors_terminal {
            if self.shown == Shown::Progress {
                self.clear();
            }
            self.shown = Shown::Thought;
            let _ = write!(std::io::stderr(), "{}", self.view.errors.dim(&tamed(text)));
        }
    }

    fn clear(&mut self) {
        let _ = match std::mem::replace(&mut self.shown, Shown::Nothing) {
            Shown::Nothing => Ok(()),
            Shown::Progress => write!(std::io::stderr(), "\r\x1b[K"),
            Shown::Thought => writeln!(std::io::stderr()),
        };
    }

    /// The answer ends at the end of a line.
    fn end(&mut self) -> Result<(), Error> {
        self.clear();
        if std::mem::replace(&mut self.last_byte, b'\n') == b'\n' { Ok(()) } else { print("\n") }
    }
}

impl Drop for Printer<'_> {
    /// Also when the answer broke off.
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Without the characters that a terminal obeys.
fn tamed(text: &str) -> String {
    let obeyed = |character: char| character.is_control() && character != '\n' && character != '\t';
    text.chars().map(|character| if obeyed(character) { char::REPLACEMENT_CHARACTER } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::tamed;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(tamed("a\tb\né\x1b[31m\r\x07\u{9b}2J"), "a\tb\né\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}2J");
    }
}
