//! Conversations that are continued without being sent again.
//!
//! A session is the messages of its requests and their answers, as they would have been sent; what the engine knows of them is a
//! matter of its prefix cache, and can be dropped without harm. So an answer is that of the whole conversation by construction.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fields::{Fields, MAX_MESSAGES, messages, wrong};
use super::tools;
use crate::scheduler::backend::InputError;
use crate::scheduler::{Answer, Code, Failure};

/// A conversation that the daemon knows by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub id: String,
    /// Whether it has to be known already.
    pub resume: bool,
}

/// Longest name of a session.
const MAX_SESSION: usize = 128;

fn is_session(id: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=MAX_SESSION).contains(&id.len()) && id.bytes().all(known)
}

impl Session {
    /// The session that a header names, or what the request says itself; both have to name the same one.
    ///
    /// # Errors
    ///
    /// When the header is no name of a session, or that of another one.
    pub fn or(header: Option<&[u8]>, own: Option<Session>) -> Result<Option<Session>, InputError> {
        let Some(header) = header else { return Ok(own) };
        let id = std::str::from_utf8(header).ok().filter(|id| is_session(id)).ok_or_else(|| {
            let message = format!("X-Session-Id: expected a name of 1 to {MAX_SESSION} letters, digits and -_.:");
            InputError::new("session", message)
        })?;
        if own.as_ref().is_some_and(|own| own.id != id) {
            return Err(InputError::new("session", "session: another one than that of the header X-Session-Id"));
        }
        Ok(own.or_else(|| Some(Session { id: id.to_owned(), resume: false })))
    }

    /// Takes `session`: a name, or an object with `id` and `resume`.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn take(fields: &mut Fields) -> Result<Option<Session>, InputError> {
        let Some(value) = fields.take("session") else { return Ok(None) };
        let id = value.as_str().or_else(|| value["id"].as_str()).filter(|id| is_session(id));
        let resume = match &value["resume"] {
            Value::Null => Some(false),
            other => other.as_bool(),
        };
        let expected =
            format!("a name of 1 to {MAX_SESSION} letters, digits and -_.:, or {{\"id\": …, \"resume\": true}}");
        let (Some(id), Some(resume)) = (id, resume) else { return Err(wrong("session", expected, &value)) };
        Ok(Some(Session { id: id.to_owned(), resume }))
    }
}

/// Bounds of the sessions.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sessions.
    pub number: usize,
    /// Most bytes of all their messages.
    pub bytes: usize,
    /// Time after which an idle one is forgotten.
    pub idle: Duration,
}

/// Whose session it is: a client's of MQTT, or that of all who may open the socket; and what they call it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    client: Option<String>,
    id: String,
}

#[derive(Debug)]
struct Kept {
    name: Name,
    messages: Vec<Value>,
    bytes: usize,
    used: Instant,
    /// The lease of the request that waits or runs.
    lease: Option<u64>,
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    limits: Limits,
    leases: AtomicU64,
    kept: Mutex<Vec<Kept>>,
}

/// The right to continue a session; nobody else can meanwhile.
#[derive(Debug)]
pub(super) struct Lease {
    sessions: Arc<Sessions>,
    name: Name,
    number: u64,
    /// The conversation that was known before the request.
    before: Vec<Value>,
    /// What the request adds.
    more: Vec<Value>,
}

impl Sessions {
    /// No sessions yet.
    pub fn new(limits: Limits) -> Sessions {
        Sessions { limits, leases: AtomicU64::default(), kept: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Continues the `session` of `client` with `more`.
    pub(super) fn begin(
        self: &Arc<Self>,
        client: Option<&str>,
        session: Session,
        more: Vec<Value>,
        now: Instant,
    ) -> Result<Lease, Failure> {
        let mut kept = self.lock();
        kept.retain(|kept| kept.lease.is_some() || now.saturating_duration_since(kept.used) < self.limits.idle);
        let Session { id, resume } = session;
        let name = Name { client: client.map(str::to_owned), id };
        let at = kept.iter().position(|kept| kept.name == name);
        if at.is_none() && resume {
            let message = "not known, or forgotten since; send the conversation as messages, or leave `resume` out";
            return Err(Failure::new(Code::SessionGone, format!("session {}: {message}", name.id)));
        }
        if at.is_some_and(|at| kept[at].lease.is_some()) {
            let message = "a request of it waits or runs; try again after its answer";
            return Err(Failure::new(Code::SessionBusy, format!("session {}: {message}", name.id)));
        }
        let before = at.map(|at| kept[at].messages.clone()).unwrap_or_default();
        let (known, all) = (before.len(), join(&before, &more).len());
        if all >= MAX_MESSAGES {
            let id = name.id;
            let message = format!(
                "session: {id} has {known} messages and would have {} with the answer; a conversation has at most \
                 {MAX_MESSAGES}",
                all + 1
            );
            return Err(InputError::new("session", message).into());
        }
        Ok(self.lease(&mut kept, name, before, more))
    }

    /// Continues a session for a request of a former life, which knew `before`. It was there first: if another one came before it
    /// was found, a repetition of itself most likely, the answer of that one is no part of the session.
    pub(super) fn begin_again(
        self: &Arc<Self>,
        client: &str,
        session: Session,
        before: Vec<Value>,
        more: Vec<Value>,
    ) -> Lease {
        let name = Name { client: Some(client.to_owned()), id: session.id };
        self.lease(&mut self.lock(), name, before, more)
    }

    fn lease(self: &Arc<Self>, kept: &mut Vec<Kept>, name: Name, before: Vec<Value>, more: Vec<Value>) -> Lease {
        let number = self.leases.fetch_add(1, Ordering::Relaxed);
        let (bytes, messages) = (bytes(&before), before.clone());
        let own = Kept { name: name.clone(), messages, bytes, used: Instant::now(), lease: Some(number) };
        kept.retain(|kept| kept.name != name);
        kept.push(own);
        Lease { sessions: Arc::clone(self), name, number, before, more }
    }

    /// Forgets a session of the socket; whether there was one that no request is using.
    pub(super) fn forget(&self, id: &str) -> bool {
        let mut kept = self.lock();
        let before = kept.len();
        kept.retain(|kept| kept.name.client.is_some() || kept.name.id != id || kept.lease.is_some());
        kept.len() < before
    }

    /// Makes room: of the client that has the most, the session that was idle longest goes first; `latest` is its last.
    fn shrink(&self, kept: &mut Vec<Kept>, latest: &Name) {
        // One whose first request waits or runs is none yet.
        let known = |kept: &&Kept| !kept.messages.is_empty();
        loop {
            let many = kept.iter().filter(known).count() > self.limits.number;
            if !many && kept.iter().map(|kept| kept.bytes).sum::<usize>() <= self.limits.bytes {
                return;
            }
            let mut held: BTreeMap<Option<&str>, usize> = BTreeMap::new();
            for kept in kept.iter().filter(known) {
                *held.entry(kept.name.client.as_deref()).or_default() += if many { 1 } else { kept.bytes };
            }
            let free = |kept: &Kept| kept.lease.is_none() || kept.name == *latest;
            let idle = kept.iter().enumerate().filter(|(_, kept)| known(kept) && free(kept));
            let first = idle.min_by_key(|(_, kept)| (Reverse(held[&kept.name.client.as_deref()]), kept.used));
            let Some((at, _)) = first else { return };
            kept.remove(at);
        }
    }
}

/// The conversation `before` with `more`; instructions at whose head take the place of earlier ones.
fn join(before: &[Value], more: &[Value]) -> Vec<Value> {
    let instructs = |messages: &[Value]| messages.first().is_some_and(|first| first["role"] == "system");
    let replaced = usize::from(instructs(before) && instructs(more));
    let (head, rest) = more.split_at(usize::from(instructs(more)));
    head.iter().chain(&before[replaced..]).chain(rest).cloned().collect()
}

fn bytes(messages: &[Value]) -> usize {
    messages.iter().map(|message| message.to_string().len()).sum()
}

impl Lease {
    /// The conversation up to the answer.
    pub(super) fn conversation(&self) -> Vec<Value> {
        join(&self.before, &self.more)
    }

    /// The messages that were known before the request.
    pub(super) fn before(&self) -> &[Value] {
        &self.before
    }

    /// What is told of it.
    pub(super) fn told(&self) -> Value {
        json!({"id": self.name.id, "known_messages": self.before.len()})
    }

    /// Keeps the conversation with its answer, whose calls have ids that begin with `number`.
    pub(super) fn answered(self, answer: &Answer, number: &str) {
        let mut message = json!({"role": "assistant", "content": answer.text});
        if !answer.calls.is_empty() {
            message["tool_calls"] = tools::calls(number, 0, &answer.calls);
            if !answer.thought.is_empty() {
                message["reasoning_content"] = json!(answer.thought);
            }
        }
        // As if it came in a request.
        let Ok(Value::Array(said)) = messages(Some(json!([message]))) else { return };
        let mut all = self.conversation();
        all.extend(said);
        let mut kept = self.sessions.lock();
        if let Some(own) = kept.iter_mut().find(|kept| kept.lease == Some(self.number)) {
            (own.bytes, own.messages, own.used) = (bytes(&all), all, Instant::now());
        }
        self.sessions.shrink(&mut kept, &self.name);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut kept = self.sessions.lock();
        let own = |kept: &Kept| kept.lease == Some(self.number);
        // A session whose first request failed is none.
        kept.retain(|kept| !own(kept) || !kept.messages.is_empty());
        kept.iter_mut().filter(|kept| own(kept)).for_each(|kept| kept.lease = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Timings;
    use crate::scheduler::backend::Finish;

    fn sessions(number: usize, bytes: usize) -> Arc<Sessions> {
        Arc::new(Sessions::new(Limits { number, bytes, idle: Duration::from_secs(60) }))
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
        go_on_as(None, sessions, id, more)
    }

    fn go_on_as(client: Option<&str>, sessions: &Arc<Sessions>, id: &str, more: Vec<Value>) -> (usize, Vec<Value>) {
        let lease = sessions.begin(client, named(id, false), more, Instant::now()).unwrap();
        let (known, all) = (lease.before.len(), lease.conversation());
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
        let begin = |resume| sessions.begin(None, named("x", resume), one(), Instant::now());
        let refused = |resume| begin(resume).unwrap_err().code;
        assert_eq!(refused(true), Code::SessionGone);
        let lease = begin(false).unwrap();
        assert!(refused(false) == Code::SessionBusy && !sessions.forget("x"));
        drop(lease);
        assert_eq!(refused(true), Code::SessionGone);
        go_on(&sessions, "x", one());
        assert_eq!(begin(true).unwrap().before.len(), 2);
        let later = Instant::now() + Duration::from_secs(61);
        let late = sessions.begin(None, named("x", true), one(), later);
        assert_eq!(late.unwrap_err().code, Code::SessionGone, "idle for too long");
    }

    #[test]
    fn number_and_bytes_are_bounded_and_the_oldest_goes_first() {
        let one = || vec![message("user", "1")];
        let few = sessions(2, 1 << 20);
        for id in ["a", "b", "c"] {
            go_on(&few, id, one());
        }
        assert!(!few.forget("a") && few.forget("b") && few.forget("c"));
        // First requests that wait take no place of what is known.
        assert_eq!(go_on(&few, "a", one()).0, 0);
        let waiting = ["b", "c"].map(|id| few.begin(None, named(id, false), one(), Instant::now()).unwrap());
        assert_eq!(go_on(&few, "a", one()).0, 2);
        drop(waiting);
        assert!(few.forget("a"));
        let small = sessions(9, 200);
        go_on(&small, "a", one());
        go_on(&small, "b", vec![message("user", &"x".repeat(80))]);
        assert!(!small.forget("a") && small.forget("b"));
        go_on(&small, "c", vec![message("user", &"x".repeat(300))]);
        assert!(!small.forget("c"), "larger than all may be");
        let mut known = 0;
        let long = sessions(1, 1 << 20);
        let end = loop {
            match long.begin(None, named("l", false), one(), Instant::now()) {
                Ok(lease) => {
                    known = lease.before.len() + 2;
                    lease.answered(&answer("a"), "1");
                }
                Err(failure) => break failure,
            }
        };
        assert_eq!((known, end.param.as_deref()), (MAX_MESSAGES, Some("session")));
        assert!(end.message.contains("l has 256 messages and would have 258"), "{end}");
    }

    #[test]
    fn a_client_has_its_own_sessions_and_loses_its_own_first() {
        let one = || vec![message("user", "1")];
        let few = sessions(3, 1 << 20);
        for client in [None, Some("a"), Some("b")] {
            assert_eq!(go_on_as(client, &few, "x", one()).0, 0, "{client:?}");
        }
        assert_eq!(go_on_as(Some("b"), &few, "y", one()).0, 0);
        assert_eq!(go_on_as(Some("b"), &few, "z", one()).0, 0);
        for (client, known) in [(None, 2), (Some("a"), 2), (Some("b"), 0)] {
            assert_eq!(go_on_as(client, &few, "x", one()).0, known, "{client:?}");
        }
        assert!(few.forget("x") && !few.forget("x"), "only that of the socket");
        assert_eq!(go_on_as(Some("a"), &few, "x", one()).0, 4);
        // A large one of a client that has little else goes before the many small ones of another.
        let small = sessions(9, 400);
        for id in ["p", "q"] {
            go_on_as(Some("a"), &small, id, one());
        }
        go_on_as(Some("b"), &small, "x", vec![message("user", &"x".repeat(200))]);
        assert_eq!(go_on_as(Some("a"), &small, "p", one()).0, 2);
        assert_eq!(go_on_as(Some("b"), &small, "x", one()).0, 0);
    }

    #[test]
    fn a_request_of_a_former_life_goes_on_as_it_was() {
        let sessions = sessions(4, 1 << 20);
        let (one, two, said) = (message("user", "1"), message("user", "2"), message("assistant", "a"));
        let again = || sessions.begin_again("c", named("x", true), vec![one.clone(), said.clone()], vec![two.clone()]);
        let begin = || sessions.begin(Some("c"), named("x", false), vec![two.clone()], Instant::now());
        // Its repetition may be faster.
        let (repeated, dropped, first) = (begin().unwrap(), again(), again());
        assert_eq!((repeated.before.len(), first.before.len()), (0, 2));
        assert_eq!(first.conversation(), [one.clone(), said.clone(), two.clone()]);
        drop(dropped);
        assert_eq!(begin().unwrap_err().code, Code::SessionBusy);
        repeated.answered(&answer("b"), "1");
        assert_eq!(begin().unwrap_err().code, Code::SessionBusy);
        first.answered(&answer("a"), "1");
        let all = go_on_as(Some("c"), &sessions, "x", vec![one.clone()]).1;
        assert_eq!(all, [one.clone(), said.clone(), two.clone(), said.clone(), one.clone()], "once");
        // What failed leaves what was known before it.
        drop(sessions.begin_again("d", named("x", false), vec![one.clone(), said], vec![two.clone()]));
        assert_eq!(go_on_as(Some("d"), &sessions, "x", vec![two]).0, 2);
    }
}
