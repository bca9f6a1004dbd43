//! HTTP/1.1 over a Unix socket.
//!
//! ```text
//! listen   the socket's file                 service   what all routes need
//! http     the routes                        refusal   errors
//! answers  completions                       body      answers that are sent while they are made
//! tokens   text to tokens and back           open      taking requests back
//! report   what is told of the daemon itself
//! idempotency  who asks again gets the answer of the first time
//! ```

mod answers;
mod body;
mod http;
mod idempotency;
mod listen;
mod open;
mod refusal;
mod report;
mod service;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::waiting::stopped;
use idempotency::Peer;

pub use listen::{BindError, Listener};
pub use service::{Limits, Service};

/// Connections beyond the limit that are told so; those beyond these wait in the kernel's backlog.
const REFUSALS: usize = 8;

/// Time that a refused connection has to send its request and read the refusal.
const REFUSAL_TIME: Duration = Duration::from_secs(5);

/// Serves connections until `stop` turns true, then gives those that are busy `grace` to end.
pub async fn serve(listener: Listener, service: Service, mut stop: watch::Receiver<bool>, grace: Duration) {
    let limits = service.limits();
    let places = Arc::new(Semaphore::new(limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let (router, full) = (http::router(service), http::refusing_router());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = tokio::select! {
            stream = listener.accept() => match stream {
                Ok(stream) => stream,
                Err(error) => {
                    // Out of file descriptors or memory: what is being served will give some back.
                    warn!(%error, "cannot accept on the socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            },
            () = stopped(&mut stop) => break,
        };
        match place(&places, &refusals).await {
            Place::Served(permit) => {
                connections.spawn(connection(stream, router.clone(), limits, permit, stop.clone()))
            }
            Place::Refused(permit) => {
                let served = connection(stream, full.clone(), limits, permit, stop.clone());
                connections.spawn(async move {
                    let _ = tokio::time::timeout(REFUSAL_TIME, served).await;
                })
            }
        };
    }
    drop(listener);
    let _ = tokio::time::timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
}

enum Place {
    Served(OwnedSemaphorePermit),
    Refused(OwnedSemaphorePermit),
}

async fn place(places: &Arc<Semaphore>, refusals: &Arc<Semaphore>) -> Place {
    if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
        return Place::Served(permit);
    }
    tokio::select! {
        biased;
        Ok(permit) = Arc::clone(refusals).acquire_owned() => Place::Refused(permit),
        Ok(permit) = Arc::clone(places).acquire_owned() => Place::Served(permit),
        // Semaphores that are never closed cannot fail.
        else => std::future::pending().await,
    }
}

async fn connection(
    stream: UnixStream,
    router: axum::Router,
    limits: Limits,
    _place: OwnedSemaphorePermit,
    mut stop: watch::Receiver<bool>,
) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(64 * 1024);
    let peer = Peer(stream.peer_cred().ok().map(|peer| peer.uid()));
    let routes = TowerToHyperService::new(router);
    let named = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        routes.call(request)
    });
    let served = builder.serve_connection(TokioIo::new(stream), named);
    tokio::pin!(served);
    let ended = tokio::select! {
        result = served.as_mut() => Some(result),
        () = stopped(&mut stop) => None,
        () = tokio::time::sleep(limits.request_timeout) => None,
    };
    // A connection that has lived long enough ends after the answer that it is at; one that does not even take that
    // (a reader that stopped reading) is cut off, or it would keep its place for ever.
    let result = match ended {
        Some(result) => result,
        None => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.request_timeout * 2, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        debug!(%error, "connection ended early");
    }
}
