//! Answers that are sent while they are made. Dropping the body, as hyper does when the client hangs up, takes the
//! request back.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame};

use super::super::openai::{self, Envelope};
use super::super::responses::output::Output;
use super::super::sessions::Lease;
use super::super::waiting::Waiting;
use crate::scheduler::{Answer, Failure, Update};

/// A body that turns each update into bytes as soon as the client can take them.
pub(super) struct AnswerBody<F> {
    waiting: Waiting,
    first: Option<Update>,
    form: F,
    ended: bool,
    /// The session that the answer belongs to, and how its calls are numbered.
    session: Option<(Lease, String)>,
}

/// How updates look on the wire.
pub(super) trait Form: Unpin + Send + 'static {
    /// How a failure ends the body.
    type Error: Into<Box<dyn std::error::Error + Send + Sync>>;

    /// The bytes for an update, empty when it needs none.
    fn format(&mut self, update: &Update) -> Result<String, Self::Error>;
}

impl<F: Form> AnswerBody<F> {
    /// A body that starts with the update `first`.
    pub(super) fn new(waiting: Waiting, first: Update, form: F) -> AnswerBody<F> {
        AnswerBody { waiting, first: Some(first), form, ended: false, session: None }
    }

    /// The answer continues a session.
    pub(super) fn continuing(mut self, lease: Option<Lease>, number: &str) -> AnswerBody<F> {
        self.session = lease.map(|lease| (lease, number.to_owned()));
        self
    }
}

impl<F: Form> Body for AnswerBody<F> {
    type Data = Bytes;
    type Error = F::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, F::Error>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let update = match self.first.take() {
                Some(first) => first,
                None => match self.waiting.poll(context) {
                    Poll::Ready(update) => update,
                    Poll::Pending => return Poll::Pending,
                },
            };
            self.ended = update.ended.is_some();
            if let Some(result) = &update.ended
                && let Some((lease, number)) = self.session.take()
                && let Ok(answer) = result
            {
                lease.answered(answer, &number);
            }
            match self.form.format(&update) {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes.into())))),
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

/// The answer's text and nothing else. A failure after the first byte cuts the body off without its last chunk, which
/// every HTTP client reports (curl: exit code 18); there is no place in the text where it could be said.
pub(super) struct Plain;

impl Form for Plain {
    type Error = Failure;

    fn format(&mut self, update: &Update) -> Result<String, Failure> {
        match &update.ended {
            Some(Err(failure)) => Err(failure.clone()),
            _ => Ok(update.text.clone()),
        }
    }
}

/// Server-sent events in OpenAI's shape. Queue position and progress are comments, which its clients skip.
pub(super) struct Events {
    pub(super) envelope: Envelope,
    pub(super) include_usage: bool,
    pub(super) role_sent: bool,
    /// Characters of text sent so far.
    pub(super) offset: usize,
    /// Calls of tools sent so far.
    pub(super) calls: usize,
    /// What is told of the session.
    pub(super) session: Option<serde_json::Value>,
}

impl Form for Events {
    type Error = Infallible;

    fn format(&mut self, update: &Update) -> Result<String, Infallible> {
        let mut out = progress(update);
        let ended_well = matches!(update.ended, Some(Ok(_)));
        if !self.role_sent
            && (ended_well || !update.text.is_empty() || !update.thought.is_empty() || !update.calls.is_empty())
        {
            self.role_sent = true;
            self.envelope.role().iter().for_each(|role| data(&mut out, role));
        }
        if !update.thought.is_empty() {
            self.envelope.thought(&update.thought).iter().for_each(|thought| data(&mut out, thought));
        }
        if !update.text.is_empty() {
            data(&mut out, &self.envelope.text(&update.text, &update.logprobs, &mut self.offset));
        }
        if !update.calls.is_empty() {
            data(&mut out, &self.envelope.calls(self.calls, &update.calls));
            self.calls += update.calls.len();
        }
        match &update.ended {
            Some(Ok(answer)) => self.end(&mut out, answer),
            Some(Err(failure)) => {
                data(&mut out, &openai::failure(failure).1);
                out.push_str("data: [DONE]\n\n");
            }
            None => {}
        }
        Ok(out)
    }
}

/// The events of a response, each with its name.
pub(super) struct ResponseEvents(pub(super) Output);

impl Form for ResponseEvents {
    type Error = Infallible;

    fn format(&mut self, update: &Update) -> Result<String, Infallible> {
        let mut out = progress(update);
        for event in self.0.events(update) {
            let _ = writeln!(out, "event: {}", event["type"].as_str().unwrap_or_default());
            data(&mut out, &event);
        }
        Ok(out)
    }
}

/// What happens before the first word, as comments.
fn progress(update: &Update) -> String {
    let mut out = String::new();
    if let Some(ahead) = update.queued {
        let _ = write!(out, ": queued {ahead}\n\n");
    }
    if update.started.is_some() {
        out.push_str(": started\n\n");
    }
    if let Some((done, total)) = update.prefill {
        let _ = write!(out, ": prefill {done}/{total}\n\n");
    }
    out
}

impl Events {
    fn end(&self, out: &mut String, answer: &Answer) {
        let mut finish = self.envelope.finish(answer);
        if let Some(session) = &self.session {
            finish["session"] = session.clone();
        }
        data(out, &finish);
        if self.include_usage {
            data(out, &self.envelope.usage(answer));
        }
        out.push_str("data: [DONE]\n\n");
    }
}

fn data(out: &mut String, value: &serde_json::Value) {
    let _ = write!(out, "data: {value}\n\n");
}
