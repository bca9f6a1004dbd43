//! What the routes have in common: the scheduler, the model, the bounds.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request as HttpRequest;
use axum::http::header;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::preset::Presets;
use super::super::sessions::{Lease, Session, Sessions};
use super::super::waiting::Waiting;
use super::idempotency::Keys;
use super::open::{Name, Open};
use super::refusal::Refusal;
use super::report::Report;
use crate::scheduler::backend::{Input, ModelInfo, Sampling};
use crate::scheduler::{Failure, Priority, Request, Scheduler};

/// Most that is read of a body that is refused for its length.
const MAX_DISCARDED: usize = 32 << 20;

/// Bounds of the connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that are served at once.
    pub connections: usize,
    /// Time for a request's head, and again for its body.
    pub header_timeout: Duration,
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Time for an answer, the queue included.
    pub request_timeout: Duration,
}

/// What the routes need; clones share it.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    scheduler: Scheduler,
    model: ModelInfo,
    limits: Limits,
    /// Told apart from the numbers of an earlier run.
    run: u32,
    requests: AtomicU64,
    open: Open,
    keys: Keys,
    sessions: Arc<Sessions>,
    /// The place of the one text that is counted.
    counting: Arc<Semaphore>,
    presets: Box<dyn Fn() -> Presets + Send + Sync>,
    since: u64,
    started: Instant,
}

impl Service {
    /// Routes to `scheduler`; `presets` gives those that hold now.
    pub fn new(
        scheduler: Scheduler,
        model: ModelInfo,
        limits: Limits,
        sessions: Arc<Sessions>,
        presets: impl Fn() -> Presets + Send + Sync + 'static,
    ) -> Service {
        let (run, requests) = (fastrand::u32(..), AtomicU64::new(0));
        Service(Arc::new(Inner {
            scheduler,
            model,
            limits,
            run,
            requests,
            open: Open::default(),
            keys: Keys::default(),
            sessions,
            counting: Arc::new(Semaphore::new(1)),
            presets: Box::new(presets),
            since: unix_time(),
            started: Instant::now(),
        }))
    }

    pub(super) fn report(&self) -> Report<'_> {
        Report::new(&self.0.scheduler, &self.0.model, self.0.started.elapsed())
    }

    pub(super) fn limits(&self) -> Limits {
        self.0.limits
    }

    /// What to call the next request, which its client calls `given`.
    pub(super) fn name(&self, given: Option<String>) -> Name {
        let number = self.0.requests.fetch_add(1, Ordering::Relaxed);
        Name { id: format!("{:08x}-{number}", self.0.run), given }
    }

    pub(super) fn submit(&self, name: &Name, input: Input, sampling: Sampling) -> Result<Waiting, Failure> {
        let deadline = Instant::now().checked_add(self.0.limits.request_timeout);
        let (id, client) = (name.id.clone(), None);
        let request = Request { id, client, priority: Priority::Normal, input, sampling, deadline };
        let waiting = Waiting::submit(&self.0.scheduler, request)?;
        self.0.open.add(name.clone(), waiting.ticket());
        Ok(waiting)
    }

    /// Waits for the right to count a text. The semaphore is never closed.
    pub(super) async fn counting(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.counting).acquire_owned().await.ok()
    }

    pub(super) fn presets(&self) -> Presets {
        (self.0.presets)()
    }

    /// Puts what is known of the session before the messages of `input`.
    pub(super) fn go_on(&self, session: Option<Session>, input: Input) -> Result<(Option<Lease>, Input), Failure> {
        match (session, input) {
            (Some(session), Input::Chat { messages: serde_json::Value::Array(more), tools, enable_thinking }) => {
                let lease = self.0.sessions.begin(None, session, more, Instant::now())?;
                let messages = lease.conversation().into();
                Ok((Some(lease), Input::Chat { messages, tools, enable_thinking }))
            }
            (_, input) => Ok((None, input)),
        }
    }

    /// What is known of `Idempotency-Key`.
    pub(super) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// Forgets a session; whether there was one.
    pub(super) fn forget(&self, session: &str) -> bool {
        self.0.sessions.forget(session)
    }

    /// Takes requests back; how many.
    pub(super) fn cancel(&self, name: &str) -> usize {
        self.0.open.cancel(name)
    }

    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.0.scheduler
    }

    pub(super) fn model(&self) -> &ModelInfo {
        &self.0.model
    }

    /// When it was made, in seconds since 1970.
    pub(super) fn since(&self) -> u64 {
        self.0.since
    }

    /// The whole body, within the limits of size and time.
    pub(super) async fn body(&self, request: HttpRequest) -> Result<Bytes, Refusal> {
        let limit = self.0.limits.body_bytes;
        let declared =
            request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|bytes: u64| bytes > limit as u64) {
            // Many clients read no answer before they have sent everything.
            let _ = tokio::time::timeout(self.0.limits.header_timeout, discard(request.into_body())).await;
            return Err(Refusal::too_large(limit));
        }
        match tokio::time::timeout(self.0.limits.header_timeout, to_bytes(request.into_body(), limit)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) if is_length_limit(&error) => Err(Refusal::too_large(limit)),
            Ok(Err(_)) => Err(Refusal::plain(400, "bad_request", "the body ended early")),
            Err(_) => Err(Refusal::plain(408, "request_timeout", "the body did not arrive in time")),
        }
    }
}

/// Reads a body without keeping it, up to [`MAX_DISCARDED`] bytes.
async fn discard(mut body: Body) {
    let mut left = MAX_DISCARDED;
    while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        match frame.data_ref().map_or(Some(left), |data| left.checked_sub(data.len())) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.to_string().contains("length limit") {
            return true;
        }
        source = error.source();
    }
    false
}

/// Seconds since 1970; 0 while the clock is not set.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
