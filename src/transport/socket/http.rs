//! The routes, and what is told of the daemon itself.

use axum::Router;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde_json::{Value, json};

use super::answers::{chat, completion, prompt, response};
use super::idempotency::once;
use super::refusal::{Refusal, json_response};
use super::report::METRICS_TYPE;
use super::service::Service;
use super::tokens::{detokenize, tokenize};
use crate::scheduler::backend::{Input, Sampling};
use crate::scheduler::{Priority, Request};

const REQUEST_ID: &str = "x-request-id";

/// Longest `X-Request-Id`.
const MAX_REQUEST_ID: usize = 128;

/// All routes of the API.
pub(super) fn router(service: Service) -> Router {
    let answering = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/responses", post(response))
        .route("/v1/prompt", post(prompt))
        .route_layer(axum::middleware::from_fn_with_state(service.clone(), once));
    answering
        .route("/v1/cancel/{*name}", post(cancel))
        .route("/v1/sessions/{id}", delete(forget))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/status", get(status))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(async || {
            Refusal::plain(
                404,
                "not_found",
                "no such path; there are /v1/chat/completions, /v1/completions, /v1/responses, /v1/prompt, \
                 /v1/cancel/{id}, /v1/sessions/{id}, /tokenize, /detokenize, /v1/models, /v1/models/{id}, /v1/status, /healthz, /readyz \
                 and /metrics",
            )
        })
        .method_not_allowed_fallback(async || {
            Refusal::plain(405, "method_not_allowed", "this path does not take this method")
        })
        .layer(axum::middleware::from_fn_with_state(service.clone(), name))
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

async fn models(State(service): State<Service>) -> Response {
    json_response(200, &json!({"object": "list", "data": [entry(&service)]}))
}

/// The loaded model, when it is called so.
async fn model(State(service): State<Service>, Path(id): Path<String>) -> Result<Response, Refusal> {
    if id != service.model().name {
        let message = format!("there is no model of that name; the loaded one is {}", service.model().name);
        return Err(Refusal::plain(404, "not_found", &message));
    }
    Ok(json_response(200, &entry(&service)))
}

fn entry(service: &Service) -> Value {
    let model = service.model();
    json!({
        "id": model.name, "object": "model", "created": service.since(), "owned_by": "local",
        "context": model.context, "vocab": model.vocab, "kv": model.kv, "kernels": model.kernels,
        "threads": model.threads,
    })
}

async fn health(State(service): State<Service>) -> Response {
    let (waiting, running) = service.scheduler().load();
    let draining = service.scheduler().draining();
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
    service.scheduler().admits(&request, 0, 0)?;
    Ok(json_response(200, &json!({"status": "ready"})))
}

/// Takes back what waits or runs under a name.
async fn cancel(State(service): State<Service>, Path(name): Path<String>) -> Result<Response, Refusal> {
    match service.cancel(&name) {
        0 => Err(Refusal::plain(404, "not_found", "no request of that id waits or runs")),
        cancelled => Ok(json_response(200, &json!({"id": name, "cancelled": cancelled}))),
    }
}

/// Forgets a session.
async fn forget(State(service): State<Service>, Path(id): Path<String>) -> Result<Response, Refusal> {
    match service.forget(&id) {
        false => Err(Refusal::plain(404, "not_found", "no session of that name, or a request of it waits or runs")),
        true => Ok(json_response(200, &json!({"id": id, "deleted": true}))),
    }
}

/// Gives every request a name, and says it with whatever answer: the client's `X-Request-Id` where there is one.
async fn name(State(service): State<Service>, mut request: HttpRequest, next: axum::middleware::Next) -> Response {
    let given = request.headers().get(REQUEST_ID).cloned();
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    let good = |id: &HeaderValue| (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(known);
    if given.as_ref().is_some_and(|id| !good(id)) {
        let message = format!("X-Request-Id: expected 1 to {MAX_REQUEST_ID} letters, digits and -_.:/+=");
        return Refusal::plain(400, "bad_request", &message).into_response();
    }
    let name = service.name(given.as_ref().and_then(|id| id.to_str().ok()).map(str::to_owned));
    // What was not given is hexadecimal digits and a dash.
    let told = given.or_else(|| HeaderValue::from_str(&name.id).ok());
    request.extensions_mut().insert(name);
    let mut response = next.run(request).await;
    if let Some(told) = told {
        response.headers_mut().insert(REQUEST_ID, told);
    }
    response
}
