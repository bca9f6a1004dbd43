//! Home Assistant's device discovery: one retained message that tells it every entity of this daemon.

use serde_json::{Value, json};

use super::super::wire::{ANONYMOUS, Key, Topics};

/// The client name that Home Assistant asks under.
const CLIENT: &str = "homeassistant";

/// Longest text that Home Assistant takes as a state.
const MAX_STATE: usize = 255;

/// Where the message goes below the discovery prefix.
pub(super) fn topic(prefix: &str, id: &str) -> String {
    format!("{prefix}/device/{}/config", object_id(id))
}

/// Where Home Assistant says that it has started.
pub(super) fn status(prefix: &str) -> String {
    format!("{prefix}/status")
}

/// `id` in the characters that Home Assistant takes there.
fn object_id(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

/// The message. `id` is unique to this daemon and stays the same; the statistics come every `stats_s` seconds.
pub(super) fn payload(topics: &Topics, id: &str, model: &str, stats_s: u64) -> Value {
    let id = object_id(id);
    let expire = 3 * stats_s;
    let key = Key { shared: false, client: CLIENT.into(), id: ANONYMOUS.into() };
    let sensor = |name: &str, field: &str, more: Value| {
        let mut entity = json!({
            "platform": "sensor",
            "state_topic": topics.stats(),
            "unique_id": format!("{id}_{field}"),
            "value_template": format!("{{{{ value_json.{field} }}}}"),
            "expire_after": expire,
            "entity_category": "diagnostic",
            "name": name,
        });
        merge(&mut entity, more);
        entity
    };
    let problem = |name: &str, field: &str| {
        json!({
            "platform": "binary_sensor",
            "state_topic": topics.stats(),
            "unique_id": format!("{id}_{field}"),
            "device_class": "problem",
            // "None" makes the state unknown: not every board says.
            "value_template": format!("{{{{ {{true: 'ON', false: 'OFF'}}.get(value_json.{field}, 'None') }}}}"),
            "expire_after": expire,
            "entity_category": "diagnostic",
            "name": name,
        })
    };
    let measured =
        |unit: &str, icon: &str| json!({"state_class": "measurement", "unit_of_measurement": unit, "icon": icon});
    json!({
        "device": {
            "identifiers": [id],
            "name": format!("emberd {}", topics.node()),
            "manufacturer": "emberd",
            "model": model,
            "sw_version": env!("CARGO_PKG_VERSION"),
        },
        "origin": {"name": "emberd", "sw_version": env!("CARGO_PKG_VERSION")},
        "availability_topic": topics.state(),
        "components": {
            "temperature": sensor("Temperature", "temperature_c", json!({
                "device_class": "temperature", "state_class": "measurement", "unit_of_measurement": "°C",
            })),
            "speed": sensor("Speed", "tokens_per_s", measured("tokens/s", "mdi:speedometer")),
            "queue": sensor("Queue", "queue_depth", measured("requests", "mdi:tray-full")),
            "threads": sensor("Threads", "threads", measured("threads", "mdi:cpu-64-bit")),
            "requests": sensor("Requests", "requests_total", json!({
                "value_template": "{{ value_json.requests.total }}", "state_class": "total_increasing",
                "unit_of_measurement": "requests", "icon": "mdi:counter",
            })),
            "last_error": sensor("Last error", "last_error", json!({"icon": "mdi:alert-circle-outline"})),
            "throttled": problem("Throttled", "throttled"),
            "under_voltage": problem("Under-voltage", "under_voltage"),
            // The question is its state; the answer may be longer than a state and stands in its attributes.
            "ask": {
                "platform": "text",
                "unique_id": format!("{id}_ask"),
                "name": "Ask",
                "icon": "mdi:message-question-outline",
                "max": MAX_STATE,
                "qos": 1,
                "command_topic": topics.request(&key),
                "command_template": "{\"prompt\": {{ value | tojson }}}",
                "json_attributes_topic": topics.response(&key),
                "enabled_by_default": false,
            },
        },
    })
}

fn merge(entity: &mut Value, more: Value) {
    if let (Value::Object(entity), Value::Object(more)) = (entity, more) {
        entity.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_entity_has_what_home_assistant_requires() {
        let payload = payload(&Topics::new("emberd", "pi.attic"), "emberd-pi.attic", "gemma", 60);
        assert_eq!(topic("homeassistant", "emberd-pi.attic"), "homeassistant/device/emberd-pi_attic/config");
        assert_eq!(payload["device"]["identifiers"], json!(["emberd-pi_attic"]));
        assert!(payload["origin"]["name"].is_string());
        assert_eq!(payload["availability_topic"], "emberd/pi.attic/state");
        let mut ids = HashSet::new();
        let components = payload["components"].as_object().unwrap();
        for (name, entity) in components {
            assert!(ids.insert(entity["unique_id"].as_str().unwrap()), "{name}: not unique");
            assert!(entity["name"].is_string(), "{name}");
            match entity["platform"].as_str().unwrap() {
                "sensor" => {
                    assert_eq!(entity["expire_after"], 180, "{name}");
                    assert!(entity["value_template"].as_str().unwrap().starts_with("{{ value_json."), "{name}");
                    let measured = entity["state_class"].is_string();
                    assert_eq!(measured, entity["unit_of_measurement"].is_string(), "{name}");
                }
                "binary_sensor" => assert_eq!(entity["device_class"], "problem", "{name}"),
                "text" => {
                    assert_eq!(entity["command_topic"], "emberd/pi.attic/req/homeassistant/-");
                    assert_eq!(entity["json_attributes_topic"], "emberd/pi.attic/res/homeassistant/-");
                    assert_eq!((&entity["enabled_by_default"], &entity["max"]), (&false.into(), &255.into()));
                }
                other => panic!("{name}: {other}"),
            }
        }
        for name in
            ["temperature", "speed", "queue", "threads", "requests", "throttled", "under_voltage", "last_error", "ask"]
        {
            assert!(components.contains_key(name), "{name}");
        }
        // Small enough for every broker.
        assert!(payload.to_string().len() < 6000, "{}", payload.to_string().len());
    }
}
