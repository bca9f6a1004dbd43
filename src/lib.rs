//! emberd answers prompts with a Gemma 4 mobile-QAT checkpoint on a small computer.
//!
//! The modules are layers; `use` arrows go down only, a child never uses its parent (`tests/layering.rs` checks it):
//!
//! ```text
//! daemon      6  start-up and shutdown order, command line, configuration, signals, systemd, exit codes
//! transport   5  bytes <-> Request/Event: Unix socket (HTTP) and MQTT; nothing of models
//! scheduler   4  one thread, sole owner of the engine: queue, cancel, deadlines
//! governor    3  heat, power, memory and other load -> threads, pauses, admission
//! engine      2  tokens in, tokens out; no sockets, no clock, no tokio
//! kernels     1  slices in, slices out; scalar is the specification, neon and x86 equal it
//! spool       1  requests on disk until they are answered
//! parallel    1  the thread pool
//! stats       0  counters
//! ```

pub mod daemon;
pub mod engine;
pub mod governor;
pub mod kernels;
pub mod parallel;
pub mod scheduler;
pub mod spool;
pub mod stats;
pub mod transport;
