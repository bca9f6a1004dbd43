//! `emberd cancel`: takes a request of the socket back.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::error::Error;
use super::client;

#[derive(Args)]
pub(super) struct Cancel {
    /// The id of its answer, or its X-Request-Id
    id: String,
    /// Path of the daemon's socket
    #[arg(long, value_name = "PATH", env = "EMBERD__SOCKET__PATH", default_value = "/run/emberd/emberd.sock")]
    socket: PathBuf,
}

pub(super) fn run(cancel: &Cancel) -> Result<(), Error> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    if cancel.id.is_empty() || !cancel.id.bytes().all(known) {
        return Err(Error::Usage("ID: expected letters, digits and -_.:/+=".into()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::System("cannot start the I/O runtime", error))?;
    let path = format!("/v1/cancel/{}", cancel.id);
    runtime.block_on(client::request(&cancel.socket, &path, Some(json!({})))).map(drop)
}
