//! The doors: bytes to [`Request`](crate::scheduler::Request) and back. Nothing of models is known here.
//!
//! ```text
//! socket   HTTP/1.1 over a Unix socket     openai   its JSON, pure
//! mqtt     MQTT 5 through rumqttc          wire     its payloads and topics, pure
//! responses OpenAI's newer API, pure
//! preset   what requests need not bring
//! tools    declarations and calls of tools
//! fields   JSON fields with their ranges, shared by both
//! sessions conversations that go on
//! logprobs how likely tokens were
//! ```

pub mod fields;
pub mod logprobs;
pub mod mqtt;
pub mod openai;
pub mod preset;
pub mod responses;
pub mod sessions;
pub mod socket;
pub mod tools;
mod waiting;
pub mod wire;
