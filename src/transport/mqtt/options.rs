//! What the connection needs to know.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::super::preset::Presets;
use super::super::sessions::Sessions;
use super::super::wire::{Topics, WireRequest};
use super::open::Wanted;
use super::outbox::MAX_IN_FLIGHT;
use super::tls::Tls;
use crate::spool::Limits;

/// What is special about some clients.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Names, as in `req/<client>/…`; one that ends with `*` stands for all that begin so.
    pub names: Vec<String>,
    /// Bytes of their buffer for a whole packet: answers come in pieces of plain text ([`super::chunks`]), without events.
    pub packet_bytes: Option<usize>,
    /// Preset of requests that name none.
    pub preset: Option<String>,
}

/// What an operator says of clients and requests; it may change while the daemon runs.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Presets by name.
    pub presets: Presets,
    /// Clients that are treated in their own way; the first one that fits counts.
    pub clients: Vec<Client>,
}

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
    /// The rules that hold now.
    pub rules: watch::Receiver<Rules>,
    /// Conversations that go on.
    pub sessions: Arc<Sessions>,
    /// Time between statistics.
    pub stats_every: Duration,
    /// Home Assistant's discovery prefix; `None` leaves it alone.
    pub home_assistant: Option<String>,
    /// Name of the model, for the answers.
    pub model: String,
    /// The retained `info`.
    pub info: Value,
}

impl Options {
    /// What is special about a client.
    pub(super) fn client(&self, name: &str) -> Option<Client> {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        self.rules.borrow().clients.iter().find(|client| client.names.iter().any(fits)).cloned()
    }

    /// What a client hears beside the answer: a small device nothing.
    pub(super) fn wanted(&self, wire: &WireRequest, client: &str) -> Wanted {
        let small = self.client(client).is_some_and(|client| client.packet_bytes.is_some());
        Wanted { stream: wire.stream && !small, events: wire.events.unwrap_or(self.events) && !small }
    }

    /// Messages that the broker may have unacknowledged: every open request and every answer on its way, and room for
    /// what is acknowledged at once.
    pub(super) fn receive_maximum(&self) -> u16 {
        (self.open + MAX_IN_FLIGHT + 16).try_into().unwrap_or(u16::MAX)
    }
}
