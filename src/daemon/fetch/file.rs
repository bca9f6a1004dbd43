//! One file: what the server says of it, and its bytes, or some of them, into a file that is gone on with after a cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::StatusCode;
use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, sleep_until};

use super::error::FetchError;
use super::http::{Answer, Http};

/// Attempts in a row that bring nothing, after the server has answered once, and before.
const ATTEMPTS: [u32; 2] = [12, 3];

/// The first wait between them; it doubles up to the last.
const WAITS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(60)];

/// What happens meanwhile.
pub(in crate::daemon) enum Event<'a> {
    /// So much of a file is there.
    Bytes {
        /// Bytes.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// A file is there.
    File {
        /// Its name.
        name: &'a str,
        /// Its bytes, or those that were wanted.
        bytes: u64,
        /// How it was checked.
        checked: &'a str,
    },
    /// An attempt failed, the next one follows.
    Again {
        /// Why.
        reason: &'a FetchError,
        /// In so much time.
        wait: Duration,
    },
}

/// A file as the server has it.
#[derive(Clone)]
pub(super) struct Remote {
    pub(super) url: String,
    pub(super) len: u64,
    /// Names its content; without one, nothing can be put together from pieces.
    tag: Option<String>,
    etag: Option<String>,
    /// SHA-256 of all of it, as the server says.
    pub(super) sha256: Option<String>,
    ranges: bool,
    /// The commit it is of.
    pub(super) commit: Option<String>,
}

impl Remote {
    /// Whether pieces of it can be had that are known to belong together.
    pub(super) fn in_pieces(&self) -> bool {
        self.ranges && self.tag.is_some()
    }
}

/// What is written: `head`, then the ranges of the server's file, in order.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) head: Vec<u8>,
    pub(super) ranges: Vec<Range<u64>>,
}

impl Wanted {
    /// All of `remote`.
    pub(super) fn whole(remote: &Remote) -> Wanted {
        Wanted { head: Vec::new(), ranges: std::iter::once(0..remote.len).collect() }
    }

    /// Bytes that the written file has.
    pub(super) fn len(&self) -> u64 {
        self.head.len() as u64 + self.ranges.iter().map(|range| range.end - range.start).sum::<u64>()
    }

    /// What of the server's file comes next when `at` bytes are written: up to the end of a range.
    fn rest(&self, at: u64) -> Option<Range<u64>> {
        let mut skip = at.saturating_sub(self.head.len() as u64);
        self.ranges.iter().find_map(|range| {
            let len = range.end - range.start;
            let rest = (skip < len).then(|| range.start + skip..range.end);
            skip = skip.saturating_sub(len);
            rest
        })
    }
}

/// A connection to the repository that does not go faster than it may, and tries again.
pub(super) struct Line<'a> {
    pub(super) http: Http,
    /// Bytes a second.
    pub(super) rate: Option<u64>,
    pub(super) due: Instant,
    pub(super) answered: bool,
    pub(super) tell: &'a mut dyn FnMut(Event<'_>),
}

impl Line<'_> {
    /// Waits for as long as `bytes` more may take.
    async fn pace(&mut self, bytes: usize) {
        if let Some(rate) = self.rate {
            self.due = self.due.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            sleep_until(self.due).await;
        }
    }

    /// Waits before the next attempt, or gives up over `error`.
    async fn again(&mut self, failed: &mut u32, error: FetchError) -> Result<(), FetchError> {
        let attempts = if self.answered { ATTEMPTS[0] } else { ATTEMPTS[1] };
        *failed += 1;
        if !matches!(error, FetchError::Lost { .. }) || *failed >= attempts {
            return Err(error);
        }
        let wait = WAITS[0].saturating_mul(1 << (*failed - 1).min(16)).min(WAITS[1]);
        (self.tell)(Event::Again { reason: &error, wait });
        sleep(wait).await;
        Ok(())
    }

    /// Asks what the server has at `url`; `None` if nothing.
    pub(super) async fn probe(&mut self, url: &str) -> Result<Option<Remote>, FetchError> {
        let mut failed = 0;
        loop {
            let error = match self.http.get(url, Some(0..1), None).await {
                Ok(answer) if answer.status == StatusCode::NOT_FOUND => return Ok(None),
                Ok(answer) => match usable(url, &answer) {
                    Ok(()) => {
                        self.answered = true;
                        return remote(url, &answer).map(Some);
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            self.again(&mut failed, error).await?;
        }
    }

    /// The bytes `range` of `remote`, in memory.
    pub(super) async fn bytes(&mut self, remote: &Remote, range: Range<u64>) -> Result<Vec<u8>, FetchError> {
        let (mut bytes, mut failed) = (Vec::new(), 0);
        while (bytes.len() as u64) < range.end - range.start {
            let before = bytes.len();
            let rest = range.start + before as u64..range.end;
            let mut keep = |piece: &[u8]| {
                bytes.extend_from_slice(piece);
                Ok(())
            };
            if let Err(error) = self.pieces(remote, Some(rest), (0, 0), &mut keep).await {
                if bytes.len() > before {
                    failed = 0;
                }
                self.again(&mut failed, error).await?;
            }
        }
        Ok(bytes)
    }

    /// One request for `rest` of `remote`, or for all of it; each piece goes to `take`. `done` of `total` bytes are there.
    async fn pieces(
        &mut self,
        remote: &Remote,
        rest: Option<Range<u64>>,
        (mut done, total): (u64, u64),
        take: &mut dyn FnMut(&[u8]) -> Result<(), FetchError>,
    ) -> Result<(), FetchError> {
        let mut answer = self.http.get(&remote.url, rest.clone(), remote.etag.as_deref()).await?;
        let changed = || FetchError::Changed { url: remote.url.clone() };
        if answer.status == StatusCode::RANGE_NOT_SATISFIABLE || answer.status == StatusCode::NOT_FOUND {
            return Err(changed());
        }
        usable(&remote.url, &answer)?;
        let expected = rest.clone().unwrap_or(0..remote.len);
        let same = match (rest, answer.status) {
            (Some(rest), StatusCode::PARTIAL_CONTENT) => answer.range() == Some((rest.start, rest.end, remote.len)),
            (None, StatusCode::OK) => answer.length().is_none_or(|len| len == remote.len),
            _ => false,
        };
        if !same || answer.tag() != remote.tag {
            return Err(changed());
        }
        let mut left = expected.end - expected.start;
        while let Some(piece) = answer.next(&remote.url).await? {
            left = left.checked_sub(piece.len() as u64).ok_or_else(changed)?;
            take(&piece)?;
            done += piece.len() as u64;
            if total > 0 {
                (self.tell)(Event::Bytes { done, total });
            }
            self.pace(piece.len()).await;
        }
        match left {
            0 => Ok(()),
            _ => Err(FetchError::Lost { url: remote.url.clone(), reason: format!("ended {left} bytes early") }),
        }
    }

    /// Writes what is `wanted` of `remote` to the file `to`, and goes on where an earlier attempt was cut.
    pub(super) async fn download(&mut self, remote: &Remote, wanted: &Wanted, to: &Path) -> Result<(), FetchError> {
        let (partial, note) = (beside(to, "partial"), beside(to, "tag"));
        // What a file has to be of for going on with it.
        let of = remote.tag.as_ref().map(|tag| format!("{tag} {} {}\n", remote.len, wanted.len()));
        let known = of.is_some() && fs::read_to_string(&note).ok() == of;
        if known && fs::metadata(to).is_ok_and(|found| found.len() == wanted.len()) {
            return Ok(());
        }
        if !known {
            // Before the note says what is to come: a finished file of another version would pass for it.
            forget(to);
        }
        let mut options = OpenOptions::new();
        let open = options.read(true).write(true).create(true).truncate(false).custom_flags(OFlag::O_NOFOLLOW.bits());
        let mut file = open.open(&partial).map_err(failed(&partial, "write"))?;
        let mut at =
            if known && remote.in_pieces() { there(&mut file, wanted).map_err(failed(&partial, "read"))? } else { 0 };
        file.set_len(at).map_err(failed(&partial, "write"))?;
        file.seek(SeekFrom::Start(at)).map_err(failed(&partial, "write"))?;
        fs::write(&note, of.unwrap_or_default()).map_err(failed(&note, "write"))?;

        if let Some(rest) = wanted.head.get(at as usize..) {
            file.write_all(rest).map_err(failed(&partial, "write"))?;
            at += rest.len() as u64;
        }
        let mut failures = 0;
        while let Some(rest) = wanted.rest(at) {
            if !remote.in_pieces() {
                at = 0;
                file.set_len(0).and_then(|()| file.rewind()).map_err(failed(&partial, "write"))?;
            }
            let before = at;
            let mut keep = |piece: &[u8]| {
                file.write_all(piece).map_err(failed(&partial, "write"))?;
                at += piece.len() as u64;
                Ok(())
            };
            let result =
                self.pieces(remote, remote.in_pieces().then_some(rest), (before, wanted.len()), &mut keep).await;
            if let Err(error) = result {
                if remote.in_pieces() && at > before {
                    failures = 0;
                }
                self.again(&mut failures, error).await?;
            }
        }
        file.sync_all().map_err(failed(&partial, "write"))?;
        fs::rename(&partial, to).map_err(failed(to, "write"))
    }
}

/// How much of `wanted` is in `file` already; nothing when it begins otherwise.
fn there(file: &mut File, wanted: &Wanted) -> io::Result<u64> {
    let len = file.metadata()?.len();
    if len > wanted.len() {
        return Ok(0);
    }
    let mut head = Vec::new();
    file.take(wanted.head.len() as u64).read_to_end(&mut head)?;
    Ok(if wanted.head.starts_with(&head) { len } else { 0 })
}

/// What `answer` to the first request for a file says of it.
fn remote(url: &str, answer: &Answer) -> Result<Remote, FetchError> {
    let refused = |reason: &str| FetchError::Server { url: url.to_owned(), reason: reason.to_owned() };
    let (ranges, len) = match answer.status {
        StatusCode::PARTIAL_CONTENT => (true, answer.range().filter(|range| (range.0, range.1) == (0, 1)).map(|r| r.2)),
        _ => (false, answer.length()),
    };
    let len = len.ok_or_else(|| refused("does not say how long the file is"))?;
    if len == 0 {
        return Err(refused("an empty file"));
    }
    let (tag, etag, sha256, commit) = (answer.tag(), answer.etag(), answer.sha256(), answer.commit.clone());
    Ok(Remote { url: url.to_owned(), len, tag, etag, sha256, ranges, commit })
}

/// Whether an answer is one with content, and whom to ask if not.
fn usable(url: &str, answer: &Answer) -> Result<(), FetchError> {
    let url = url.to_owned();
    match answer.status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(FetchError::Denied { url, status: answer.status }),
        StatusCode::RANGE_NOT_SATISFIABLE => Err(FetchError::Server { url, reason: "an empty file".to_owned() }),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(FetchError::Lost { url, reason: format!("the server answers {status}") })
        }
        status => Err(FetchError::Server { url, reason: format!("the server answers {status}") }),
    }
}

/// The SHA-256 of a file, in hexadecimal.
pub(super) fn sha256(path: &Path) -> Result<String, FetchError> {
    let mut file = File::open(path).map_err(failed(path, "read"))?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).map_err(failed(path, "read"))? {
            0 => break,
            read => hash.update(&piece[..read]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Deletes a file that is not what it should be, what is there of the next one, and what was noted about it.
pub(super) fn forget(path: &Path) {
    for path in [path.to_owned(), beside(path, "partial"), beside(path, "tag")] {
        let _ = fs::remove_file(path);
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    path.with_added_extension(ending)
}

/// An error of the system about `path`.
pub(super) fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FetchError {
    move |source| FetchError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_ranges() {
        let wanted = Wanted { head: vec![0; 10], ranges: vec![100..120, 500..501] };
        assert_eq!(wanted.len(), 31);
        for (at, rest) in [
            (0, Some(100..120)),
            (10, Some(100..120)),
            (11, Some(101..120)),
            (29, Some(119..120)),
            (30, Some(500..501)),
            (31, None),
        ] {
            assert_eq!(wanted.rest(at), rest, "{at}");
        }
    }
}
