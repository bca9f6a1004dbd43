//! Conversations that are continued without being sent again.
//!
//! A session is the messages of its requests and their answers, as they would have been sent; what the engine knows of them is a
//! matter of its prefix cache, and can be dropped without harm. So an answer is that of the whole conversation by construction.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::fields::{MAX_MESSAGES, messages};
use super::super::openai::Session;
use super::super::tools;
use super::refusal::Refusal;
use crate::scheduler::Answer;
use crate::scheduler::backend::InputError;

/// Bounds of the sessions. Those that were idle longest go first.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Most sessions.
    pub number: usize,
    /// Most bytes of all their messages.
    pub bytes: usize,
    /// Time after which an idle one is forgotten.
    pub idle: Duration,
}

#[derive(Debug)]
struct Kept {
    id: String,
    messages: Vec<Value>,
    bytes: usize,
    used: Instant,
    /// Whether a request of it waits or runs.
    busy: bool,
}

/// All sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    limits: SessionLimits,
    kept: Mutex<Vec<Kept>>,
}

/// The right to continue a session; nobody else can meanwhile.
#[derive(Debug)]
pub(super) struct Lease {
    sessions: Arc<Sessions>,
    id: String,
    /// The conversation up to the answer.
    asked: Vec<Value>,
    /// Messages that were known before the request.
    pub(super) known: usize,
}

impl Sessions {
    pub(super) fn new(limits: SessionLimits) -> Sessions {
        Sessions { limits, kept: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Continues `session` with `more`, instructions at whose head take the place of earlier ones. Returns the whole conversation.
    pub(super) fn begin(
        self: &Arc<Self>,
        session: Session,
        more: Vec<Value>,
        now: Instant,
    ) -> Result<(Lease, Vec<Value>), Refusal> {
        let mut kept = self.lock();
        kept.retain(|kept| kept.busy || now.saturating_duration_since(kept.used) < self.limits.idle);
        let id = session.id;
        let at = kept.iter().position(|kept| kept.id == id);
        if at.is_none() && session.resume {
            let message = format!(
                "session {id}: not known, or forgotten since; send the conversation as messages, or leave `resume` out"
            );
            return Err(Refusal::plain(410, "session_gone", &message));
        }
        if at.is_some_and(|at| kept[at].busy) {
            let message = format!("session {id}: a request of it waits or runs; try again after its answer");
            return Err(Refusal::plain(409, "session_busy", &message));
        }
        let mut all = at.map(|at| kept[at].messages.clone()).unwrap_or_default();
        let known = all.len();
        let instructs = |messages: &[Value]| messages.first().is_some_and(|first| first["role"] == "system");
        let mut more = more;
        if instructs(&all) && instructs(&more) {
            all[0] = more.remove(0);
        } else if known > 0 && instructs(&more) {
            all.insert(0, more.remove(0));
        }
        all.extend(more);
        if all.len() >= MAX_MESSAGES {
            let message =
                format!("messages: session {id} has {known} already, and a conversation at most {MAX_MESSAGES}");
            return Err(InputError::new("messages", message).into());
        }
        match at {
            Some(at) => kept[at].busy = true,
            None => kept.push(Kept { id: id.clone(), messages: Vec::new(), bytes: 0, used: now, busy: true }),
        }
        Ok((Lease { sessions: Arc::clone(self), id, asked: all.clone(), known }, all))
    }

    /// Forgets a session; whether there was one that no request is using.
    pub(super) fn forget(&self, id: &str) -> bool {
        let mut kept = self.lock();
        let before = kept.len();
        kept.retain(|kept| kept.id != id || kept.busy);
        kept.len() < before
    }
}

impl Lease {
    /// What is told of it.
    pub(super) fn told(&self) -> Value {
        json!({"id": self.id, "known_messages": self.known})
    }

    /// Keeps the conversation with its answer, whose calls have ids that begin with `number`.
    pub(super) fn answered(mut self, answer: &Answer, number: &str) {
        let mut message = json!({"role": "assistant", "content": answer.text});
        if !answer.calls.is_empty() {
            message["tool_calls"] = tools::calls(number, 0, &answer.calls);
            if !answer.thought.is_empty() {
                message["reasoning_content"] = json!(answer.thought);
            }
        }
        // As if it came in a request.
        let Ok(Value::Array(said)) = messages(Some(json!([message]))) else { return };
        let mut all = std::mem::take(&mut self.asked);
        all.extend(said);
        let bytes = all.iter().map(|message| message.to_string().len()).sum();
        let limits = self.sessions.limits;
        let mut kept = self.sessions.lock();
        if let Some(own) = kept.iter_mut().find(|kept| kept.id == self.id) {
            (own.messages, own.bytes, own.used) = (all, bytes, Instant::now());
        }
        let over = |kept: &[Kept]| {
            kept.len() > limits.number || kept.iter().map(|kept| kept.bytes).sum::<usize>() > limits.bytes
        };
        while over(&kept) {
            // This one last: it is the latest.
            let idle = kept.iter().enumerate().filter(|(_, kept)| !kept.busy || kept.id == self.id);
            let Some((at, _)) = idle.min_by_key(|(_, kept)| kept.used) else { break };
            kept.remove(at);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut kept = self.sessions.lock();
        // A session whose first request failed is none.
        kept.retain(|kept| kept.id != self.id || !kept.messages.is_empty());
        kept.iter_mut().filter(|kept| kept.id == self.id).for_each(|kept| kept.busy = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Timings;
    use crate::scheduler::backend::Finish;

    fn sessions(number: usize, bytes: usize) -> Arc<Sessions> {
        Arc::new(Sessions::new(SessionLimits { number, bytes, idle: Duration::from_secs(60) }))
    }

    fn answer(text: &str) -> Answer {
        Answer {
            text: text.into(),
            logprobs: Vec::new(),
            thought: "t".into(),
            calls: Vec::new(),
            finish: Finish::Stop,
            prompt_tokens: 1,
            cached_tokens: 0,
            broken_at: None,
            thought_tokens: 0,
            completion_tokens: 1,
            seed: 1,
            timings: Timings::default(),
        }
    }

    fn message(role: &str, text: &str) -> Value {
        json!({"role": role, "content": text})
    }

    fn named(id: &str, resume: bool) -> Session {
        Session { id: id.into(), resume }
    }

    fn go_on(sessions: &Arc<Sessions>, id: &str, more: Vec<Value>) -> (usize, Vec<Value>) {
        let (lease, all) = sessions.begin(named(id, false), more, Instant::now()).ok().expect("begins");
        let known = lease.known;
        lease.answered(&answer("a"), "1");
        (known, all)
    }

    #[test]
    fn a_session_is_the_conversation_so_far() {
        let sessions = sessions(4, 1 << 20);
        let (system, other) = (message("system", "s"), message("system", "z"));
        let (one, two, said) = (message("user", "1"), message("user", "2"), message("assistant", "a"));
        let first = vec![system.clone(), one.clone()];
        assert_eq!(go_on(&sessions, "x", first.clone()), (0, first));
        let all = vec![system, one.clone(), said.clone(), two.clone()];
        assert_eq!(go_on(&sessions, "x", vec![two.clone()]), (3, all));
        let all = vec![other.clone(), one.clone(), said.clone(), two.clone(), said.clone(), one.clone()];
        assert_eq!(go_on(&sessions, "x", vec![other.clone(), one.clone()]), (5, all), "new instructions");
        assert_eq!(go_on(&sessions, "y", vec![one.clone()]), (0, vec![one.clone()]), "another session");
        assert_eq!(go_on(&sessions, "y", vec![other.clone(), two.clone()]).1, vec![other, one, said, two]);
        assert!(sessions.forget("x") && !sessions.forget("x"));
    }

    #[test]
    fn what_is_busy_or_gone_is_refused_and_what_failed_is_not_kept() {
        let sessions = sessions(4, 1 << 20);
        let one = || vec![message("user", "1")];
        let begin = |resume| sessions.begin(named("x", resume), one(), Instant::now());
        assert!(begin(true).is_err());
        let (lease, _) = begin(false).ok().expect("begins");
        assert!(begin(false).is_err() && !sessions.forget("x"));
        drop(lease);
        assert!(begin(true).is_err());
        go_on(&sessions, "x", one());
        assert_eq!(begin(true).ok().expect("known").0.known, 2);
        let later = Instant::now() + Duration::from_secs(61);
        assert!(sessions.begin(named("x", true), one(), later).is_err(), "idle for too long");
    }

    #[test]
    fn number_and_bytes_are_bounded_and_the_oldest_goes_first() {
        let one = || vec![message("user", "1")];
        let few = sessions(2, 1 << 20);
        for id in ["a", "b", "c"] {
            go_on(&few, id, one());
        }
        assert!(!few.forget("a") && few.forget("b") && few.forget("c"));
        let small = sessions(9, 200);
        go_on(&small, "a", one());
        go_on(&small, "b", vec![message("user", &"x".repeat(80))]);
        assert!(!small.forget("a") && small.forget("b"));
        go_on(&small, "c", vec![message("user", &"x".repeat(300))]);
        assert!(!small.forget("c"), "larger than all may be");
        let mut known = 0;
        let long = sessions(1, 1 << 20);
        while let Ok((lease, _)) = long.begin(named("l", false), one(), Instant::now()) {
            known = lease.known + 2;
            lease.answered(&answer("a"), "1");
        }
        assert!(known <= MAX_MESSAGES && known > MAX_MESSAGES - 3, "{known}");
    }
}
