//! Requests and their answers, as plain data.

use std::time::{Duration, Instant};

use super::backend::{Call, Finish, Input, InputError, Logprob, Sampling};

/// A prompt with everything that is needed to answer it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name for the logs; prompts themselves are never logged.
    pub id: String,
    /// Who asks, for fairness: whoever has fewer requests before this one goes first. `None` are all those whom the
    /// transport cannot tell apart.
    pub client: Option<String>,
    /// Which requests go before which, whoever asks.
    pub priority: Priority,
    /// The prompt.
    pub input: Input,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When the answer is no longer wanted.
    pub deadline: Option<Instant>,
}

/// Which requests go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Priority {
    /// Before all others.
    High,
    /// In the order of arrival, clients taking turns.
    #[default]
    Normal,
    /// When nothing else waits.
    Low,
}

impl Priority {
    pub(super) const COUNT: usize = 3;
}

/// Why a request got no answer. The set is closed: clients may match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The queue is full; try again later.
    Busy,
    /// The prompt does not fit.
    TooLarge,
    /// The request is malformed.
    BadRequest,
    /// The deadline passed.
    Expired,
    /// The client took it back.
    Cancelled,
    /// The id is in use with another body.
    DuplicateMismatch,
    /// A request of its session waits or runs.
    SessionBusy,
    /// Its session is not known, and it cannot do without.
    SessionGone,
    /// The daemon is about to end.
    ShuttingDown,
    /// The processor is too hot to take more; try again later.
    Overheated,
    /// Memory is too short for it now; try a shorter one, or again later.
    LowMemory,
    /// The daemon's own fault.
    Internal,
}

impl Code {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Code::Busy => "busy",
            Code::TooLarge => "too_large",
            Code::BadRequest => "bad_request",
            Code::Expired => "expired",
            Code::Cancelled => "cancelled",
            Code::DuplicateMismatch => "duplicate_mismatch",
            Code::SessionBusy => "session_busy",
            Code::SessionGone => "session_gone",
            Code::ShuttingDown => "shutting_down",
            Code::Overheated => "overheated",
            Code::LowMemory => "low_memory",
            Code::Internal => "internal",
        }
    }
}

/// A request that got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", .code.name())]
pub struct Failure {
    /// The kind, for programs.
    pub code: Code,
    /// The sentence, for people.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Seconds after which another attempt makes sense.
    pub retry_after_s: Option<u64>,
}

impl Failure {
    /// A failure without field and retry time.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), param: None, retry_after_s: None }
    }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Failure {
        Failure { param: error.param, ..Failure::new(Code::BadRequest, error.message) }
    }
}

/// Where the time of an answer went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From submission to the start.
    pub queue: Duration,
    /// From the start to the first token, encoding included.
    pub prefill: Duration,
    /// From the first token to the end.
    pub decode: Duration,
    /// Prompt tokens computed per second; 0 when it cannot be said.
    pub prefill_per_s: f64,
    /// Generated tokens per second after the first one; 0 when it cannot be said.
    pub decode_per_s: f64,
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The whole text, whatever was sent in pieces before.
    pub text: String,
    /// How likely its tokens were, where it was asked.
    pub logprobs: Vec<Logprob>,
    /// What the model thought, if it did.
    pub thought: String,
    /// Tools that the model wants to have called.
    pub calls: Vec<Call>,
    /// `Stop` or `Length`.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were known from earlier requests and not computed again.
    pub cached_tokens: usize,
    /// Where the prompt leaves the one before, when most of it is the same text nevertheless.
    pub broken_at: Option<usize>,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Those of them that belong to thoughts.
    pub thought_tokens: usize,
    /// The seed that gives this answer again.
    pub seed: u64,
    /// Where the time went.
    pub timings: Timings,
}
