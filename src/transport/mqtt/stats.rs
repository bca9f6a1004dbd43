//! The retained `stats`, without I/O: what they say, and when they are due.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::governor::{Level, Snapshot};
use crate::scheduler::{Code, Counts};

/// What the statistics are made of.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Requests that wait.
    pub(super) waiting: usize,
    /// Whether one is running.
    pub(super) running: bool,
    pub(super) counts: Counts,
    pub(super) governor: Snapshot,
    pub(super) uptime: Duration,
}

impl Facts {
    /// The payload. What is not known is null.
    pub(super) fn payload(&self) -> Value {
        let (counts, governor) = (&self.counts, &self.governor);
        let mut requests = json!({"total": counts.ended(), "answered": counts.answered});
        for (code, number) in &counts.failed {
            requests[code] = json!(number);
        }
        json!({
            "uptime_s": self.uptime.as_secs(),
            "queue_depth": self.waiting,
            "running": self.running,
            "requests": requests,
            "prompt_tokens": counts.prompt_tokens,
            "cached_tokens": counts.cached_tokens,
            "completion_tokens": counts.completion_tokens,
            "tokens_per_s": round(counts.decode_per_s),
            "last_error": counts.last_error.map_or("none", Code::name),
            "threads": governor.decode_threads,
            "level": governor.level,
            "temperature_c": governor.temperature_c.map(round),
            "throttled": governor.throttled,
            "under_voltage": governor.under_voltage,
        })
    }
}

fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// When the statistics are published: in equal intervals, and when the level changes.
#[derive(Debug)]
pub(super) struct Schedule {
    every: Duration,
    last: Option<(Instant, Level)>,
}

impl Schedule {
    pub(super) fn new(every: Duration) -> Schedule {
        Schedule { every, last: None }
    }

    /// Whether they are due now; if so, they count as published.
    pub(super) fn due(&mut self, now: Instant, level: Level) -> bool {
        let due = self.last.is_none_or(|(at, then)| then != level || now.saturating_duration_since(at) >= self.every);
        if due {
            self.last = Some((now, level));
        }
        due
    }

    /// The broker may have forgotten them.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governor::{Decision, Effort, Firmware, Handle, Sample, Temperature};

    #[test]
    fn due_in_intervals_and_at_changes() {
        let (mut schedule, start) = (Schedule::new(Duration::from_secs(60)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(schedule.due(at(0), Level::Nominal));
        assert!(!schedule.due(at(59), Level::Nominal));
        assert!(schedule.due(at(59), Level::Hot));
        assert!(!schedule.due(at(60), Level::Hot));
        assert!(schedule.due(at(119), Level::Hot));
        schedule.reset();
        assert!(schedule.due(at(119), Level::Hot));
    }

    #[test]
    fn what_is_not_known_is_null() {
        let counts = Counts { answered: 2, failed: [("busy", 3)].into(), decode_per_s: 7.8912, ..Counts::default() };
        let uptime = Duration::from_millis(61_900);
        let governor = Handle::new(Decision::unlimited(4, 1)).snapshot();
        let facts = Facts { waiting: 1, running: true, counts, governor, uptime };
        let value = facts.payload();
        assert_eq!(value["requests"], json!({"total": 5, "answered": 2, "busy": 3}));
        assert_eq!((&value["uptime_s"], &value["tokens_per_s"]), (&61.into(), &7.9.into()));
        assert_eq!((&value["threads"], &value["level"]), (&4.into(), &"nominal".into()));
        assert!(value["temperature_c"].is_null() && value.as_object().unwrap().contains_key("throttled"));
    }

    #[test]
    fn what_the_governor_sees_and_decides_is_told() {
        let handle = Handle::new(Decision::unlimited(4, 1));
        let sample =
            Sample { temperature: Temperature::Celsius(78.26), firmware: Some(Firmware(0b0101)), ..Sample::default() };
        let decode = Effort { threads: 2, duty: 1.0 };
        handle.publish(&sample, Decision { level: Level::Hot, decode, ..Decision::unlimited(4, 1) }, Some(true));
        let (counts, uptime) = (Counts::default(), Duration::ZERO);
        let value = Facts { waiting: 0, running: false, counts, governor: handle.snapshot(), uptime }.payload();
        assert_eq!((&value["temperature_c"], &value["level"]), (&78.3.into(), &"hot".into()));
        assert_eq!((&value["throttled"], &value["under_voltage"]), (&true.into(), &true.into()));
        assert_eq!(value["threads"], 2);
    }
}
