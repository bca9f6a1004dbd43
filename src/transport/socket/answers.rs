//! The routes that give answers of the model.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, Request as HttpRequest, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::super::fields::{Fields, conversation};
use super::super::openai::{ChatRequest, Envelope, Kind};
use super::super::responses::output::Output;
use super::super::responses::request::ResponsesRequest;
use super::super::sessions::{Lease, Session};
use super::super::waiting::Waiting;
use super::body::{AnswerBody, Events, Form, Plain, ResponseEvents};
use super::open::Name;
use super::refusal::{Refusal, json_response};
use super::service::{Service, unix_time};
use crate::scheduler::backend::{Input, InputError};
use crate::scheduler::{Answer, Failure, Update};

/// How many messages of a session were known, where the body has no place to say it.
const SESSION_KNOWN: &str = "x-session-known-messages";

/// The session that a request continues, if it says so by a header.
pub(super) const SESSION_ID: &str = "x-session-id";

fn session_header(request: &HttpRequest) -> Option<Vec<u8>> {
    request.headers().get(SESSION_ID).map(|name| name.as_bytes().to_vec())
}

/// `POST /v1/chat/completions`.
pub(super) async fn chat(
    State(service): State<Service>,
    Extension(name): Extension<Name>,
    request: HttpRequest,
) -> Result<Response, Refusal> {
    let header = session_header(&request);
    let mut chat = ChatRequest::parse_with(&service.body(request).await?, &service.presets())?;
    chat.session = Session::or(header.as_deref(), chat.session)?;
    answer(&service, &name, chat, Kind::Chat).await
}

/// `POST /v1/completions`.
pub(super) async fn completion(
    State(service): State<Service>,
    Extension(name): Extension<Name>,
    request: HttpRequest,
) -> Result<Response, Refusal> {
    let text = ChatRequest::parse_text(&service.body(request).await?)?;
    answer(&service, &name, text, Kind::Text).await
}

/// `POST /v1/responses`.
pub(super) async fn response(
    State(service): State<Service>,
    Extension(name): Extension<Name>,
    request: HttpRequest,
) -> Result<Response, Refusal> {
    let header = session_header(&request);
    let mut wanted = ResponsesRequest::parse(&service.body(request).await?)?;
    let session = Session::or(header.as_deref(), wanted.session)?;
    let words = wanted.sampling.logprobs.map(|_| Arc::clone(&service.model().vocabulary));
    let (lease, input) = service.go_on(session, wanted.input)?;
    if let Some(lease) = &lease {
        wanted.echo.insert("session".into(), lease.told());
    }
    let waiting = service.submit(&name, input, wanted.sampling).map_err(renamed)?;
    let output = Output::new(name.id.clone(), unix_time(), service.model().name.clone(), wanted.echo, words);
    if wanted.stream {
        let first = first_update(&waiting).await.map_err(renamed)?;
        return Ok(events(AnswerBody::new(waiting, first, ResponseEvents(output)).continuing(lease, &name.id)));
    }
    let answer = whole(&waiting).await.map_err(renamed)?;
    if let Some(lease) = lease {
        lease.answered(&answer, &name.id);
    }
    Ok(json_response(200, &output.whole(&answer)))
}

/// A failure that names a field of chat, by the name that responses have for it.
fn renamed(mut failure: Failure) -> Failure {
    if failure.param.as_deref().is_some_and(|param| param.starts_with("messages")) {
        failure.param = Some("input".into());
    }
    failure
}

/// The answer, once it is complete. When the client hangs up, hyper drops this future and with it the request.
async fn whole(waiting: &Waiting) -> Result<Answer, Failure> {
    loop {
        if let Some(result) = waiting.next().await.ended {
            return result;
        }
    }
}

/// Server-sent events.
fn events<F: Form>(body: AnswerBody<F>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::new(body)).into_response()
}

async fn answer(service: &Service, name: &Name, chat: ChatRequest, kind: Kind) -> Result<Response, Refusal> {
    let words = chat.sampling.logprobs.map(|_| Arc::clone(&service.model().vocabulary));
    let (lease, input) = service.go_on(chat.session, chat.input)?;
    let waiting = service.submit(name, input, chat.sampling)?;
    let id = format!("{}-{}", if kind == Kind::Chat { "chatcmpl" } else { "cmpl" }, name.id);
    let envelope = Envelope { kind, id, created: unix_time(), model: service.model().name.clone(), words };
    if chat.stream {
        let first = first_update(&waiting).await?;
        let form = Events {
            envelope,
            include_usage: chat.include_usage,
            role_sent: false,
            offset: 0,
            calls: 0,
            session: lease.as_ref().map(Lease::told),
        };
        return Ok(events(AnswerBody::new(waiting, first, form).continuing(lease, &name.id)));
    }
    let answer = whole(&waiting).await?;
    let mut value = envelope.completion(&answer);
    if let Some(lease) = lease {
        value["session"] = lease.told();
        lease.answered(&answer, &name.id);
    }
    Ok(json_response(200, &value))
}

/// Text in, text out. The query takes `system`, `raw=true` and the sampling fields of the chat API.
pub(super) async fn prompt(
    State(service): State<Service>,
    Extension(name): Extension<Name>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    request: HttpRequest,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|error| InputError { message: format!("query: {error}"), param: None })?;
    let mut fields = query_fields(query)?;
    let most = service.presets().apply(&mut fields)?;
    let session = Session::or(session_header(&request).as_deref(), Session::take(&mut fields)?)?;
    let raw = fields.flag("raw")?.unwrap_or(false);
    let system = fields.text("system")?;
    let enable_thinking = fields.flag("enable_thinking")?.unwrap_or(false);
    let mut sampling = fields.sampling()?;
    sampling.max_tokens = most.into_iter().chain(sampling.max_tokens).min();
    let body = service.body(request).await?;
    let text = std::str::from_utf8(&body)
        .map_err(|error| InputError { message: format!("the body is not UTF-8: {error}"), param: None })?;
    if text.trim().is_empty() {
        return Err(InputError { message: "the body is empty; expected a prompt".into(), param: None }.into());
    }
    let input = match (raw, system) {
        (true, Some(_)) => return Err(InputError::new("system", "system: not together with raw=true").into()),
        (true, None) if session.is_some() => {
            return Err(InputError::new("session", "session: not together with raw=true").into());
        }
        (true, None) => Input::Raw(text.to_owned()),
        (false, system) => conversation(system.as_deref(), text, enable_thinking),
    };
    let (lease, input) = service.go_on(session, input)?;
    let known = lease.as_ref().map(|lease| lease.before().len());
    let waiting = service.submit(&name, input, sampling)?;
    let first = first_update(&waiting).await?;
    let body = Body::new(AnswerBody::new(waiting, first, Plain).continuing(lease, &name.id));
    let mut response = ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response();
    if let Some(known) = known {
        response.headers_mut().insert(SESSION_KNOWN, known.into());
    }
    Ok(response)
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

/// Query parameters as the fields of a JSON object: what reads as JSON number or boolean is one, the rest is text.
fn query_fields(query: Vec<(String, String)>) -> Result<Fields, InputError> {
    let mut map = Map::new();
    for (name, text) in query {
        let value = match serde_json::from_str::<Value>(&text) {
            Ok(value @ (Value::Number(_) | Value::Bool(_)))
                if !["system", "stop", "session", "preset", "grammar"].contains(&name.as_str()) =>
            {
                value
            }
            _ => Value::String(text),
        };
        if map.insert(name.clone(), value).is_some() {
            return Err(InputError::new(&name, format!("{name}: given twice")));
        }
    }
    Ok(Fields::from(map))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
