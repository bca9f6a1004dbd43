//! Tokens in, tokens out: no sockets, no clock, no tokio.

pub mod bytes;
pub mod checkpoint;
pub mod eval;
pub mod gbnf;
pub mod generate;
pub mod grammar;
pub mod kv_cache;
pub mod logprobs;
pub mod measure;
pub mod model;
pub mod ops;
pub mod pack;
pub mod pinned;
pub mod prefix;
pub mod runner;
pub mod sampler;
pub mod stream;
pub mod template;
pub mod tokenizer;
pub mod tools;
