//! What the daemon does right now: `/v1/status` for `emberd top`, `/metrics` as Prometheus reads it.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use crate::governor::{Level, Snapshot};
use crate::scheduler::backend::ModelInfo;
use crate::scheduler::{Code, Counts, Scheduler};

/// The media type of [`Report::metrics`] (Prometheus' text format, version 0.0.4).
pub(super) const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) struct Report<'a> {
    model: &'a ModelInfo,
    uptime: Duration,
    waiting: usize,
    running: bool,
    draining: bool,
    counts: Counts,
    governor: Snapshot,
}

impl<'a> Report<'a> {
    pub(super) fn new(scheduler: &Scheduler, model: &'a ModelInfo, uptime: Duration) -> Report<'a> {
        let (waiting, running) = scheduler.load();
        let (counts, governor) = (scheduler.counts(), scheduler.governor().snapshot());
        Report { model, uptime, waiting, running, draining: scheduler.draining(), counts, governor }
    }

    /// One object. What is not known is null.
    pub(super) fn status(&self) -> Value {
        let (model, counts) = (self.model, &self.counts);
        let mut requests = json!({"total": counts.ended(), "answered": counts.answered});
        for (code, number) in &counts.failed {
            requests[code] = json!(number);
        }
        let mut governor = json!(self.governor);
        governor["why"] = json!(self.governor.reason.to_string());
        json!({
            "status": if self.draining { "shutting_down" } else { "ok" },
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.uptime.as_secs(),
            "model": {
                "name": model.name, "context": model.context, "vocab": model.vocab, "kernels": model.kernels,
                "threads": model.threads, "kv": model.kv,
            },
            "waiting": self.waiting,
            "running": self.running,
            "requests": requests,
            "prompt_tokens": counts.prompt_tokens,
            "cached_tokens": counts.cached_tokens,
            "completion_tokens": counts.completion_tokens,
            "last_error": counts.last_error.map(Code::name),
            "governor": governor,
        })
    }

    /// The same as text; what is not known is left out.
    pub(super) fn metrics(&self) -> String {
        let (model, counts, governor) = (self.model, &self.counts, &self.governor);
        let mut page = Page(String::new());
        let about = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("model", model.name.as_str()),
            ("kernels", model.kernels.as_str()),
            ("kv", model.kv.as_str()),
        ];
        page.family("emberd_build_info", "gauge", "What runs.").sample(&about, 1);
        page.one("emberd_uptime_seconds", "gauge", "Time since the start.", self.uptime.as_secs());
        let mut requests = page.family("emberd_requests_total", "counter", "Requests that ended, by how.");
        requests.sample(&[("result", "answered")], counts.answered);
        for (code, number) in &counts.failed {
            requests.sample(&[("result", code)], number);
        }
        page.one("emberd_requests_waiting", "gauge", "Requests in the queue.", self.waiting);
        page.one("emberd_requests_running", "gauge", "Requests that are computed.", u8::from(self.running));
        page.one("emberd_prompt_tokens_total", "counter", "Tokens of the prompts of answers.", counts.prompt_tokens);
        let cached = "Those of them that were known from earlier requests.";
        page.one("emberd_cached_tokens_total", "counter", cached, counts.cached_tokens);
        let completion = "Tokens of answers.";
        page.one("emberd_completion_tokens_total", "counter", completion, counts.completion_tokens);
        page.one("emberd_computed_tokens_total", "counter", "Tokens that went through the model.", governor.tokens);
        let speed = "Latest speed without pauses, by phase; 0 before the first token.";
        page.family("emberd_tokens_per_second", "gauge", speed)
            .sample(&[("phase", "prefill")], governor.prefill_tokens_per_s)
            .sample(&[("phase", "decode")], governor.decode_tokens_per_s);
        page.family("emberd_threads", "gauge", "Threads that may compute, by phase.")
            .sample(&[("phase", "prefill")], governor.prefill_threads)
            .sample(&[("phase", "decode")], governor.decode_threads);
        page.one("emberd_duty_ratio", "gauge", "Share of the time in which they may compute.", governor.duty);
        let mut level = page.family("emberd_level", "gauge", "1 for the level that holds.");
        for other in [Level::Nominal, Level::Warm, Level::Hot, Level::Critical] {
            level.sample(&[("level", &other.to_string())], u8::from(other == governor.level));
        }
        let known = [
            ("emberd_temperature_celsius", "Temperature of the processor.", governor.temperature_c),
            ("emberd_throttled", "Whether the firmware holds the clock down.", governor.throttled.map(flag)),
            (
                "emberd_under_voltage",
                "Whether the supply was too weak within an hour.",
                governor.under_voltage.map(flag),
            ),
            ("emberd_fan_rpm", "Turns of the fan a minute.", governor.fan_rpm.map(f64::from)),
            (
                "emberd_memory_available_bytes",
                "Memory to be had without swapping.",
                governor.memory_available.map(bytes),
            ),
            ("emberd_other_load_cpus", "CPUs that other programs keep busy.", Some(governor.other_load)),
            ("process_resident_memory_bytes", "Resident memory of the daemon.", Some(bytes(governor.resident))),
        ];
        for (name, help, value) in known {
            if let Some(value) = value {
                page.one(name, "gauge", help, value);
            }
        }
        page.0
    }
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn bytes(number: u64) -> f64 {
    number as f64
}

/// A page of metrics in the making.
struct Page(String);

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: &mut self.0, name }
    }

    fn one(&mut self, name: &'static str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }
}

struct Family<'a> {
    page: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.page.push_str(self.name);
        for (at, (name, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.page, "{}{name}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.page, "{} {value}", if labels.is_empty() { "" } else { "}" });
        self
    }
}
