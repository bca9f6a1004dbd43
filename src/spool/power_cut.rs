//! The power is cut at any write: whatever of it reached the disk, nothing that was acknowledged is missing.

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::store::{Admitted, Head, Limits, Store, StoreError, Wanted, Write};

const LIMITS: Limits = Limits { requests: 40, bytes: 1 << 20, keep_s: 1000 };
const NOW: u64 = 1_800_000_000;

/// A disk that remembers what was synced and what came after it.
#[derive(Debug, Default)]
struct Platter {
    now: Vec<u8>,
    synced: Vec<u8>,
    since: Vec<Change>,
    /// Writes that still succeed; afterwards the disk is full.
    room: Option<usize>,
    /// Whether the disk says that it could not sync, and has done so.
    lies: bool,
    syncs: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            if bytes.len() < at + data.len() {
                bytes.resize(at + data.len(), 0);
            }
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn holding(bytes: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(Platter { synced: bytes.clone(), now: bytes, ..Platter::default() })))
    }

    fn change(&self, change: Change) -> Result<()> {
        let mut platter = self.0.lock().unwrap();
        if let Some(room) = &mut platter.room {
            if *room == 0 {
                return Err(Error::from(std::io::ErrorKind::StorageFull));
            }
            *room -= 1;
        }
        apply(&mut platter.now, &change);
        platter.since.push(change);
        Ok(())
    }

    /// What is on the disk after a power cut: all that was synced, and of the rest any part, in any order, the last
    /// write of it torn.
    fn after_a_cut(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        let platter = self.0.lock().unwrap();
        let mut bytes = platter.synced.clone();
        let mut rest: Vec<Change> = platter.since.iter().filter(|_| random.bool()).cloned().collect();
        random.shuffle(&mut rest);
        if let Some(Change::Write(_, data)) = rest.last_mut() {
            data.truncate(random.usize(..=data.len()));
        }
        rest.iter().for_each(|change| apply(&mut bytes, change));
        bytes
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let platter = self.0.lock().unwrap();
        let at = offset as usize;
        let found = platter.now.get(at..at + out.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(Change::Length(len as usize))
    }

    fn sync_data(&self) -> Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.synced = platter.now.clone();
        platter.since.clear();
        platter.syncs += 1;
        if platter.lies { Err(Error::other("input/output error")) } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.change(Change::Write(offset as usize, data.to_vec()))
    }
}

/// What a client was told, and so may rely on.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Accepted,
    Answered(Vec<u8>),
}

fn wanted(key: &str, digest: u8, request: Vec<u8>) -> Wanted {
    Wanted { key: key.into(), digest: [digest; 32], limit_s: 60, request: Some(request) }
}

fn admit(store: &mut Store, key: &str) -> std::result::Result<Admitted, StoreError> {
    let request = format!("prompt of {key}").into_bytes();
    Ok(store.commit(NOW, &[], &[wanted(key, 7, request)])?.remove(0))
}

fn check(disk: Vec<u8>, told: &BTreeMap<String, Told>, doubtful: Option<&str>) {
    let mut store = Store::open_on(Disk::holding(disk), LIMITS).expect("opens after a power cut");
    let held = store.held().unwrap();
    for (key, told) in told {
        let entry = held.iter().find(|held| held.key == *key);
        match told {
            Told::Accepted => {
                let entry = entry.unwrap_or_else(|| panic!("{key} was lost"));
                // An answer that was on its way to the disk may have arrived there.
                assert!(entry.answer.is_some() || entry.request == format!("prompt of {key}").as_bytes());
                assert!(
                    entry.answer.is_none() || doubtful == Some(key.as_str()),
                    "{key} has an answer that nobody gave"
                );
            }
            Told::Answered(answer) => match entry {
                Some(entry) => assert_eq!(entry.answer.as_ref(), Some(answer), "{key}"),
                None => assert_eq!(admit(&mut store, key).unwrap(), Admitted::KnownAnswer(answer.clone()), "{key}"),
            },
        }
    }
}

#[test]
fn nothing_that_was_acknowledged_is_lost() {
    // Emulated, the same takes twenty times as long.
    for seed in 0..if cfg!(target_arch = "x86_64") { 6 } else { 1 } {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = Disk::default();
        let mut store = Store::open_on(disk.clone(), LIMITS).unwrap();
        let mut told: BTreeMap<String, Told> = BTreeMap::new();
        for number in 0..60 {
            let open: Vec<String> =
                told.iter().filter(|(_, told)| **told == Told::Accepted).map(|(key, _)| key.clone()).collect();
            let key = if open.len() < 5 || random.bool() {
                let key = format!("client/{number}");
                assert_eq!(admit(&mut store, &key).unwrap(), Admitted::Yes);
                told.insert(key.clone(), Told::Accepted);
                key
            } else {
                let key = open[random.usize(..open.len())].clone();
                let answer = vec![random.u8(..); random.usize(..3000)];
                let steps = match random.u8(..4) {
                    0 => vec![Write::Started(key.clone())],
                    1 => vec![Write::Started(key.clone()), Write::TakenBack(key.clone())],
                    2 => vec![Write::Started(key.clone()), Write::Answered(key.clone(), answer.clone())],
                    _ => vec![Write::Answered(key.clone(), answer.clone()), Write::Done(key.clone())],
                };
                if steps.iter().any(|step| matches!(step, Write::Answered(..))) {
                    told.insert(key.clone(), Told::Answered(answer));
                }
                store.commit(NOW, &steps, &[]).unwrap();
                key
            };
            check(disk.after_a_cut(&mut random), &told, None);
            // The next commit is cut after some of its writes.
            let next = Disk::holding(disk.0.lock().unwrap().synced.clone());
            let mut copy = Store::open_on(next.clone(), LIMITS).unwrap();
            next.0.lock().unwrap().room = Some(random.usize(..8));
            let steps = [Write::Started(key.clone()), Write::Answered(key.clone(), vec![1; 5000])];
            let answered = matches!(told.get(&key), Some(Told::Answered(_)));
            let _ = copy.commit(NOW, if answered { &[] } else { &steps }, &[wanted("new/1", 1, vec![1; 5000])]);
            check(next.after_a_cut(&mut random), &told, Some(&key));
        }
    }
}

#[test]
fn room_is_made_by_the_oldest_answers_and_never_by_what_is_open() {
    let limits = Limits { requests: 3, bytes: 10_000, keep_s: 1000 };
    let mut store = Store::open_on(Disk::default(), limits).unwrap();
    let offer = |store: &mut Store, key: &str, size: usize| {
        store.commit(NOW, &[], &[wanted(key, 0, vec![b'x'; size])]).unwrap().remove(0)
    };
    for key in ["a", "b", "c"] {
        assert_eq!(offer(&mut store, key, 100), Admitted::Yes);
    }
    assert_eq!(offer(&mut store, "d", 100), Admitted::Full);
    let finish = |key: &str| vec![Write::Answered(key.into(), b"text".to_vec()), Write::Done(key.into())];
    store.commit(NOW, &finish("b"), &[]).unwrap();
    assert_eq!(offer(&mut store, "b", 100), Admitted::KnownAnswer(b"text".to_vec()));
    assert_eq!(store.size(), (3, 204));
    assert_eq!(offer(&mut store, "d", 100), Admitted::Yes);
    assert_eq!(offer(&mut store, "e", 100), Admitted::Full);
    store.commit(NOW, &finish("a"), &[]).unwrap();
    assert_eq!(offer(&mut store, "huge", 9_900), Admitted::Full, "bytes are bounded too");
    let held: Vec<String> = store.held().unwrap().into_iter().map(|held| held.key).collect();
    assert_eq!(held, ["c", "d"]);
}

#[test]
fn another_body_is_a_mismatch_and_the_same_is_known() {
    let mut store = Store::open_on(Disk::default(), LIMITS).unwrap();
    assert_eq!(admit(&mut store, "a").unwrap(), Admitted::Yes);
    assert_eq!(admit(&mut store, "a").unwrap(), Admitted::Known);
    let other = store.commit(NOW, &[], &[wanted("a", 8, vec![])]).unwrap();
    assert_eq!(other, [Admitted::Mismatch]);
    store.commit(NOW, &[Write::Forget("a".into())], &[]).unwrap();
    assert_eq!(admit(&mut store, "a").unwrap(), Admitted::Yes);
}

#[test]
fn answers_are_kept_for_their_time_by_a_clock_that_is_set() {
    let mut store = Store::open_on(Disk::default(), LIMITS).unwrap();
    for key in ["a", "b"] {
        admit(&mut store, key).unwrap();
    }
    let finish = |key: &str| vec![Write::Answered(key.into(), vec![]), Write::Done(key.into())];
    store.commit(NOW, &finish("a"), &[]).unwrap();
    // 1970: the time was not synchronised yet.
    store.commit(50, &finish("b"), &[]).unwrap();
    store.purge(2000).unwrap();
    store.purge(NOW + 999).unwrap();
    assert_eq!(store.size().0, 2);
    store.purge(NOW + 1000).unwrap();
    assert_eq!(store.size().0, 1, "a is old, b counts from when the clock was set");
    store.purge(NOW + 1999).unwrap();
    assert_eq!(store.size().0, 0);
}

#[test]
fn time_that_is_left_is_counted_by_a_clock_that_is_set() {
    let mut store = Store::open_on(Disk::default(), LIMITS).unwrap();
    admit(&mut store, "a").unwrap();
    let head = store.held().unwrap().remove(0).head;
    assert_eq!((head.left_s(NOW + 10), head.left_s(NOW + 90), head.left_s(100)), (50, 0, 60));
    let early = Head { received_s: 100, ..head };
    assert_eq!(early.left_s(NOW), 60);
}

/// Whoever was told that it is not kept asks again, and must not be told that it is on its way.
#[test]
fn a_commit_that_failed_and_landed_is_undone() {
    let disk = Disk::default();
    let mut store = Store::open_on(disk.clone(), LIMITS).unwrap();
    assert_eq!(admit(&mut store, "a").unwrap(), Admitted::Yes);
    let next = store.next();
    disk.0.lock().unwrap().lies = true;
    assert!(admit(&mut store, "b").is_err());
    drop(store);
    disk.0.lock().unwrap().lies = false;
    let mut store = Store::open_on(disk, LIMITS).unwrap();
    let held = |store: &Store| store.held().unwrap().into_iter().map(|held| held.key).collect::<Vec<_>>();
    assert_eq!(held(&store), ["a", "b"], "what this is about");
    store.forget_from(next).unwrap();
    assert_eq!((held(&store), store.size().0), (vec!["a".to_owned()], 1));
    assert_eq!((admit(&mut store, "a").unwrap(), admit(&mut store, "b").unwrap()), (Admitted::Known, Admitted::Yes));
}

#[test]
fn nothing_is_written_where_nothing_is_old() {
    let disk = Disk::default();
    let mut store = Store::open_on(disk.clone(), LIMITS).unwrap();
    admit(&mut store, "a").unwrap();
    store.commit(NOW, &[Write::Answered("a".into(), vec![]), Write::Done("a".into())], &[]).unwrap();
    let syncs = || disk.0.lock().unwrap().syncs;
    let before = syncs();
    store.purge(NOW + 999).unwrap();
    assert_eq!(syncs(), before);
    store.purge(NOW + 1000).unwrap();
    assert!(syncs() > before && store.size().0 == 0);
}
