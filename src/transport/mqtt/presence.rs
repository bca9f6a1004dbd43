//! What the daemon says of itself without being asked: statistics, and what Home Assistant wants to know.

use std::time::Instant;

use super::super::wire::Topics;
use super::discovery;
use super::link::Link;
use super::options::Options;
use super::stats::{Facts, Schedule};
use crate::scheduler::Scheduler;

/// When what is said.
pub(super) struct Presence {
    schedule: Schedule,
    started: Instant,
}

impl Presence {
    pub(super) fn new(options: &Options) -> Presence {
        Presence { schedule: Schedule::new(options.stats_every), started: Instant::now() }
    }

    /// A new connection: everything is said anew.
    pub(super) fn connected(&mut self, options: &Options, link: &Link) {
        self.schedule.reset();
        discover(options, link);
    }

    /// Publishes the statistics when they are due.
    pub(super) fn tick(&mut self, options: &Options, scheduler: &Scheduler, link: &Link) {
        let governor = scheduler.governor().snapshot();
        let now = Instant::now();
        if !self.schedule.due(now, governor.level) {
            return;
        }
        let (waiting, running) = scheduler.load();
        let (counts, uptime) = (scheduler.counts(), now - self.started);
        let facts = Facts { waiting, running, counts, governor, uptime };
        link.publish_retained(options.topics.stats(), facts.payload().to_string().into_bytes());
    }

    /// Takes a message outside the request tree; whether it was for this.
    pub(super) fn heard(&self, options: &Options, topic: &str, payload: &[u8], link: &Link) -> bool {
        let status = options.home_assistant.as_deref().map(discovery::status);
        let known = status.as_deref() == Some(topic);
        if known && payload == b"online" {
            discover(options, link);
        }
        known
    }
}

/// What the daemon would like to hear beside requests; it does without where the broker says no.
pub(super) fn filters(options: &Options) -> Vec<String> {
    options.home_assistant.as_deref().map(discovery::status).into_iter().collect()
}

fn discover(options: &Options, link: &Link) {
    let Some(prefix) = &options.home_assistant else { return };
    let (topics, id): (&Topics, _) = (&options.topics, &options.client_id);
    let payload = discovery::payload(topics, id, &options.model, options.stats_every.as_secs());
    link.publish_retained(discovery::topic(prefix, id), payload.to_string().into_bytes());
}
