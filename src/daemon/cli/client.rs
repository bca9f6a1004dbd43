//! The client's side of the socket, for the commands that talk to a running daemon.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use axum::body::{Body as RequestBody, Bytes};
use clap::Args;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::super::error::Error;

/// Longest answer that is read.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// Exit codes of the commands that talk to the daemon, for their help and their manual pages.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the daemon failed over it, or it was taken back by `emberd cancel`
  2    wrong arguments
  65   the daemon does not take the request as it is (400, 413): change it
  66   not there: the session was forgotten (410), no request of that id (404)
  69   the daemon cannot be reached
  75   try again later: queue full, too hot or short of memory (503), a request of the session runs (409), no answer in \
time (504)
  130  Ctrl-C";

/// Where the daemon listens.
#[derive(Args)]
pub(super) struct Socket {
    /// Path of the daemon's socket
    #[arg(long, value_name = "PATH", env = "EMBERD__SOCKET__PATH", default_value = "/run/emberd/emberd.sock")]
    pub(super) socket: PathBuf,
}

/// A runtime for one exchange with the daemon. Dropping it ends the connection, which takes back what it asked for.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::System("cannot start the I/O runtime", error))
}

/// Sends one request to the daemon at `socket`: POST with a body, else GET. A refusal is an error.
pub(super) async fn request(socket: &Path, path: &str, body: Option<Value>) -> Result<Incoming, Error> {
    send(socket, if body.is_some() { Method::POST } else { Method::GET }, path, body).await
}

/// Sends one request of any method.
pub(super) async fn send(socket: &Path, method: Method, path: &str, body: Option<Value>) -> Result<Incoming, Error> {
    let place = socket.display();
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        Error::Unavailable(format!("cannot reach the daemon at {place}: {error}; is `emberd serve` running?"))
    })?;
    let lost = |error: hyper::Error| Error::Unavailable(format!("lost the daemon at {place}: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    let request = match body {
        Some(body) => {
            request.header(header::CONTENT_TYPE, "application/json").body(RequestBody::from(body.to_string()))
        }
        None => request.body(RequestBody::empty()),
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
        Some("busy" | "shutting_down" | "overheated" | "low_memory" | "expired") => Error::Busy(message),
        Some("session_busy") => Error::SessionBusy(message),
        Some("session_gone" | "not_found") => Error::Gone(message),
        Some("bad_request" | "context_length_exceeded" | "too_large") => Error::BadRequest(message),
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
