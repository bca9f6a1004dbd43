//! The governor: its sensors on recorded boards, its policy on simulated ones.

#[path = "governor/boards.rs"]
mod boards;
#[path = "governor/doctor.rs"]
mod doctor;
#[path = "governor/engine.rs"]
mod engine;
#[path = "governor/policy.rs"]
mod policy;
#[path = "governor/sensors.rs"]
mod sensors;
#[path = "governor/thermal.rs"]
mod thermal;
