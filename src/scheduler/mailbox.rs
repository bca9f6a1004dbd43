//! The way of an answer back to who waits for it.
//!
//! The engine never waits for a reader: what a slow reader has not taken yet is merged (text is appended, of positions
//! and progress only the latest is kept), so a mailbox holds at most one answer's text whatever the reader does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::backend::{Call, Logprob};
use super::counters::Counters;
use super::lock::lock;
use super::request::{Answer, Code, Failure};

/// Called after every change, on the thread that made it. It must not call the scheduler.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// What happened since the reader last looked; fields are empty when nothing did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// Requests that will be served before this one, the running one included.
    pub queued: Option<usize>,
    /// The engine has begun; the number of prompt tokens.
    pub started: Option<usize>,
    /// Prompt tokens done and in all.
    pub prefill: Option<(usize, usize)>,
    /// More of what the model thinks.
    pub thought: String,
    /// More of the answer.
    pub text: String,
    /// How likely the tokens of that were, where it was asked.
    pub logprobs: Vec<Logprob>,
    /// More calls of tools.
    pub calls: Vec<Call>,
    /// The end; nothing follows.
    pub ended: Option<Result<Answer, Failure>>,
}

impl Update {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        *self == Update::default()
    }
}

struct Mailbox {
    pending: Mutex<Update>,
    ended: AtomicBool,
    cancelled: AtomicBool,
    wake: Wake,
    counters: Arc<Counters>,
}

/// The scheduler's side.
pub(super) struct Reply(Arc<Mailbox>);

/// The transport's side.
pub(super) struct Reader(Arc<Mailbox>);

/// Both sides of a new mailbox, whose end will be counted.
pub(super) fn mailbox(wake: Wake, counters: &Arc<Counters>) -> (Reply, Reader) {
    let mailbox = Arc::new(Mailbox {
        pending: Mutex::default(),
        ended: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        wake,
        counters: Arc::clone(counters),
    });
    (Reply(Arc::clone(&mailbox)), Reader(mailbox))
}

impl Reply {
    /// Changes what the reader will see next. Nothing can follow the end.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Update)) {
        if !self.0.ended.load(Ordering::Acquire) {
            change(&mut lock(&self.0.pending));
            (self.0.wake)();
        }
    }

    /// The end of the request.
    pub(super) fn end(&self, result: Result<Answer, Failure>) {
        self.tell(|update| {
            self.0.counters.count(&result);
            update.queued = None;
            update.ended = Some(result);
            self.0.ended.store(true, Ordering::Release);
        });
    }

    /// Whether the reader is gone or took the request back.
    pub(super) fn cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.end(Err(Failure::new(Code::Internal, "the engine ended before the answer did")));
    }
}

impl Reader {
    /// Everything new since the last call.
    pub(super) fn take(&self) -> Update {
        std::mem::take(&mut *lock(&self.0.pending))
    }

    /// Asks the engine to stop at its next step.
    pub(super) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_slow_reader_gets_merged_updates() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let (reply, reader) = mailbox(
            Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
            &Arc::default(),
        );
        for position in [3, 2, 1] {
            reply.tell(|u| u.queued = Some(position));
        }
        reply.tell(|u| u.text.push_str("one "));
        reply.tell(|u| u.text.push_str("two"));
        let update = reader.take();
        assert_eq!((update.queued, update.text.as_str()), (Some(1), "one two"));
        assert!(reader.take().is_empty());
        assert_eq!(woken.load(Ordering::SeqCst), 5);
    }

    #[test]
    fn a_lost_engine_is_an_answer_too() {
        let (reply, reader) = mailbox(Box::new(|| {}), &Arc::default());
        drop(reply);
        assert_eq!(reader.take().ended.unwrap().unwrap_err().code, Code::Internal);
    }

    #[test]
    fn nothing_follows_the_end() {
        let (reply, reader) = mailbox(Box::new(|| {}), &Arc::default());
        reply.end(Err(Failure::new(Code::Cancelled, "taken back")));
        reply.tell(|u| u.text.push('x'));
        drop(reply);
        let update = reader.take();
        assert_eq!((update.text.as_str(), update.ended.unwrap().unwrap_err().code), ("", Code::Cancelled));
    }
}
