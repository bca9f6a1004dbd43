//! Token ids to pieces of text as they come.
//!
//! What has been handed out is never taken back: bytes wait until their character is complete, text waits while it may
//! be the beginning of a stop string, and thoughts go their own way.

use super::tokenizer::Tokenizer;
use super::tools::{Call, Marks, Written};

/// Stop strings of a request.
pub const MAX_STOPS: usize = 16;
/// Bytes in a stop string.
pub const MAX_STOP_BYTES: usize = 256;

const CHANNEL_NAME: &str = "thought\n";

/// A piece of an answer. Pieces of one kind, one after the other, are the whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// Of the answer itself.
    Text(String),
    /// Of what the model thinks between `<|channel>` and `<channel|>`.
    Thought(String),
    /// A whole call of a tool.
    Call(Call),
}

/// A stop string that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stop: expected at most {MAX_STOPS} strings of 1 to {MAX_STOP_BYTES} bytes, found {found}")]
pub struct StopError {
    /// What was found instead.
    pub found: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Channel {
    Text,
    /// At the start of a thought, where the name of the channel stands.
    Name,
    Thought,
    /// Between `<|tool_call>` and `<tool_call|>`.
    Call,
}

/// The text of one answer, token by token.
pub struct TextStream {
    stops: Vec<String>,
    open: Option<u32>,
    close: Option<u32>,
    /// Of calls, when they are to be read, and what the open one has so far.
    marks: Option<Marks>,
    written: Written,
    /// `<|tool_response>`: the model waits for what its calls give.
    response: Option<u32>,
    channel: Channel,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop string, or of the channel's name.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// For an answer in the vocabulary of `tokenizer` that ends at the first of `stops` in its text.
    ///
    /// # Errors
    ///
    /// Too many stop strings, an empty one, or one that is too long.
    pub fn new(tokenizer: &Tokenizer, stops: Vec<String>) -> Result<TextStream, StopError> {
        if stops.len() > MAX_STOPS {
            return Err(StopError { found: format!("{} strings", stops.len()) });
        }
        if let Some(stop) = stops.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return Err(StopError { found: format!("one of {} bytes", stop.len()) });
        }
        let (open, close) = (tokenizer.control_id("<|channel>"), tokenizer.control_id("<channel|>"));
        Ok(TextStream {
            stops,
            open,
            close,
            marks: None,
            written: Written::default(),
            response: None,
            channel: Channel::Text,
            bytes: Vec::new(),
            held: String::new(),
            stopped: false,
        })
    }

    /// Reads calls of tools out of the answer, which would else be text.
    pub fn with_calls(mut self, tokenizer: &Tokenizer) -> TextStream {
        self.marks = Marks::new(tokenizer);
        self.response = tokenizer.control_id("<|tool_response>");
        self
    }

    /// Whether what comes next is text of the answer.
    pub fn in_text(&self) -> bool {
        self.channel == Channel::Text
    }

    /// Whether what comes next belongs to a thought.
    pub fn in_thought(&self) -> bool {
        matches!(self.channel, Channel::Name | Channel::Thought)
    }

    /// Whether a stop string has come; the answer ends before it.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What can be said after token `id`. Control tokens are no text; after a stop string nothing is.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.stopped {
        } else if Some(id) == self.open && self.channel == Channel::Text {
            self.flush(&mut deltas);
            self.channel = Channel::Name;
        } else if Some(id) == self.close && matches!(self.channel, Channel::Name | Channel::Thought) {
            self.flush(&mut deltas);
            self.channel = Channel::Text;
        } else if self.channel == Channel::Call {
            self.write(tokenizer, id, &mut deltas);
        } else if self.channel == Channel::Text && self.marks.is_some_and(|marks| marks.open == id) {
            self.flush(&mut deltas);
            self.channel = Channel::Call;
        } else if Some(id) == self.response && self.channel == Channel::Text {
            self.flush(&mut deltas);
            self.stopped = true;
        } else {
            self.bytes.extend_from_slice(tokenizer.token_bytes(id));
            self.decode();
            self.release(&mut deltas);
        }
        deltas
    }

    /// What was held back, when no token follows.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.channel == Channel::Call {
            // Cut off: what is there is not lost.
            let text = format!("<|tool_call>{}", self.take_written().spell());
            self.say(text, &mut deltas);
        }
        self.flush(&mut deltas);
        deltas
    }

    fn take_written(&mut self) -> Written {
        self.channel = Channel::Text;
        std::mem::take(&mut self.written)
    }

    /// One more token of a call. What turns out to be none is text.
    fn write(&mut self, tokenizer: &Tokenizer, id: u32, deltas: &mut Vec<Delta>) {
        let Some(marks) = self.marks else { return };
        if id == marks.quote {
            self.written.quote();
        } else if id == marks.close {
            let written = self.take_written();
            match written.call() {
                Some(call) => deltas.push(Delta::Call(call)),
                None => self.say(format!("<|tool_call>{}<tool_call|>", written.spell()), deltas),
            }
        } else {
            self.written.push(tokenizer.token_bytes(id));
        }
    }

    /// Complete characters move from `bytes` to `held`; bytes that can never be one become U+FFFD.
    fn decode(&mut self) {
        let mut taken = 0;
        for chunk in self.bytes.utf8_chunks() {
            self.held.push_str(chunk.valid());
            taken += chunk.valid().len();
            let rest = &self.bytes[taken..];
            let incomplete = std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
            if chunk.invalid().is_empty() || (incomplete && rest.len() == chunk.invalid().len()) {
                break;
            }
            self.held.push('\u{fffd}');
            taken += chunk.invalid().len();
        }
        self.bytes.drain(..taken);
    }

    /// Hands out what cannot be the beginning of anything.
    fn release(&mut self, deltas: &mut Vec<Delta>) {
        if self.channel == Channel::Name {
            if CHANNEL_NAME.starts_with(&self.held) && self.held != CHANNEL_NAME {
                return;
            }
            if let Some(thought) = self.held.strip_prefix(CHANNEL_NAME) {
                self.held = thought.to_owned();
            }
            self.channel = Channel::Thought;
        }
        let ready = if self.channel == Channel::Thought { self.held.len() } else { self.cut_at_stop() };
        let rest = self.held.split_off(ready);
        let text = std::mem::replace(&mut self.held, rest);
        self.say(text, deltas);
        if self.stopped {
            self.held.clear();
            self.bytes.clear();
        }
    }

    /// How much of `held` stands before the stop string, or before what may become one. The stop string that is
    /// complete first counts, so that the result does not depend on how the text is cut into tokens.
    fn cut_at_stop(&mut self) -> usize {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)));
        if let Some((_, start)) = found.min() {
            self.stopped = true;
            return start;
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let possible = self.held.char_indices().map(|(at, _)| at).filter(|at| self.held.len() - at < longest);
        let mut possible = possible.filter(|at| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..])));
        possible.next().unwrap_or(self.held.len())
    }

    fn flush(&mut self, deltas: &mut Vec<Delta>) {
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.held.push('\u{fffd}');
            self.release(deltas);
        }
        let text = std::mem::take(&mut self.held);
        let is_name = self.channel == Channel::Name && text == CHANNEL_NAME.trim_end();
        if !is_name {
            self.say(text, deltas);
        }
    }

    fn say(&self, text: String, deltas: &mut Vec<Delta>) {
        if !text.is_empty() {
            deltas.push(if self.channel == Channel::Text { Delta::Text(text) } else { Delta::Thought(text) });
        }
    }
}
