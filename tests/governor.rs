//! The governor: its sensors on recorded boards, its policy on simulated ones.

#[path = "governor/boards.rs"]
mod boards;
#[path = "governor/sensors.rs"]
mod sensors;
