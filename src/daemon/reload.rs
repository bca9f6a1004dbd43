//! What SIGHUP changes at once; the rest of a new configuration waits for a restart, and is named.

use serde_json::Value;

use super::config::Config;

/// Keys whose new values a running daemon takes over.
pub const LIVE: [&str; 8] = [
    "governor.duty_without_sensor",
    "governor.reserve_mb",
    "governor.set_point_c",
    "governor.share",
    "limits.drain_s",
    "log.level",
    "mqtt.clients",
    "mqtt.presets",
];

/// What became of a new configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes {
    /// Keys that were taken over.
    pub(super) live: Vec<String>,
    /// Keys that differ and wait for a restart.
    pub(super) waiting: Vec<String>,
}

impl Changes {
    /// Whether a key of `section` was taken over.
    pub(super) fn touch(&self, section: &str) -> bool {
        self.live.iter().any(|key| key.split('.').next() == Some(section))
    }
}

/// Takes over from `new` what a running daemon can, so that `running` is what it runs with.
pub(super) fn take_over(running: &mut Config, new: &Config) -> Changes {
    let (Ok(before), Ok(wanted)) = (serde_json::to_value(&*running), serde_json::to_value(new)) else {
        return Changes { live: Vec::new(), waiting: Vec::new() };
    };
    let mut after = before.clone();
    for key in LIVE {
        let Some((section, name)) = key.split_once('.') else { continue };
        let Some(table) = after[section].as_object_mut() else { continue };
        // A key without a value is absent.
        match wanted[section].get(name) {
            Some(value) => table.insert(name.to_owned(), value.clone()),
            None => table.remove(name),
        };
    }
    let changes = Changes { live: differences(&before, &after), waiting: differences(&after, &wanted) };
    if let Ok(config) = serde_json::from_value(after) {
        *running = config;
    }
    changes
}

/// `section.key` of what is not the same.
fn differences(a: &Value, b: &Value) -> Vec<String> {
    let sections = b.as_object().into_iter().flatten();
    let keys = sections.flat_map(|(section, table)| {
        let old = &a[section];
        let lists = (old.is_array() || table.is_array()) && old != table;
        let mut names: Vec<&String> =
            [table, old].into_iter().filter_map(Value::as_object).flat_map(|t| t.keys()).collect();
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .filter(move |name| old.get(name) != table.get(name))
            .map(move |name| format!("{section}.{name}"))
            .chain(lists.then(|| section.clone()))
    });
    let mut keys: Vec<String> = keys.collect();
    keys.sort_unstable();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_keys_are_taken_over_and_the_others_are_named() {
        let mut running = Config::default();
        let mut new = Config::default();
        new.governor.set_point_c = 65.5;
        new.log.level = "debug".into();
        new.model.context = 512;
        new.mqtt.client_id = Some("me".into());
        running.mqtt.presets.insert("bell".into(), serde_json::Map::default());
        let changes = take_over(&mut running, &new);
        assert_eq!(changes.live, ["governor.set_point_c", "log.level", "mqtt.presets"]);
        assert!(running.mqtt.presets.is_empty());
        assert_eq!(changes.waiting, ["model.context", "mqtt.client_id"]);
        assert!(changes.touch("log") && !changes.touch("model"));
        assert_eq!((running.governor.set_point_c, running.model.context), (65.5, 4096));
        // What waits is said again, and what came is nothing new.
        let again = take_over(&mut running, &new);
        assert_eq!((again.live.len(), again.waiting.len()), (0, 2));
    }

    #[test]
    fn every_live_key_exists() {
        let shown = serde_json::to_value(Config::default()).unwrap();
        for key in LIVE {
            let (section, name) = key.split_once('.').unwrap();
            assert!(shown[section].get(name).is_some() || key == "mqtt.presets" || key == "mqtt.clients", "{key}");
        }
    }
}
