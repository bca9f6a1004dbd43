//! Requests that survive a crash, an OOM kill and a power cut: an embedded store behind a thread of its own.
//!
//! ```text
//!   admit ──▶ queued ──▶ running (attempts counted before it runs) ──▶ answered ──▶ done, kept for repetitions
//!                ▲              │ taken back by an orderly shutdown
//!                └──────────────┘
//! ```
//!
//! Every step is one call of [`Spool`], which returns at once; what is to happen when the step is on disk is a closure
//! that the spool's thread calls then. Steps that come while a commit is under way share the next one, so a hundred
//! requests cost a few `fsync`s and not a hundred.
//!
//! When the disk is full or read-only, nothing is admitted any more and what is held is still served: steps of held
//! requests are kept in memory and written when the disk takes them again.
//!
//! What a request and an answer consist of is the transport's matter; here they are bytes.

mod fail;
#[cfg(test)]
mod power_cut;
mod store;
mod thread;

pub use self::fail::point as fail_point;
pub use self::store::{Head, Held, Limits, State};
pub use self::thread::{Admission, Spool, now_s};
