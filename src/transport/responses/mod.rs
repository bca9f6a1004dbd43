//! OpenAI's Responses as JSON, without I/O and without state: nothing is kept from one to the next.
//!
//! ```text
//! request   a body into a conversation
//! output    an answer into items, whole or as events
//! ```

pub mod output;
pub mod request;
