//! `Idempotency-Key`: who asks again gets the answer of the first time, or waits for it together with who asked first.
//!
//! A request with a key runs in a task of its own, which lives as long as somebody waits for its answer.

use std::error::Error as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::answers::SESSION_ID;
use super::refusal::Refusal;
use super::service::Service;
use crate::scheduler::backend::InputError;
use crate::scheduler::{Code, Failure};

const KEY: &str = "idempotency-key";

/// Says that an answer was not made for this request alone.
const REPLAYED: &str = "idempotency-replayed";

/// Longest key.
const MAX_KEY: usize = 255;

/// Most answers that are kept.
const MAX_ANSWERS: usize = 64;

/// Most bytes of them all.
const MAX_BYTES: usize = 4 << 20;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(600);

/// What an answer takes beside its body: key, headers, place.
const OVERHEAD: usize = 1024;

/// The user on the other side of a connection; `None` when the kernel does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(pub(super) Option<u32>);

/// Whose key it is, and what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    peer: Peer,
    key: String,
    /// Of path, query, session by header, and body.
    digest: [u8; 32],
}

/// A complete response.
#[derive(Clone, Debug)]
struct Whole {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// A request that runs; it is taken back when nobody waits for it any more.
struct Run {
    result: watch::Receiver<Option<Whole>>,
    task: AbortHandle,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Known {
    Runs(Weak<Run>),
    Answered(Whole, Instant),
}

/// What a request with a key gets.
enum Found {
    Runs { run: Arc<Run>, joined: bool },
    Answered(Whole),
}

/// What is known of keys; the latest answer is the last.
#[derive(Default)]
pub(super) struct Keys(Mutex<Vec<(Asked, Known)>>);

impl Keys {
    fn lock(&self) -> MutexGuard<'_, Vec<(Asked, Known)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is for `asked`; what is new is begun by `start`.
    fn find(&self, asked: &Asked, now: Instant, start: impl FnOnce() -> Arc<Run>) -> Result<Found, Failure> {
        let mut all = self.lock();
        all.retain(|(_, known)| match known {
            Known::Runs(run) => run.strong_count() > 0,
            Known::Answered(_, at) => now.saturating_duration_since(*at) < KEPT,
        });
        let same = |other: &Asked| other.peer == asked.peer && other.key == asked.key;
        if let Some((earlier, known)) = all.iter().find(|(other, _)| same(other)) {
            if earlier.digest != asked.digest {
                let message = "Idempotency-Key: came with another request before; choose another key";
                return Err(Failure::new(Code::DuplicateMismatch, message));
            }
            match known {
                Known::Answered(whole, _) => return Ok(Found::Answered(whole.clone())),
                Known::Runs(run) => {
                    if let Some(run) = run.upgrade() {
                        return Ok(Found::Runs { run, joined: true });
                    }
                }
            }
            all.retain(|(other, _)| !same(other));
        }
        let run = start();
        all.push((asked.clone(), Known::Runs(Arc::downgrade(&run))));
        Ok(Found::Runs { run, joined: false })
    }

    /// The end of what ran. A failure is not kept: who asks again may have more luck.
    fn ended(&self, asked: &Asked, whole: &Whole, now: Instant) {
        let mut all = self.lock();
        all.retain(|(other, _)| other != asked);
        if whole.status == StatusCode::OK {
            all.push((asked.clone(), Known::Answered(whole.clone(), now)));
        }
        let bytes = |(_, known): &(Asked, Known)| match known {
            Known::Runs(_) => None,
            Known::Answered(whole, _) => Some(whole.body.len() + OVERHEAD),
        };
        while all.iter().filter_map(bytes).count() > MAX_ANSWERS
            || all.iter().filter_map(bytes).sum::<usize>() > MAX_BYTES
        {
            let Some(oldest) = all.iter().position(|entry| bytes(entry).is_some()) else { break };
            all.remove(oldest);
        }
    }
}

/// The layer of the routes that make answers.
pub(super) async fn once(
    State(service): State<Service>,
    Extension(peer): Extension<Peer>,
    request: HttpRequest,
    next: Next,
) -> Result<Response, Refusal> {
    let Some(key) = key(request.headers())? else { return Ok(next.run(request).await) };
    let (parts, body) = request.into_parts();
    let body = service.body(HttpRequest::from_parts(parts.clone(), body)).await?;
    if parts.uri.path() != "/v1/prompt" && streams(&body) {
        let message = "stream: not together with Idempotency-Key; leave one of them out";
        return Err(InputError::new("stream", message).into());
    }
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let mut digest = Sha256::new();
    digest.update((target.len() as u64).to_le_bytes());
    digest.update(target);
    let session = parts.headers.get(SESSION_ID).map_or(&[][..], |name| name.as_bytes());
    digest.update((session.len() as u64).to_le_bytes());
    digest.update(session);
    digest.update(&body);
    let asked = Asked { peer, key, digest: digest.finalize().into() };
    let start = || {
        let (sender, result) = watch::channel(None);
        let (service, asked) = (service.clone(), asked.clone());
        let task = tokio::spawn(async move {
            let whole = collect(next.run(HttpRequest::from_parts(parts, Body::from(body))).await).await;
            service.keys().ended(&asked, &whole, Instant::now());
            // Fails when nobody waits, which is no matter.
            let _ = sender.send(Some(whole));
        });
        Arc::new(Run { result, task: task.abort_handle() })
    };
    match service.keys().find(&asked, Instant::now(), start)? {
        Found::Answered(whole) => Ok(whole.response(true)),
        Found::Runs { run, joined } => {
            let mut result = run.result.clone();
            let whole = result.wait_for(Option::is_some).await.ok().and_then(|whole| whole.clone());
            let lost = || Failure::new(Code::Internal, "the request ended without an answer");
            Ok(whole.ok_or_else(lost)?.response(joined))
        }
    }
}

impl Whole {
    fn response(self, replayed: bool) -> Response {
        let mut response = (self.status, self.headers, self.body).into_response();
        if replayed {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

/// The key of a request, if it has one.
fn key(headers: &HeaderMap) -> Result<Option<String>, InputError> {
    let mut given = headers.get_all(KEY).iter();
    let Some(key) = given.next() else { return Ok(None) };
    let good = (1..=MAX_KEY).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic);
    match (key.to_str(), given.next()) {
        (Ok(key), None) if good => Ok(Some(key.to_owned())),
        _ => {
            let message = format!("Idempotency-Key: expected once, 1 to {MAX_KEY} visible ASCII characters");
            Err(InputError { message, param: None })
        }
    }
}

/// Whether the answer is wanted in pieces. What cannot be read is refused later.
fn streams(body: &[u8]) -> bool {
    // Of a field that is there twice the last one counts, as for those who answer.
    serde_json::from_slice::<Value>(body).is_ok_and(|body| body["stream"] == true)
}

/// Waits for the whole body. One that is cut off is the failure that cut it.
async fn collect(response: Response) -> Whole {
    let (parts, body) = response.into_parts();
    match to_bytes(body, usize::MAX).await {
        Ok(body) => Whole { status: parts.status, headers: parts.headers, body },
        Err(error) => {
            let mut cause = error.source();
            let failure = loop {
                let Some(found) = cause else { break Failure::new(Code::Internal, error.to_string()) };
                match found.downcast_ref::<Failure>() {
                    Some(failure) => break failure.clone(),
                    None => cause = found.source(),
                }
            };
            let (parts, body) = Refusal::from(failure).into_response().into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
            Whole { status: parts.status, headers: parts.headers, body }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_two_fields_says_whether_it_streams() {
        for (body, streamed) in [
            (r#"{"stream":true}"#, true),
            (r#"{"stream":false,"stream":true}"#, true),
            (r#"{"stream":true,"stream":false}"#, false),
            (r#"{"stream":"true"}"#, false),
            ("[]", false),
            ("{", false),
        ] {
            assert_eq!(streams(body.as_bytes()), streamed, "{body}");
        }
    }

    fn asked(peer: u32, key: &str, digest: u8) -> Asked {
        Asked { peer: Peer(Some(peer)), key: key.into(), digest: [digest; 32] }
    }

    fn whole(status: u16, bytes: usize) -> Whole {
        let (status, headers) = (StatusCode::from_u16(status).unwrap(), HeaderMap::new());
        Whole { status, headers, body: vec![b'x'; bytes].into() }
    }

    fn run() -> Arc<Run> {
        Arc::new(Run {
            result: watch::channel(None).1,
            task: tokio::spawn(std::future::pending::<()>()).abort_handle(),
        })
    }

    /// Whether there is an answer for `asked`, or it would have to be made.
    fn answered(keys: &Keys, asked: &Asked, now: Instant) -> bool {
        matches!(keys.find(asked, now, run), Ok(Found::Answered(_)))
    }

    #[tokio::test]
    async fn keys_are_a_users_own_and_belong_to_one_request() {
        let (keys, now) = (Keys::default(), Instant::now());
        let first = keys.find(&asked(1, "k", 1), now, run);
        assert!(matches!(first, Ok(Found::Runs { joined: false, .. })));
        let second = keys.find(&asked(1, "k", 1), now, run);
        assert!(matches!(second, Ok(Found::Runs { joined: true, .. })));
        assert!(keys.find(&asked(1, "k", 2), now, run).is_err_and(|failure| failure.code == Code::DuplicateMismatch));
        assert!(matches!(keys.find(&asked(2, "k", 2), now, run), Ok(Found::Runs { joined: false, .. })));
        // One who still waits is enough; when nobody does, the key is free again.
        drop(first);
        assert!(matches!(keys.find(&asked(1, "k", 1), now, run), Ok(Found::Runs { joined: true, .. })));
        drop(second);
        assert!(matches!(keys.find(&asked(1, "k", 2), now, run), Ok(Found::Runs { joined: false, .. })));
    }

    #[tokio::test]
    async fn answers_are_kept_for_a_while_and_failures_are_not() {
        let (keys, now) = (Keys::default(), Instant::now());
        keys.ended(&asked(1, "bad", 1), &whole(503, 1), now);
        keys.ended(&asked(1, "good", 1), &whole(200, 1), now);
        assert!(!answered(&keys, &asked(1, "bad", 1), now) && answered(&keys, &asked(1, "good", 1), now));
        assert!(answered(&keys, &asked(1, "good", 1), now + KEPT - Duration::from_secs(1)));
        assert!(!answered(&keys, &asked(1, "good", 1), now + KEPT));
    }

    #[tokio::test]
    async fn number_and_bytes_are_bounded_and_the_oldest_goes_first() {
        let (keys, now) = (Keys::default(), Instant::now());
        for number in 0..=MAX_ANSWERS {
            keys.ended(&asked(1, &number.to_string(), 1), &whole(200, 1), now);
        }
        assert!(!answered(&keys, &asked(1, "0", 1), now) && answered(&keys, &asked(1, "1", 1), now));
        keys.ended(&asked(1, "large", 1), &whole(200, MAX_BYTES - 2 * OVERHEAD - 1), now);
        assert!(answered(&keys, &asked(1, "large", 1), now));
        assert!(answered(&keys, &asked(1, &MAX_ANSWERS.to_string(), 1), now), "room for one small one");
        assert!(!answered(&keys, &asked(1, &(MAX_ANSWERS - 1).to_string(), 1), now));
        keys.ended(&asked(1, "huge", 1), &whole(200, MAX_BYTES), now);
        assert!(!answered(&keys, &asked(1, "huge", 1), now), "larger than all may be");
    }

    #[test]
    fn keys_are_short_and_visible() {
        let read = |given: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for key in given {
                headers.append(KEY, HeaderValue::from_bytes(key).unwrap());
            }

            key(&headers)
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[b"a-1~!"]), Ok(Some("a-1~!".to_owned())));
        assert!(read(&[&[b'x'; MAX_KEY]]).is_ok());
        for bad in [&[&b""[..]][..], &[b"a b"], &["é".as_bytes()], &[&[b'x'; MAX_KEY + 1]], &[b"a", b"a"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
