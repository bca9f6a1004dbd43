//! `emberd cancel`: takes a request of the socket back.

use clap::Args;
use serde_json::json;

use super::super::error::Error;
use super::client;

#[derive(Args)]
#[command(after_help = client::EXIT_CODES)]
pub(super) struct Cancel {
    /// The id of its answer, or its X-Request-Id
    id: String,
    #[command(flatten)]
    socket: client::Socket,
}

pub(super) fn run(cancel: &Cancel) -> Result<(), Error> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    if cancel.id.is_empty() || !cancel.id.bytes().all(known) {
        return Err(Error::Usage("ID: expected letters, digits and -_.:/+=".into()));
    }
    let path = format!("/v1/cancel/{}", cancel.id);
    client::runtime()?.block_on(client::request(&cancel.socket.socket, &path, Some(json!({})))).map(drop)
}
