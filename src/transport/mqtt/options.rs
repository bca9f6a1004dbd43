//! What the connection needs to know.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::super::wire::Topics;
use super::outbox::MAX_IN_FLIGHT;
use super::tls::Tls;
use crate::spool::Limits;

/// Everything that the connection needs.
#[derive(Clone)]
pub struct Options {
    /// Host name, address, or the path of a Unix socket when it starts with a slash.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Encryption; none on a Unix socket.
    pub tls: Option<Tls>,
    /// Must be this daemon's alone.
    pub client_id: String,
    /// User name.
    pub username: Option<String>,
    /// Password, never logged.
    pub password: Option<String>,
    /// Time between pings, at least 5 s.
    pub keep_alive: Duration,
    /// Largest packet that the broker may send.
    pub max_packet: u32,
    /// Seconds for which the broker keeps requests while the daemon is away.
    pub session_expiry_s: u32,
    /// The topics.
    pub topics: Topics,
    /// File of the spool.
    pub spool: PathBuf,
    /// Bounds of the spool.
    pub spool_limits: Limits,
    /// Times that a request may be running when the daemon dies before it is given up.
    pub attempts: u8,
    /// Requests that can be open at once: the running one and the queue.
    pub open: usize,
    /// Time for an answer, the queue included.
    pub request_timeout: Duration,
    /// Whether events are published.
    pub events: bool,
    /// Pieces of an answer and its progress are collected for this long.
    pub batch: Duration,
    /// Name of the model, for the answers.
    pub model: String,
    /// The retained `info`.
    pub info: Value,
}

impl Options {
    /// Messages that the broker may have unacknowledged: every open request and every answer on its way, and room for
    /// what is acknowledged at once.
    pub(super) fn receive_maximum(&self) -> u16 {
        (self.open + MAX_IN_FLIGHT + 16).try_into().unwrap_or(u16::MAX)
    }
}
