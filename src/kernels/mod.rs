//! The arithmetic that takes the time: one trait, one implementation per instruction set.
//!
//! [`contract`] says what a kernel promises.

pub mod contract;
