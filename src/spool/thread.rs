//! The thread that writes: collects what is wanted, commits it together, and says so.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{error, info};

use super::store::{Admitted, Held, Limits, Store, StoreError, Wanted, Write};

/// Wishes that may wait for the thread.
const CHANNEL: usize = 4096;

/// Admissions and steps of one commit.
const BATCH: usize = 256;

/// How often old answers are dropped.
const PURGE_EVERY: Duration = Duration::from_secs(60);

/// How soon a store that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What came of [`Spool::admit`].
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// The request is on disk and this one's to run.
    Accepted,
    /// The same request is there already and its answer on the way.
    Known,
    /// The same request was answered before: here is its answer.
    Answered(Vec<u8>),
    /// Another request has this key.
    Mismatch,
    /// There is no room for more.
    Full,
    /// The disk does not take it.
    Failed(String),
}

type Then<T> = Box<dyn FnOnce(T) + Send>;

enum Wish {
    Admit { key: String, digest: [u8; 32], limit_s: u32, request: Option<Vec<u8>>, then: Then<Admission> },
    Step { step: Write, then: Option<Then<Result<(), String>>> },
    End,
}

/// The way to the spool's thread. Dropping it ends the thread after what was wished for is written.
pub struct Spool {
    wishes: SyncSender<Wish>,
    thread: Option<JoinHandle<()>>,
}

impl Spool {
    /// Starts the thread `spool`, which opens the store. `opened` is called with what a former life left, before anything
    /// is admitted; a store that cannot be opened is tried again and again.
    pub fn start(path: PathBuf, limits: Limits, opened: impl FnOnce(Vec<Held>) + Send + 'static) -> Spool {
        let (wishes, inbox) = sync_channel(CHANNEL);
        let opened: Option<Then<Vec<Held>>> = Some(Box::new(opened));
        let writer = Writer { path, limits, store: None, opened, next: None, failed: None, unwritten: Vec::new() };
        // The only error is a lack of threads; then nothing is admitted.
        let thread = std::thread::Builder::new().name("spool".into()).spawn(move || writer.run(&inbox)).ok();
        Spool { wishes, thread }
    }

    /// Keeps a request under `key` unless it is known; `then` hears of it once it is on disk. Without a `request` it only
    /// looks whether the key is known: [`Admission::Full`] when it is not.
    pub fn admit(
        &self,
        key: String,
        digest: [u8; 32],
        limit_s: u32,
        request: Option<Vec<u8>>,
        then: impl FnOnce(Admission) + Send + 'static,
    ) {
        let wish = Wish::Admit { key, digest, limit_s, request, then: Box::new(then) };
        match self.wishes.try_send(wish) {
            Ok(()) => {}
            Err(
                TrySendError::Full(Wish::Admit { then, .. }) | TrySendError::Disconnected(Wish::Admit { then, .. }),
            ) => {
                then(Admission::Failed("the disk does not keep up".into()));
            }
            Err(_) => {}
        }
    }

    /// The engine is about to begin; `then` is called when that is on disk. A disk that takes nothing is no reason not
    /// to serve what is held.
    pub fn started(&self, key: String, then: impl FnOnce() + Send + 'static) {
        self.step(Write::Started(key), Some(Box::new(move |_| then())));
    }

    /// The request was cut by an orderly shutdown: the attempt does not count.
    pub fn taken_back(&self, key: String) {
        self.step(Write::TakenBack(key), None);
    }

    /// Keeps the answer. `then` is called when it is on disk, or with the reason why it is kept in memory only.
    pub fn answered(&self, key: String, answer: Vec<u8>, then: impl FnOnce(Result<(), String>) + Send + 'static) {
        self.step(Write::Answered(key, answer), Some(Box::new(then)));
    }

    /// The client's broker has the answer.
    pub fn done(&self, key: String) {
        self.step(Write::Done(key), None);
    }

    /// The request was refused after all; the key is free again.
    pub fn forget(&self, key: String) {
        self.step(Write::Forget(key), None);
    }

    /// Steps wait for room in the channel: there are few of them, and none may be lost.
    fn step(&self, step: Write, then: Option<Then<Result<(), String>>>) {
        let _ = self.wishes.send(Wish::Step { step, then });
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = self.wishes.send(Wish::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    path: PathBuf,
    limits: Limits,
    store: Option<Store>,
    /// Who hears of what the store held.
    opened: Option<Then<Vec<Held>>>,
    /// The number that the next request gets: what the disk has from there on, nobody was told of.
    next: Option<u64>,
    /// When the store was tried last in vain, and why.
    failed: Option<(Instant, String)>,
    /// Steps of held requests that the disk has not taken.
    unwritten: Vec<Write>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Wish>) {
        let mut purged: Option<Instant> = None;
        let _ = self.open();
        loop {
            let well = self.unwritten.is_empty() && self.store.is_some();
            let wait = if well { PURGE_EVERY } else { TRY_AGAIN };
            let first = match inbox.recv_timeout(wait) {
                Ok(wish) => Some(wish),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut ending = false;
            let (mut steps, mut after, mut admit, mut admitted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for wish in first.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok()).take(BATCH)) {
                match wish {
                    Wish::Admit { key, digest, limit_s, request, then } => {
                        admit.push(Wanted { key, digest, limit_s, request });
                        admitted.push(then);
                    }
                    Wish::Step { step, then } => {
                        steps.push(step);
                        after.extend(then);
                    }
                    Wish::End => ending = true,
                }
            }
            self.unwritten.append(&mut steps);
            match self.commit(&admit) {
                Ok(results) => {
                    after.into_iter().for_each(|then| then(Ok(())));
                    admitted.into_iter().zip(results).for_each(|(then, result)| then(admission(result)));
                }
                Err(reason) => {
                    after.into_iter().for_each(|then| then(Err(reason.clone())));
                    admitted.into_iter().for_each(|then| then(Admission::Failed(reason.clone())));
                }
            }
            if purged.is_none_or(|at| at.elapsed() >= PURGE_EVERY) {
                purged = Some(Instant::now());
                if let Some(store) = &mut self.store
                    && store.purge(now_s()).is_err()
                {
                    self.store = None;
                }
            }
            if ending {
                return;
            }
        }
    }

    /// Opens the store if it is not open, but not too often: every request that fails would cost an attempt.
    fn open(&mut self) -> Result<&mut Store, String> {
        if self.store.is_none() {
            if let Some((at, reason)) = &self.failed
                && at.elapsed() < TRY_AGAIN
            {
                return Err(reason.clone());
            }
            let next = self.next;
            let store = Store::open(&self.path, self.limits).and_then(|mut store| {
                next.map_or(Ok(()), |next| store.forget_from(next))?;
                Ok((store.held()?, store))
            });
            let (held, store) = store.map_err(|error| self.failure(&error))?;
            self.next = Some(store.next());
            if let Some(opened) = self.opened.take() {
                let (requests, bytes) = store.size();
                info!(path = %self.path.display(), requests, bytes, open = held.len(), "spool");
                opened(held);
            }
            self.store = Some(store);
        }
        self.store.as_mut().ok_or_else(String::new)
    }

    /// Says so, once for a series of failures of one kind.
    fn failure(&mut self, error: &StoreError) -> String {
        let reason = error.to_string();
        let before = self.failed.replace((Instant::now(), reason.clone()));
        if before.is_none_or(|(_, before)| before != reason) {
            error!(
                %error,
                "nothing is admitted over MQTT until the spool can be written: is the disk full or read-only? \
                 A damaged file has to be moved away"
            );
        }
        reason
    }

    fn commit(&mut self, admit: &[Wanted]) -> Result<Vec<Admitted>, String> {
        if self.unwritten.is_empty() && admit.is_empty() {
            return self.open().map(|_| Vec::new());
        }
        let steps = std::mem::take(&mut self.unwritten);
        let result =
            self.open().map(|store| store.commit(now_s(), &steps, admit).map(|results| (results, store.next())));
        let failure = match result {
            Ok(Ok((results, next))) => {
                self.next = Some(next);
                if self.failed.take().is_some() {
                    info!(path = %self.path.display(), "the spool can be written again");
                }
                return Ok(results);
            }
            Ok(Err(error)) => {
                // After an I/O error the handle is of no use any more.
                self.store = None;
                self.failure(&error)
            }
            Err(failure) => failure,
        };
        self.unwritten = steps;
        Err(failure)
    }
}

fn admission(admitted: Admitted) -> Admission {
    match admitted {
        Admitted::Yes => Admission::Accepted,
        // Between the answer and the broker's word that it has it, the answer is in the outbox.
        Admitted::Known => Admission::Known,
        Admitted::KnownAnswer(answer) => Admission::Answered(answer),
        Admitted::Mismatch => Admission::Mismatch,
        Admitted::Full | Admitted::No => Admission::Full,
    }
}

/// Seconds since 1970 by the wall clock.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
