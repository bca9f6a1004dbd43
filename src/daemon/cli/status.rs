//! `emberd status` and `emberd top`.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::super::error::Error;
use super::client;
use super::color::{Color, Paint};
use super::model::print;

/// Time that the daemon has for one report; it takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
#[command(after_help = client::EXIT_CODES)]
pub(super) struct Status {
    /// Print the daemon's JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    color: Color,
    #[command(flatten)]
    socket: client::Socket,
}

#[derive(Args)]
#[command(after_help = client::EXIT_CODES)]
pub(super) struct Top {
    /// Seconds between two looks
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// End after this many looks
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    color: Color,
    #[command(flatten)]
    socket: client::Socket,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=3600.0).contains(&number) { Ok(number) } else { Err("from 0.1 to 3600".into()) }
}

pub(super) fn status(status: &Status) -> Result<(), Error> {
    let text = client::runtime()?.block_on(look(&status.socket.socket))?;
    if status.json { print(&text) } else { print(&page(&parse(&text)?, status.color.paint(&std::io::stdout()))) }
}

pub(super) fn top(top: &Top) -> Result<(), Error> {
    client::runtime()?.block_on(async {
        tokio::select! {
            result = watch(top) => result,
            // The usual way to end it.
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}

async fn watch(top: &Top) -> Result<(), Error> {
    let (terminal, paint) = (std::io::stdout().is_terminal(), top.color.paint(&std::io::stdout()));
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(top.interval));
    let mut left = top.count;
    while left != Some(0) {
        ticks.tick().await;
        left = left.map(|left| left - 1);
        let value = parse(&look(&top.socket.socket).await?)?;
        if terminal {
            // From the upper left corner; each line erases what was longer before it, the end what was below.
            let lines = page(&value, paint).replace('\n', "\x1b[K\n");
            print(&format!("\x1b[H{lines}\x1b[J"))?;
        } else {
            print(&line(&value))?;
        }
    }
    Ok(())
}

async fn look(socket: &Path) -> Result<String, Error> {
    let report = async { client::read_all(&mut client::request(socket, "/v1/status", None).await?).await };
    let late = |_| Error::Unavailable(format!("the daemon at {} does not answer", socket.display()));
    tokio::time::timeout(PATIENCE, report).await.map_err(late)?
}

fn parse(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::Refused(format!("the daemon's answer is not JSON: {error}")))
}

/// For people: what is not as it should be stands out.
fn page(value: &Value, paint: Paint) -> String {
    let (model, governor) = (&value["model"], &value["governor"]);
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let megabytes = |value: &Value| (number(value) / f64::from(1 << 20)).round();
    let yes = |value: &Value| {
        value.as_bool().map_or("not known".to_owned(), |yes| if yes { paint.red("YES") } else { "no".into() })
    };
    let mut page = String::new();
    let mut row = |name: &str, text: String| {
        let _ = writeln!(page, "{} {text}", paint.dim(&format!("{name:12}")));
    };
    let state = if value["status"] == "ok" { "" } else { ", shutting down" };
    row("emberd", format!("{}, up {}{state}", text(&value["version"]), duration(number(&value["uptime_s"]))));
    let (name, kernels, kv) = (text(&model["name"]), text(&model["kernels"]), text(&model["kv"]));
    row("model", format!("{name}, context {}, kernels {kernels}, {kv} cache", number(&model["context"])));
    let level = text(&governor["level"]);
    row(
        "level",
        if level == "nominal" && governor["reason"] == "nothing" {
            level
        } else {
            paint.yellow(&format!("{level}: {}", text(&governor["why"])))
        },
    );
    let celsius = governor["temperature_c"].as_f64().map_or("not known".into(), |celsius| format!("{celsius:.1} °C"));
    let fan = governor["fan_rpm"].as_f64().map_or(String::new(), |rpm| format!(", fan {rpm} rpm"));
    row("temperature", format!("{celsius}{fan}"));
    let (throttled, weak) = (yes(&governor["throttled"]), yes(&governor["under_voltage"]));
    row("power", format!("throttled {throttled}, under-voltage {weak}"));
    let threads = (number(&governor["prefill_threads"]), number(&governor["decode_threads"]));
    let duty = 100.0 * number(&governor["duty"]);
    row("threads", format!("{} for prompts, {} for answers, {duty:.0} % of the time", threads.0, threads.1));
    let speeds = (number(&governor["prefill_tokens_per_s"]), number(&governor["decode_tokens_per_s"]));
    row("tokens/s", format!("{:.1} prompts, {:.1} answers", speeds.0, speeds.1));
    let running = if value["running"] == true { "1 running" } else { "none running" };
    row("queue", format!("{running}, {} waiting", number(&value["waiting"])));
    row("requests", requests(&value["requests"]));
    let available = match &governor["memory_available"] {
        Value::Null => String::new(),
        known => format!(", {} MB available", megabytes(known)),
    };
    row("memory", format!("{} MB resident{available}", megabytes(&governor["resident"])));
    row("other load", format!("{:.1} CPUs", number(&governor["other_load"])));
    page
}

fn requests(counts: &Value) -> String {
    let counts = counts.as_object().into_iter().flatten().filter(|(name, _)| *name != "total");
    counts.map(|(name, number)| format!("{number} {}", name.replace('_', " "))).collect::<Vec<_>>().join(", ")
}

/// For programs: `name=value`, what is not known is `-`.
fn line(value: &Value) -> String {
    let governor = &value["governor"];
    let answered = &value["requests"]["answered"];
    let failed = value["requests"]["total"].as_u64().unwrap_or(0) - answered.as_u64().unwrap_or(0);
    let megabytes = |value: &Value| value.as_u64().map_or(Value::Null, |bytes| (bytes >> 20).into());
    let pairs = [
        ("level", governor["level"].clone()),
        ("reason", governor["reason"].clone()),
        ("temperature_c", governor["temperature_c"].clone()),
        ("prefill_threads", governor["prefill_threads"].clone()),
        ("decode_threads", governor["decode_threads"].clone()),
        ("duty", governor["duty"].clone()),
        ("prefill_per_s", governor["prefill_tokens_per_s"].clone()),
        ("decode_per_s", governor["decode_tokens_per_s"].clone()),
        ("running", value["running"].clone()),
        ("waiting", value["waiting"].clone()),
        ("answered", answered.clone()),
        ("failed", failed.into()),
        ("resident_mb", megabytes(&governor["resident"])),
        ("available_mb", megabytes(&governor["memory_available"])),
    ];
    let shown = pairs.map(|(name, value)| match value {
        Value::Null => format!("{name}=-"),
        Value::String(text) => format!("{name}={text}"),
        Value::Number(number) if number.is_f64() => format!("{name}={:.2}", number.as_f64().unwrap_or(0.0)),
        other => format!("{name}={other}"),
    });
    shown.join(" ") + "\n"
}

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0) as u64;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_known_is_said_so() {
        let value = json!({"status": "shutting_down", "requests": {"total": 5, "answered": 2, "bad_request": 3},
            "governor": {"level": "hot", "reason": "heat", "why": "the processor nears its set point",
                         "temperature_c": null, "resident": 3 << 20, "duty": 0.25}, "running": true, "waiting": 2});
        let page = page(&value, Paint::PLAIN);
        for part in
            ["shutting down", "hot: the processor nears", "not known", "2 answered, 3 bad request", "1 running, 2 w"]
        {
            assert!(page.contains(part), "{part}: {page}");
        }
        let line = line(&value);
        for part in ["temperature_c=- ", "failed=3 ", "duty=0.25 ", "resident_mb=3 ", "available_mb=-\n"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn durations_have_two_units() {
        let shown = [59.0, 60.0, 3661.0, 90_000.0].map(duration);
        assert_eq!(shown, ["59 s", "1 min", "1 h 1 min", "1 d 1 h"]);
    }
}
