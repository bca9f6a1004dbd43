//! What devices and homes see of the MQTT door: small buffers, presets, statistics, Home Assistant, and hostile clients.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use common::broker::Broker;
use common::peer::Peer;
use common::{Daemon, PATIENCE};
use emberd::transport::mqtt::chunks;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

#[test]
#[ignore = "started by the other tests as their daemon"]
fn daemon_child() {
    common::daemon_child();
}

/// The client of an ESP8266 as PubSubClient 2.8 has it: MQTT 3.1.1, QoS 0 out, and one buffer for header, topic and
/// payload. What does not fit is not sent, and what comes and does not fit is read and forgotten: of a packet that comes
/// every byte counts, of one that is sent 5 bytes for its fixed header, however long that is. What it forgets it does
/// not acknowledge either.
struct Small {
    stream: TcpStream,
    forgotten: usize,
}

const BUFFER: usize = 256;

/// Bytes that it keeps free for the fixed header of what it sends.
const MAX_HEADER: usize = 5;

impl Small {
    fn connect(port: u16, id: &str, filter: &str, qos: u8) -> Small {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut small = Small { stream, forgotten: 0 };
        let connect = [&b"\0\x04MQTT\x04\x02\0\x0f"[..], &text(id)].concat();
        small.write(0x10, &connect);
        assert_eq!(small.read().unwrap(), [0x20, 2, 0, 0]);
        assert!(9 + filter.len() <= BUFFER);
        small.write(0x82, &[&b"\0\x02"[..], &text(filter), &[qos]].concat());
        assert_eq!(small.read().unwrap(), [0x90, 3, 0, 2, qos]);
        small
    }

    fn write(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut left = body.len();
        loop {
            packet.push((left % 128) as u8 | if left > 127 { 0x80 } else { 0 });
            left /= 128;
            if left == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.write_all(&packet).unwrap();
    }

    /// False when it does not fit the buffer.
    fn publish(&mut self, topic: &str, payload: &str) -> bool {
        let fits = MAX_HEADER + 2 + topic.len() + payload.len() <= BUFFER;
        if fits {
            self.write(0x30, &[&text(topic), payload.as_bytes()].concat());
        }
        fits
    }

    /// The next packet; `None` when it was larger than the buffer.
    fn read(&mut self) -> Option<Vec<u8>> {
        let mut byte = || {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).expect("a packet");
            byte[0]
        };
        let mut packet = vec![byte()];
        let (mut length, mut shift) = (0, 0);
        loop {
            let digit = byte();
            packet.push(digit);
            length |= usize::from(digit & 0x7f) << shift;
            shift += 7;
            if digit & 0x80 == 0 {
                break;
            }
        }
        for _ in 0..length {
            packet.push(byte());
        }
        let fits = packet.len() <= BUFFER;
        self.forgotten += usize::from(!fits);
        fits.then_some(packet)
    }

    /// The next message: topic and payload. One of QoS 1 is acknowledged.
    fn message(&mut self) -> Option<(String, String)> {
        let packet = self.read()?;
        assert_eq!(packet[0] & 0xf0, 0x30, "{packet:?}");
        let at = 1 + packet[1..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let end = at + 2 + usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let mut payload = end;
        if packet[0] & 0x06 != 0 {
            payload += 2;
            self.write(0x40, &packet[end..payload]);
        }
        let words = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("cut between characters");
        Some((words(&packet[at + 2..end]), words(&packet[payload..])))
    }

    /// The pieces of an answer put together, their number, and the last one's mark.
    fn answer(&mut self, topic: &str) -> (String, usize, char) {
        let mut answer = String::new();
        for number in 1.. {
            let (on, piece) = self.message().expect("a piece that fits");
            assert_eq!(on, topic);
            let piece = piece.strip_prefix(&number.to_string()).unwrap_or_else(|| panic!("{number}: {piece}"));
            answer.push_str(&piece[1..]);
            match piece.chars().next().unwrap() {
                ':' => {}
                mark => return (answer, number, mark),
            }
        }
        unreachable!()
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

const SMALL: &str = r#"
[[mqtt.clients]]
names = ["esp-*", "bell"]
packet_bytes = 256
preset = "short"
[mqtt.presets.short]
system = "be brief"
max_tokens = 300
[mqtt.presets.params]
temperature = 0.5
stop = ["END"]
max_tokens = 50
"#;

#[test]
fn small_devices_get_answers_that_fit_their_buffer() {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings(SMALL));
    daemon.wait_notified("STATUS=serving the socket and MQTT");
    for (id, qos) in [("esp-0", 0), ("esp-1", 1)] {
        let mut small = Small::connect(broker.port, id, &format!("emberd/n/res/{id}/+"), qos);
        let topic = |name: &str, direction: &str| format!("emberd/n/{direction}/{id}/{name}");
        assert!(small.publish(&topic("1", "req"), "on or off?"));
        assert_eq!(small.answer(&topic("1", "res")), ("You said: be brief|on or off?".into(), 1, '.'));

        let question = "漢字🔥é".repeat(17);
        assert!(!small.publish(&topic("2", "req"), &question.repeat(2)), "it would not fit");
        assert!(small.publish(&topic("2", "req"), &question));
        assert_eq!(small.answer(&topic("2", "res")), (format!("You said: be brief|{question}"), 1, '.'));

        assert!(small.publish(&topic("3", "req"), "@long"));
        let (answer, pieces, mark) = small.answer(&topic("3", "res"));
        let expected: String = (0..300).map(|n| format!("word{n} ")).collect();
        assert_eq!((answer, mark), (expected.clone(), '.'));
        let room = chunks::room(256, topic("3", "res").len()).unwrap();
        assert_eq!(pieces, chunks::pieces(chunks::Kind::Answer, &expected, room).len());
        assert!(pieces > 10, "{pieces}");

        // JSON in, and still plain pieces out; no events in between.
        assert!(small.publish(&topic("4", "req"), r#"{"prompt":3}"#));
        let (error, _, mark) = small.answer(&topic("4", "res"));
        assert!(error.starts_with("bad_request: prompt") && mark == '!', "{error}");
        assert_eq!(small.forgotten, 0);
    }
    // Nobody said that this one is small; its answer is lost on it.
    let mut other = Small::connect(broker.port, "other", "emberd/n/res/other/+", 0);
    assert!(other.publish("emberd/n/req/other/1", "@long"));
    assert!(other.message().is_none() && other.forgotten == 1);

    // A topic that fills the buffer is refused, in one message for whoever else listens.
    let peer = Peer::connect(broker.port, "peer", "#");
    let id = "x".repeat(128);
    let long = format!("bell/{id}");
    let address = PublishProperties { response_topic: Some("y".repeat(300)), ..PublishProperties::default() };
    peer.send_with(&format!("emberd/n/req/{long}"), "hi", address);
    let refusal = peer.text_on(&format!("emberd/n/res/{long}"));
    assert!(refusal.starts_with("1!bad_request: a topic of 300 bytes leaves no room"), "{refusal}");
}

#[test]
fn presets_are_chosen_by_field_property_or_client() {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings(SMALL));
    let peer = Peer::connect(broker.port, "peer", "emberd/n/#");
    peer.wait_state("online");
    let named = |name: &str| PublishProperties {
        user_properties: vec![("preset".into(), name.into())],
        ..PublishProperties::default()
    };
    peer.send("emberd/n/req/peer/1", r#"{"prompt":"hi","preset":"short"}"#);
    assert_eq!(peer.json_on("emberd/n/res/peer/1")["text"], "You said: be brief|hi");
    peer.send_with("emberd/n/req/peer/2", "@params", named("params"));
    let sampling = peer.text_on("emberd/n/res/peer/2");
    assert!(sampling.contains("temperature: Some(0.5)") && sampling.contains("END"), "{sampling}");
    peer.send_with("emberd/n/req/peer/3", "@long", named("params"));
    assert_eq!(peer.text_on("emberd/n/res/peer/3").split_whitespace().count(), 50);
    peer.send_with("emberd/n/req/peer/4", r#"{"prompt":"hi"}"#, named("nonsense"));
    let error = &peer.json_on("emberd/n/res/peer/4")["error"];
    assert_eq!((&error["code"], &error["param"]), (&"bad_request".into(), &"preset".into()));
    peer.send("emberd/n/req/bell/5", "three small words");
    assert_eq!(peer.text_on("emberd/n/res/bell/5"), "1.You said: be brief|three small words");

    // Without an id every message is a request of its own.
    for word in ["one", "two"] {
        peer.send("emberd/n/req/peer/-", json!({"prompt": word}).to_string());
        let answer = peer.json_on("emberd/n/res/peer/-");
        assert_eq!((&answer["id"], &answer["text"]), (&"-".into(), &format!("You said: {word}").into()));
    }
    // Events by request.
    peer.send("emberd/n/req/peer/6", r#"{"prompt":"quiet","events":false}"#);
    loop {
        let topic = peer.inbox.recv_timeout(PATIENCE).unwrap().topic;
        assert_ne!(topic, "emberd/n/res/peer/6/ev");
        if topic == "emberd/n/res/peer/6" {
            break;
        }
    }
    let info = Peer::connect(broker.port, "late", "emberd/n/info").json_on("emberd/n/info");
    assert_eq!(info["presets"], json!(["params", "short"]));
    drop(daemon);
}

#[test]
fn presets_and_clients_follow_a_new_configuration() {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings(SMALL));
    let peer = Peer::connect(broker.port, "peer", "emberd/n/#");
    peer.wait_state("online");
    peer.send("emberd/n/req/bell/1", "hi");
    assert_eq!(peer.text_on("emberd/n/res/bell/1"), "1.You said: be brief|hi");
    let file = daemon.dir.path().join("config.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("be brief", "be terse").replace("presets.params", "presets.other")).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    // Told to everybody, without a new connection.
    while peer.json_on("emberd/n/info")["presets"] != json!(["other", "short"]) {}
    peer.send("emberd/n/req/bell/2", "hi");
    assert_eq!(peer.text_on("emberd/n/res/bell/2"), "1.You said: be terse|hi");
    peer.send("emberd/n/req/peer/3", r#"{"prompt":"hi","preset":"params"}"#);
    assert_eq!(peer.json_on("emberd/n/res/peer/3")["error"]["param"], "preset");
    assert_eq!(daemon.log().matches("connected to the MQTT broker").count(), 1);
}

#[test]
fn statistics_and_home_assistant() {
    let broker = Broker::start();
    let _daemon = Daemon::start(&broker.settings("stats_s = 5"));
    let peer = Peer::connect(broker.port, "peer", "#");
    let topic = "homeassistant/device/emberd-n/config";
    let device = peer.json_on(topic);
    let sensors: Vec<_> = device["components"].as_object().unwrap().values().collect();
    peer.wait_state("online");
    let stats = peer.json_on("emberd/n/stats");
    assert_eq!((&stats["requests"]["total"], &stats["last_error"]), (&0.into(), &"none".into()));
    // For tests/home-assistant/check, which writes this file when Home Assistant's own code takes the message.
    if let Some(dir) = std::env::var_os("EMBERD_DISCOVERY").map(PathBuf::from) {
        fs::write(dir.join("topic"), topic).unwrap();
        fs::write(dir.join("config.json"), format!("{device:#}\n")).unwrap();
        fs::write(dir.join("stats.json"), stats.to_string()).unwrap();
    }
    let mut validated: Value = serde_json::from_str(include_str!("home-assistant/validated.json")).unwrap();
    for part in ["device", "origin"] {
        validated[part]["sw_version"] = env!("CARGO_PKG_VERSION").into();
    }
    assert_eq!(device, validated, "not what was validated: run tests/home-assistant/check");
    for sensor in &sensors {
        // Every template reads something that is there.
        let Some(template) = sensor["value_template"].as_str() else { continue };
        let path = template.split("value_json.").nth(1).unwrap();
        let path: String = path.chars().take_while(|c| c.is_alphanumeric() || "_.".contains(*c)).collect();
        let found = path.split('.').try_fold(&stats, |value, name| value.as_object().and_then(|map| map.get(name)));
        assert!(found.is_some(), "{template}");
        assert_eq!(sensor["state_topic"], "emberd/n/stats");
    }
    // A question as Home Assistant's text entity sends it.
    let ask = &device["components"]["ask"];
    let question = ask["command_template"].as_str().unwrap().replace("{{ value | tojson }}", r#""is it \"warm\"?""#);
    peer.send(ask["command_topic"].as_str().unwrap(), question);
    let answer = peer.json_on(ask["json_attributes_topic"].as_str().unwrap());
    assert_eq!(answer["text"], "You said: is it \"warm\"?");
    peer.send("emberd/n/req/peer/1", "@fail");
    peer.text_on("emberd/n/res/peer/1");

    peer.send("homeassistant/status", "online");
    let again = peer.next_on("homeassistant/device/emberd-n/config");
    assert_eq!(serde_json::from_slice::<Value>(&again.payload).unwrap(), device);

    // The next ones tell of both requests; a late reader gets them at once.
    let stats = peer.json_on("emberd/n/stats");
    assert_eq!(stats["requests"], json!({"total": 2, "answered": 1, "internal": 1}));
    assert_eq!((&stats["last_error"], &stats["threads"]), (&"internal".into(), &1.into()));
    assert!(stats["completion_tokens"].as_u64().unwrap() > 0 && stats["uptime_s"].as_u64().unwrap() >= 4, "{stats}");
    let late = Peer::connect(broker.port, "late", "emberd/n/stats").next_on("emberd/n/stats");
    assert!(late.retain);
}

#[test]
fn home_assistant_can_be_left_alone() {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings("homeassistant = \"\""));
    let peer = Peer::connect(broker.port, "peer", "#");
    peer.wait_state("online");
    peer.send("homeassistant/status", "online");
    peer.send("emberd/n/req/peer/1", "hi");
    loop {
        let topic = String::from_utf8(peer.inbox.recv_timeout(PATIENCE).unwrap().topic.to_vec()).unwrap();
        assert!(!topic.starts_with("homeassistant/device"), "{topic}");
        if topic == "emberd/n/res/peer/1" {
            break;
        }
    }
    drop(daemon);
}

#[test]
fn a_broker_that_takes_only_small_packets_is_sent_none_that_are_larger() {
    let broker = Broker::start_at(common::broker::free_port(), "max_packet_size 400");
    let more = "[[mqtt.clients]]\nnames = [\"small\"]\npacket_bytes = 512\n";
    let daemon = Daemon::start(&broker.settings(more));
    let peer = Peer::connect(broker.port, "peer", "emberd/n/#");
    peer.wait_state("online");
    for round in 0..3 {
        // Its answer does not fit, whole or in pieces of 512 bytes, and its client is told.
        peer.send(&format!("emberd/n/req/peer/l{round}"), r#"{"prompt":"@long"}"#);
        assert_eq!(peer.json_on(&format!("emberd/n/res/peer/l{round}"))["error"]["code"], "too_large");
        peer.send(&format!("emberd/n/req/small/l{round}"), "@long");
        let piece = peer.text_on(&format!("emberd/n/res/small/l{round}"));
        assert!(piece.starts_with("1!too_large: "), "{piece}");
        // What fits goes out as ever.
        peer.send(&format!("emberd/n/req/peer/s{round}"), "hi");
        assert_eq!(peer.text_on(&format!("emberd/n/res/peer/s{round}")), "You said: hi");
    }
    let log = daemon.log();
    assert_eq!(log.matches("connected to the MQTT broker").count(), 1, "the connection held");
    assert!(log.contains("larger than the MQTT broker accepts") && !log.contains("no connection"), "{log}");
}

#[test]
fn hostile_requests_get_one_error_each_and_hold_nobody_up() {
    let broker = Broker::start();
    let daemon = Daemon::start(&broker.settings("max_packet_bytes = 200000\nevents = false\n[queue]\ndepth = 200"));
    let (alice, mallory) = (Peer::connect(broker.port, "alice", "emberd/n/res/alice/+"), "emberd/n/req/mallory");
    let watch = Peer::connect(broker.port, "watch", "emberd/n/res/mallory/+");
    daemon.wait_notified("STATUS=serving the socket and MQTT");
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000)).into_bytes();
    let payloads: Vec<Vec<u8>> = vec![
        deep("{\"messages\":[", "]}"),
        deep("{\"a\":", "}"),
        [b"{\"prompt\":".to_vec(), deep("[", "]"), b"}".to_vec()].concat(),
        b"\xff\xfe\xfd".to_vec(),
        b"{\"prompt\":\"\xc3\x28\"}".to_vec(),
        b"".to_vec(),
        b"{\"prompt\":1e999}".to_vec(),
        b"{\"prompt\":\"x\",\"max_tokens\":-1}".to_vec(),
        b"{\"prompt\":\"x\",\"seed\":99999999999999999999999}".to_vec(),
        b"{\"messages\":[{\"role\":\"root\",\"content\":\"x\"}]}".to_vec(),
        format!("{{\"messages\":[{}]}}", vec!["{\"role\":\"user\",\"content\":\"x\"}"; 300].join(",")).into_bytes(),
        b"{\"prompt\":\"x\",\"stop\":[\"\"]}".to_vec(),
        b"{\"prompt\":\"\\ud800\"}".to_vec(),
    ];
    let addresses =
        ["emberd/n/req/alice/1", "emberd/n/res/alice/1", "emberd/other/state", "$SYS/x", "homeassistant/status"];
    let sender = Peer::connect(broker.port, "mallory", "none");
    let mut ids = Vec::new();
    for round in 0..8 {
        for (at, payload) in payloads.iter().enumerate() {
            let id = format!("{round}-p{at}");
            sender.send(&format!("{mallory}/{id}"), payload.clone());
            ids.push(id);
        }
        for (at, address) in addresses.iter().enumerate() {
            let properties =
                PublishProperties { response_topic: Some((*address).into()), ..PublishProperties::default() };
            let id = format!("{round}-r{at}");
            sender.send_with(&format!("{mallory}/{id}"), "x", properties);
            ids.push(id);
        }
        // Larger than the daemon takes: it stays with the broker. And outside of what is asked for.
        sender.send(&format!("{mallory}/{round}-large"), vec![b'x'; 300_000]);
        for topic in ["", "/", "/a/b", "/a/cancel/cancel"] {
            sender.client.publish(format!("{mallory}{topic}"), QoS::AtMostOnce, false, "x").unwrap();
        }
        alice.send(&format!("emberd/n/req/alice/{round}"), "hello");
        assert_eq!(alice.text_on(&format!("emberd/n/res/alice/{round}")), "You said: hello");
    }
    sender.send(&format!("{mallory}/last"), "{}");
    let mut seen: HashMap<String, usize> = HashMap::new();
    while !seen.contains_key("last") {
        let publish = watch.inbox.recv_timeout(PATIENCE).unwrap();
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let properties = publish.properties.unwrap();
        let code = properties.user_properties.iter().find(|(name, _)| name == "error").map(|(_, code)| code.as_str());
        let id = topic.rsplit('/').next().unwrap();
        // Levels of their own are names like any other.
        if !["a", "b", "cancel"].contains(&id) {
            assert_eq!(code, Some("bad_request"), "{topic}");
            *seen.entry(id.to_owned()).or_default() += 1;
        }
    }
    for id in &ids {
        assert_eq!(seen.get(id), Some(&1), "{id}");
    }
    assert_eq!(seen.len(), ids.len() + 1);
    let log = daemon.log();
    assert_eq!(log.matches("connected to the MQTT broker").count(), 1, "the connection held");
    assert!(!log.contains("no connection"));
}
