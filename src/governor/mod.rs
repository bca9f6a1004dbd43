//! How hard the engine computes and what is admitted, decided from heat, power, memory and the load of others.
//!
//! ```text
//!   sensors ── Sample ──▶ policy (pure) ── Decision ──▶ Handle ──▶ engine thread, at token and chunk borders
//!      ▲                     ▲                            │
//!   /proc, /sys           Speeds ◀──── time of every chunk and token
//! ```
//!
//! [`Sensors`] reads files below a root directory and knows nothing of decisions; the policy decides and touches no file
//! and no clock; the [`Handle`] is what the rest of the daemon holds. `docs/governor.md` says why it decides as it does.

mod decision;
mod handle;
pub mod policy;
mod run;
mod sample;
pub mod sensors;
pub mod simulator;

pub use decision::{Admission, Cause, Decision, Effort, Level};
pub use handle::{Handle, Phase, Snapshot, TYPICAL_CHUNK};
pub use policy::{Policy, Speeds};
pub use run::Governor;
pub use sample::{Fan, Firmware, Memory, Pressure, Process, Sample, Temperature, Work};
pub use sensors::Sensors;
