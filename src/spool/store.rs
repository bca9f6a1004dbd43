//! The store: what is on disk, and which changes are one transaction.
//!
//! redb was taken: a copy-on-write B-tree in one file with checksums, one `fsync` per commit, no C, one dependency
//! (libc), and a back end that tests can replace to cut the power at any write. SQLite would do as well, with a
//! C library to build for every target; LMDB maps its file for writing.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

/// Page cache of the store; its default of 1 GiB is for servers.
const CACHE: usize = 1 << 20;

/// Key to [`Head`]. The number is the version of all three tables: another layout gets other names.
const HEADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("heads.1");
/// Key to the request, until it is answered.
const REQUESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("requests.1");
/// Key to the answer.
const ANSWERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("answers.1");

/// November 2026: no right clock says less.
const FIRST_RELEASE: u64 = 1_793_000_000;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Accepted, has not run or was taken back.
    Queued,
    /// The engine may have begun.
    Running,
    /// The answer is kept and the client may not have it yet.
    Answered,
    /// The broker has the answer; it is kept for repetitions.
    Done,
}

/// What is known of a request apart from its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Place in the order of arrival; given by the store.
    pub number: u64,
    /// How far it is.
    pub state: State,
    /// Times that the engine was about to begin.
    pub attempts: u8,
    /// Tells a repetition from another request under the same key.
    pub digest: [u8; 32],
    /// Wall clock at arrival, seconds since 1970; what it says may be wrong before the time is synchronised.
    pub received_s: u64,
    /// Seconds that the answer may take.
    pub limit_s: u32,
    /// Wall clock when the request was done; 0 until then.
    pub done_s: u64,
    /// Size of request and answer.
    pub bytes: u64,
}

impl Head {
    /// As the store keeps it.
    pub fn encode(&self) -> Vec<u8> {
        // A plain structure of numbers: this cannot fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads what [`Head::encode`] made. What cannot be read is damaged; the store's checksums would have said so before.
    pub fn decode(bytes: &[u8]) -> Option<Head> {
        postcard::from_bytes(bytes).ok()
    }

    /// Seconds since it was done, by a clock that was set then.
    fn age(&self, now_s: u64) -> Option<u64> {
        now_s.checked_sub(self.done_s).filter(|_| is_set(self.done_s))
    }

    /// Seconds that the answer may still take at the wall clock's `now_s`. What was received or is looked at before the
    /// clock was set is given its whole time: running late is better than dropping what was acknowledged.
    pub fn left_s(&self, now_s: u64) -> u32 {
        let gone = now_s.checked_sub(self.received_s).filter(|_| is_set(self.received_s));
        self.limit_s.saturating_sub(gone.map_or(0, |gone| gone.try_into().unwrap_or(u32::MAX)))
    }
}

/// A request that a crash interrupted, as it is found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub key: String,
    /// How far it was.
    pub head: Head,
    /// Its bytes; empty once it is answered.
    pub request: Vec<u8>,
    /// Its answer, when it has one.
    pub answer: Option<Vec<u8>>,
}

/// Bounds of the store.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most requests, those that are kept for repetitions included.
    pub requests: u64,
    /// Most bytes of requests and answers.
    pub bytes: u64,
    /// Seconds for which answers are kept for repetitions.
    pub keep_s: u64,
}

/// A step of a request.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Started(String),
    TakenBack(String),
    Answered(String, Vec<u8>),
    Done(String),
    Forget(String),
}

/// A request that wants to be admitted, or is only asked after.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) key: String,
    pub(super) digest: [u8; 32],
    pub(super) limit_s: u32,
    pub(super) request: Option<Vec<u8>>,
}

/// What came of an attempt to admit a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    Yes,
    /// Only asked after, and not known.
    No,
    /// Known and on its way.
    Known,
    KnownAnswer(Vec<u8>),
    Mismatch,
    Full,
}

/// Why the store does not work.
#[derive(Debug, thiserror::Error)]
#[error("spool {path}: {reason}")]
pub(super) struct StoreError {
    path: String,
    reason: String,
}

/// The open store.
pub(super) struct Store {
    path: String,
    limits: Limits,
    db: Database,
    next: u64,
    count: u64,
    bytes: u64,
}

type Result<T> = std::result::Result<T, redb::Error>;

impl Store {
    /// Opens the store in `path` and makes it when there is none.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or is damaged.
    pub(super) fn open(path: &Path, limits: Limits) -> std::result::Result<Store, StoreError> {
        let name = path.display().to_string();
        // Prompts are personal data.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let failed = |reason: String| StoreError { path: name.clone(), reason };
        let file = file.map_err(|error| failed(error.to_string()))?;
        // redb writes the magic of a new file last of all: a file that begins with zeros was never finished, and holds nothing.
        let mut magic = [0; 9];
        file.read_at(&mut magic, 0).map_err(|error| failed(error.to_string()))?;
        // Unless another daemon is making it just now.
        if magic == [0; 9] && file.try_lock().is_ok() {
            file.set_len(0).map_err(|error| failed(error.to_string()))?;
        }
        drop(file);
        let db = Builder::new().set_cache_size(CACHE).create(path).map_err(|error| failed(error.to_string()))?;
        Store::new(name, db, limits)
    }

    /// Opens a store on something that stands for a file.
    #[cfg(test)]
    pub(super) fn open_on(
        backend: impl redb::StorageBackend,
        limits: Limits,
    ) -> std::result::Result<Store, StoreError> {
        let name = "in memory".to_owned();
        let db = Builder::new().set_cache_size(CACHE).create_with_backend(backend);
        Store::new(name.clone(), db.map_err(|error| StoreError { path: name, reason: error.to_string() })?, limits)
    }

    fn new(path: String, db: Database, limits: Limits) -> std::result::Result<Store, StoreError> {
        let mut store = Store { path, limits, db, next: 0, count: 0, bytes: 0 };
        store.count().map_err(|error| store.error(error))?;
        Ok(store)
    }

    /// Makes the tables and counts what is in them.
    fn count(&mut self) -> Result<()> {
        let write = self.db.begin_write()?;
        {
            let heads = write.open_table(HEADS)?;
            write.open_table(REQUESTS)?;
            write.open_table(ANSWERS)?;
            for entry in heads.iter()? {
                if let Some(head) = Head::decode(entry?.1.value()) {
                    self.next = self.next.max(head.number + 1);
                    self.count += 1;
                    self.bytes += head.bytes;
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    fn error(&self, error: redb::Error) -> StoreError {
        StoreError { path: self.path.clone(), reason: error.to_string() }
    }

    /// Everything that is not done, in the order of arrival.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(super) fn held(&self) -> std::result::Result<Vec<Held>, StoreError> {
        let read = || -> Result<Vec<Held>> {
            let read = self.db.begin_read()?;
            let (heads, requests, answers) =
                (read.open_table(HEADS)?, read.open_table(REQUESTS)?, read.open_table(ANSWERS)?);
            let mut held = Vec::new();
            for entry in heads.iter()? {
                let (key, head) = entry?;
                let Some(head) = Head::decode(head.value()).filter(|head| head.state != State::Done) else { continue };
                let key = key.value().to_owned();
                let request = requests.get(key.as_str())?.map_or_else(Vec::new, |bytes| bytes.value().to_vec());
                let answer = answers.get(key.as_str())?.map(|bytes| bytes.value().to_vec());
                held.push(Held { key, head, request, answer });
            }
            held.sort_by_key(|held| held.head.number);
            Ok(held)
        };
        read().map_err(|error| self.error(error))
    }

    /// One transaction: first the steps, then the admissions, in their order. Nothing of it happened when it fails.
    pub(super) fn commit(
        &mut self,
        now_s: u64,
        steps: &[Write],
        admit: &[Wanted],
    ) -> std::result::Result<Vec<Admitted>, StoreError> {
        self.change(now_s, steps, admit).map_err(|error| self.error(error))
    }

    fn change(&mut self, now_s: u64, steps: &[Write], admit: &[Wanted]) -> Result<Vec<Admitted>> {
        let mut change = Change { next: self.next, count: self.count, bytes: self.bytes };
        let write = self.db.begin_write()?;
        let mut results = Vec::with_capacity(admit.len());
        {
            let mut tables = Tables {
                heads: write.open_table(HEADS)?,
                requests: write.open_table(REQUESTS)?,
                answers: write.open_table(ANSWERS)?,
            };
            for step in steps {
                tables.step(now_s, step, &mut change)?;
            }
            for wanted in admit {
                results.push(tables.admit(now_s, &self.limits, wanted, &mut change)?);
            }
        }
        super::fail::point("spool.before-commit");
        write.commit()?;
        super::fail::point("spool.after-commit");
        (self.next, self.count, self.bytes) = (change.next, change.count, change.bytes);
        Ok(results)
    }

    /// The number that the next request gets.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Drops what was admitted from `number` on. A commit whose last write failed may be found on disk all the same, and those who
    /// asked were told that it is not.
    pub(super) fn forget_from(&mut self, number: u64) -> std::result::Result<(), StoreError> {
        let later = |held: &Held| held.head.number >= number;
        let forget: Vec<Write> = self.held()?.into_iter().filter(later).map(|held| Write::Forget(held.key)).collect();
        if forget.is_empty() { Ok(()) } else { self.commit(0, &forget, &[]).map(drop) }
    }

    /// Drops answers that were kept long enough. Their time counts from when the clock is right.
    pub(super) fn purge(&mut self, now_s: u64) -> std::result::Result<(), StoreError> {
        if !is_set(now_s) {
            return Ok(());
        }
        self.drop_old(now_s).map_err(|error| self.error(error))
    }

    fn drop_old(&mut self, now_s: u64) -> Result<()> {
        let read = self.db.begin_read()?.open_table(HEADS)?;
        let mut any = false;
        for entry in read.iter()? {
            let done = Head::decode(entry?.1.value()).filter(|head| head.state == State::Done);
            any |= done.is_some_and(|head| head.age(now_s).is_none_or(|age| age >= self.limits.keep_s));
        }
        // A commit of nothing writes and syncs all the same.
        drop(read);
        if !any {
            return Ok(());
        }
        let mut change = Change { next: self.next, count: self.count, bytes: self.bytes };
        let write = self.db.begin_write()?;
        {
            let mut tables = Tables {
                heads: write.open_table(HEADS)?,
                requests: write.open_table(REQUESTS)?,
                answers: write.open_table(ANSWERS)?,
            };
            for (key, mut head) in tables.done()? {
                match head.age(now_s) {
                    Some(age) if age < self.limits.keep_s => {}
                    Some(_) => tables.remove(&key, &mut change)?,
                    None => {
                        head.done_s = now_s;
                        tables.put_head(&key, &head)?;
                    }
                }
            }
        }
        write.commit()?;
        (self.next, self.count, self.bytes) = (change.next, change.count, change.bytes);
        Ok(())
    }

    /// Requests in the store, and the bytes of them and their answers.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.count, self.bytes)
    }
}

/// Whether a wall clock that says this has been set: a Pi has no battery for it and starts in the past.
fn is_set(now_s: u64) -> bool {
    now_s >= FIRST_RELEASE
}

struct Change {
    next: u64,
    count: u64,
    bytes: u64,
}

struct Tables<'t> {
    heads: redb::Table<'t, &'static str, &'static [u8]>,
    requests: redb::Table<'t, &'static str, &'static [u8]>,
    answers: redb::Table<'t, &'static str, &'static [u8]>,
}

impl Tables<'_> {
    fn head(&self, key: &str) -> Result<Option<Head>> {
        Ok(self.heads.get(key)?.and_then(|bytes| Head::decode(bytes.value())))
    }

    fn put_head(&mut self, key: &str, head: &Head) -> Result<()> {
        self.heads.insert(key, head.encode().as_slice())?;
        Ok(())
    }

    /// A step of a request that is not there any more changes nothing.
    fn step(&mut self, now_s: u64, step: &Write, change: &mut Change) -> Result<()> {
        let (Write::Started(key)
        | Write::TakenBack(key)
        | Write::Answered(key, _)
        | Write::Done(key)
        | Write::Forget(key)) = step;
        let Some(mut head) = self.head(key)? else { return Ok(()) };
        match step {
            Write::Started(_) => {
                head.state = State::Running;
                head.attempts = head.attempts.saturating_add(1);
            }
            Write::TakenBack(_) if head.state == State::Running => {
                head.state = State::Queued;
                head.attempts = head.attempts.saturating_sub(1);
            }
            Write::TakenBack(_) => {}
            Write::Answered(_, answer) => {
                head.state = State::Answered;
                self.requests.remove(key.as_str())?;
                self.answers.insert(key.as_str(), answer.as_slice())?;
                change.bytes = change.bytes - head.bytes + answer.len() as u64;
                head.bytes = answer.len() as u64;
            }
            Write::Done(_) => {
                head.state = State::Done;
                head.done_s = now_s;
            }
            Write::Forget(_) => return self.remove(key, change),
        }
        self.put_head(key, &head)
    }

    fn admit(&mut self, now_s: u64, limits: &Limits, wanted: &Wanted, change: &mut Change) -> Result<Admitted> {
        let &Wanted { ref key, digest, limit_s, ref request } = wanted;
        let key = key.as_str();
        if let Some(head) = self.head(key)? {
            if head.digest != digest {
                return Ok(Admitted::Mismatch);
            }
            return Ok(match self.answers.get(key)? {
                Some(answer) if head.state == State::Done => Admitted::KnownAnswer(answer.value().to_vec()),
                _ => Admitted::Known,
            });
        }
        let Some(request) = request else { return Ok(Admitted::No) };
        let bytes = request.len() as u64;
        let full = |change: &Change| change.count >= limits.requests || change.bytes + bytes > limits.bytes;
        if full(change) {
            // Those that were done first make room; what is open never does.
            for (old, _) in self.done()? {
                if !full(change) {
                    break;
                }
                self.remove(&old, change)?;
            }
            if full(change) {
                return Ok(Admitted::Full);
            }
        }
        let (number, attempts, done_s) = (change.next, 0, 0);
        let state = State::Queued;
        let head = Head { number, state, attempts, digest, received_s: now_s, limit_s, done_s, bytes };
        self.put_head(key, &head)?;
        self.requests.insert(key, request.as_slice())?;
        change.next += 1;
        change.count += 1;
        change.bytes += bytes;
        Ok(Admitted::Yes)
    }

    fn remove(&mut self, key: &str, change: &mut Change) -> Result<()> {
        if let Some(head) = self.head(key)? {
            self.heads.remove(key)?;
            self.requests.remove(key)?;
            self.answers.remove(key)?;
            change.count -= 1;
            change.bytes -= head.bytes;
        }
        Ok(())
    }

    /// What is done, oldest first.
    fn done(&self) -> Result<Vec<(String, Head)>> {
        let mut done = Vec::new();
        for entry in self.heads.iter()? {
            let (key, head) = entry?;
            if let Some(head) = Head::decode(head.value()).filter(|head| head.state == State::Done) {
                done.push((key.value().to_owned(), head));
            }
        }
        done.sort_by_key(|(_, head)| head.number);
        Ok(done)
    }
}
