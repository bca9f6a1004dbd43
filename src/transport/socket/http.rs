//! The routes.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request as HttpRequest, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Body as _;
use serde_json::{Map, Value, json};

use super::super::fields::{Fields, conversation};
use super::super::openai::{self, ChatRequest, Envelope, Kind};
use super::super::waiting::Waiting;
use super::body::{AnswerBody, Events, Plain};
use super::report::{METRICS_TYPE, Report};
use crate::scheduler::backend::{Input, InputError, ModelInfo, Sampling};
use crate::scheduler::{Failure, Priority, Request, Scheduler, Update};

const REQUEST_ID: &str = "x-request-id";

/// Longest `X-Request-Id`.
const MAX_REQUEST_ID: usize = 128;

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
    since: u64,
    started: Instant,
}

impl Service {
    /// Routes to `scheduler`.
    pub fn new(scheduler: Scheduler, model: ModelInfo, limits: Limits) -> Service {
        let (run, requests) = (fastrand::u32(..), AtomicU64::new(0));
        Service(Arc::new(Inner {
            scheduler,
            model,
            limits,
            run,
            requests,
            since: unix_time(),
            started: Instant::now(),
        }))
    }

    fn report(&self) -> Report<'_> {
        Report::new(&self.0.scheduler, &self.0.model, self.0.started.elapsed())
    }

    pub(super) fn limits(&self) -> Limits {
        self.0.limits
    }

    fn submit(&self, input: Input, sampling: Sampling) -> Result<(String, Waiting), Failure> {
        let number = self.0.requests.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}-{number}", self.0.run);
        let deadline = Instant::now().checked_add(self.0.limits.request_timeout);
        let request = Request { id: id.clone(), client: None, priority: Priority::Normal, input, sampling, deadline };
        Ok((id, Waiting::submit(&self.0.scheduler, request)?))
    }

    async fn body(&self, request: HttpRequest) -> Result<Bytes, Refusal> {
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

/// All routes of the API.
pub(super) fn router(service: Service) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/prompt", post(prompt))
        .route("/v1/models", get(models))
        .route("/v1/status", get(status))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async || {
            Refusal::plain(
                404,
                "not_found",
                "no such path; there are /v1/chat/completions, /v1/completions, /v1/prompt, /v1/models, /v1/status, /healthz, \
                 /readyz and /metrics",
            )
        })
        .method_not_allowed_fallback(async || {
            Refusal::plain(405, "method_not_allowed", "this path does not take this method")
        })
        .layer(axum::middleware::from_fn(name))
        .with_state(service)
}

/// What connections beyond the limit get, whatever they ask.
pub(super) fn refusing_router() -> Router {
    Router::new().fallback(async || {
        let mut response = Refusal::plain(503, "busy", "too many connections; try again in a second").into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    })
}

async fn chat(State(service): State<Service>, request: HttpRequest) -> Result<Response, Refusal> {
    let chat = ChatRequest::parse(&service.body(request).await?)?;
    answer(&service, chat, Kind::Chat).await
}

async fn completion(State(service): State<Service>, request: HttpRequest) -> Result<Response, Refusal> {
    let text = ChatRequest::parse_text(&service.body(request).await?)?;
    answer(&service, text, Kind::Text).await
}

async fn answer(service: &Service, chat: ChatRequest, kind: Kind) -> Result<Response, Refusal> {
    let (id, waiting) = service.submit(chat.input, chat.sampling)?;
    let id = format!("{}-{id}", if kind == Kind::Chat { "chatcmpl" } else { "cmpl" });
    let envelope = Envelope { kind, id, created: unix_time(), model: service.0.model.name.clone() };
    if chat.stream {
        let first = first_update(&waiting).await?;
        let form = Events { envelope, include_usage: chat.include_usage, role_sent: false, calls: 0 };
        let body = Body::new(AnswerBody::new(waiting, first, form));
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        return Ok((headers, body).into_response());
    }
    // When the client hangs up, hyper drops this future and with it the request.
    loop {
        if let Some(result) = waiting.next().await.ended {
            return Ok(json_response(200, &envelope.completion(&result?)));
        }
    }
}

/// Text in, text out. The query takes `system`, `raw=true` and the sampling fields of the chat API.
async fn prompt(
    State(service): State<Service>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: HttpRequest,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|error| InputError { message: format!("query: {error}"), param: None })?;
    let mut fields = query_fields(query)?;
    let raw = fields.flag("raw")?.unwrap_or(false);
    let system = fields.text("system")?;
    let sampling = fields.sampling()?;
    let body = service.body(request).await?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| InputError { message: format!("the body is not UTF-8: {error}"), param: None })?;
    if text.trim().is_empty() {
        return Err(InputError { message: "the body is empty; expected a prompt".into(), param: None }.into());
    }
    let input = match (raw, system) {
        (true, Some(_)) => return Err(InputError::new("system", "system: not together with raw=true").into()),
        (true, None) => Input::Raw(text.to_owned()),
        (false, system) => conversation(system.as_deref(), text, false),
    };
    let (_, waiting) = service.submit(input, sampling)?;
    let first = first_update(&waiting).await?;
    let body = Body::new(AnswerBody::new(waiting, first, Plain));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// Waits until the status line can be written: the request runs, has failed, or has to queue. Only what fails after
/// having queued must be told in the body.
async fn first_update(waiting: &Waiting) -> Result<Update, Failure> {
    let update = waiting.next().await;
    match update.ended {
        Some(Err(failure)) => Err(failure),
        _ => Ok(update),
    }
}

async fn models(State(service): State<Service>) -> Response {
    let model = &service.0.model;
    let entry = json!({
        "id": model.name, "object": "model", "created": service.0.since, "owned_by": "local",
        "context": model.context, "vocab": model.vocab, "kv": model.kv, "kernels": model.kernels,
        "threads": model.threads,
    });
    json_response(200, &json!({"object": "list", "data": [entry]}))
}

async fn health(State(service): State<Service>) -> Response {
    let (waiting, running) = service.0.scheduler.load();
    let draining = service.0.scheduler.draining();
    let (status, word) = if draining { (503, "shutting_down") } else { (200, "ok") };
    json_response(status, &json!({"status": word, "running": running, "waiting": waiting}))
}

async fn status(State(service): State<Service>) -> Response {
    json_response(200, &service.report().status())
}

async fn metrics(State(service): State<Service>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], service.report().metrics()).into_response()
}

/// Whether a request sent now would be taken; the reason when it would not.
async fn ready(State(service): State<Service>) -> Result<Response, Refusal> {
    let (input, sampling) = (Input::Raw(String::new()), Sampling::default());
    let request =
        Request { id: String::new(), client: None, priority: Priority::Normal, input, sampling, deadline: None };
    service.0.scheduler.admits(&request, 0, 0)?;
    Ok(json_response(200, &json!({"status": "ready"})))
}

/// Gives a request's `X-Request-Id` back, with whatever answer.
async fn name(request: HttpRequest, next: axum::middleware::Next) -> Response {
    let Some(id) = request.headers().get(REQUEST_ID).cloned() else { return next.run(request).await };
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    if id.is_empty() || id.len() > MAX_REQUEST_ID || !id.as_bytes().iter().all(known) {
        let message = format!("X-Request-Id: expected 1 to {MAX_REQUEST_ID} letters, digits and -_.:/+=");
        return Refusal::plain(400, "bad_request", &message).into_response();
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Query parameters as the fields of a JSON object: what reads as JSON number or boolean is one, the rest is text.
fn query_fields(query: Vec<(String, String)>) -> Result<Fields, InputError> {
    let mut map = Map::new();
    for (name, text) in query {
        let value = match serde_json::from_str::<Value>(&text) {
            Ok(value @ (Value::Number(_) | Value::Bool(_))) if name != "system" && name != "stop" => value,
            _ => Value::String(text),
        };
        if map.insert(name.clone(), value).is_some() {
            return Err(InputError::new(&name, format!("{name}: given twice")));
        }
    }
    Ok(Fields::from(map))
}

/// An error response in OpenAI's shape.
struct Refusal {
    status: u16,
    body: Value,
    retry_after_s: Option<u64>,
}

impl Refusal {
    fn plain(status: u16, code: &str, message: &str) -> Refusal {
        Refusal { status, body: openai::error(status, code, message, None), retry_after_s: None }
    }

    fn too_large(limit: usize) -> Refusal {
        let mut message = String::new();
        let _ = write!(message, "the body is larger than {limit} bytes (`body_bytes` in the section [limits])");
        Refusal::plain(413, "too_large", &message)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        let (status, body) = openai::failure(&failure);
        Refusal { status, body, retry_after_s: failure.retry_after_s }
    }
}

impl From<InputError> for Refusal {
    fn from(error: InputError) -> Refusal {
        Failure::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body);
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn json_response(status: u16, value: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
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
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Code;

    #[test]
    fn query_parameters_are_fields() {
        let query = [("temperature", "0.5"), ("seed", "7"), ("system", "42"), ("raw", "false"), ("stop", "1")];
        let mut fields = query_fields(query.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec()).unwrap();
        let sampling = fields.sampling().unwrap();
        assert_eq!((sampling.temperature, sampling.seed, sampling.stop), (Some(0.5), Some(7), vec!["1".to_owned()]));
        assert_eq!(fields.text("system").unwrap().as_deref(), Some("42"));
        assert_eq!(fields.flag("raw").unwrap(), Some(false));
        let twice = [("seed", "7"), ("seed", "8")].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
        assert_eq!(query_fields(twice).unwrap_err().param.as_deref(), Some("seed"));
    }

    #[test]
    fn failures_carry_retry_after() {
        let failure = Failure { retry_after_s: Some(9), ..Failure::new(Code::Busy, "full") };
        let response = Refusal::from(failure).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "9");
    }
}
