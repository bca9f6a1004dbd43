//! Tokens in, tokens out: no sockets, no clock, no async runtime.

pub mod checkpoint;
