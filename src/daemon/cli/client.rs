//! The client's side of the socket, for the commands that talk to a running daemon.

use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;

use axum::body::{Body as RequestBody, Bytes};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::super::error::Error;

/// Longest answer that is read.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// Sends one request to the daemon at `socket`: POST with a body, else GET. A refusal is an error.
pub(super) async fn request(socket: &Path, path: &str, body: Option<Value>) -> Result<Incoming, Error> {
    let place = socket.display();
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        Error::Unavailable(format!("cannot reach the daemon at {place}: {error}; is `emberd serve` running?"))
    })?;
    let lost = |error: hyper::Error| Error::Unavailable(format!("lost the daemon at {place}: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    tokio::spawn(connection);
    let request = match body {
        Some(body) => Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::HOST, "localhost")
            .body(RequestBody::from(body.to_string())),
        None => Request::get(path).header(header::HOST, "localhost").body(RequestBody::empty()),
    };
    let request = request.map_err(|error| Error::Refused(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(lost)?;
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    Ok(response.into_body())
}

async fn refusal(response: Response<Incoming>) -> Error {
    let status = response.status();
    let text = read_all(&mut response.into_body()).await.unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    if value["error"].is_object() { failure(&value) } else { Error::Refused(format!("the daemon answered {status}")) }
}

/// The error that an error object of the API tells.
pub(super) fn failure(value: &Value) -> Error {
    let message = value["error"]["message"].as_str().unwrap_or("no reason given").to_owned();
    match value["error"]["code"].as_str() {
        Some("busy" | "shutting_down" | "overheated" | "low_memory") => Error::Busy(message),
        _ => Error::Refused(message),
    }
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, Error> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            None => return Ok(None),
            Some(Err(error)) => return Err(Error::Unavailable(format!("lost the daemon: {error}"))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// All of a body.
pub(super) async fn read_all(body: &mut Incoming) -> Result<String, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(body).await? {
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return Err(Error::Refused(format!("the daemon's answer is larger than {MAX_ANSWER} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
