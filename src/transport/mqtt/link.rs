//! The client library, and the only place that names it: one connection attempt and what came of it.
//!
//! Every attempt gets a client of its own, so nothing of an old connection (packet ids, queued acknowledgements) can
//! leak into a new one. A task does nothing but poll it; this side never waits for the client, so the two cannot
//! deadlock when a channel is full.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, DisconnectReasonCode, Filter, LastWill, Packet, PubAckReason, Publish, PublishProperties,
    RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::options::Options;
use super::outbox::{Entry, MAX_IN_FLIGHT};
use super::tls::Bridge;

/// Commands that the client holds before it refuses more.
const CHANNEL: usize = 256;

/// Time that the broker gets to hang up after the farewell.
const HANG_UP: Duration = Duration::from_secs(1);

/// What a connection tells.
#[derive(Debug)]
pub(super) enum News {
    /// The broker accepted the connection.
    Connected,
    /// The broker answered the subscriptions; false when it denied one.
    Subscribed(bool),
    /// A message.
    Message(Message),
    /// An outbox entry went out under this packet id.
    Sent(u16),
    /// The broker took it; false when it took it and will not deliver it.
    Acknowledged(u16, bool),
    /// The farewell went out.
    Disconnected,
    /// The end of the connection.
    Lost(Lost),
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) struct Lost {
    /// For the log.
    pub(super) reason: String,
    /// Whether another client took the client id over.
    pub(super) taken_over: bool,
}

/// A message of the request tree.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) retained: bool,
    pub(super) content_type: Option<String>,
    pub(super) response_topic: Option<String>,
    pub(super) correlation: Option<Vec<u8>>,
    pub(super) expiry_s: Option<u32>,
    /// The user property `preset`.
    pub(super) preset: Option<String>,
    /// What the broker waits for; `None` for QoS 0.
    pub(super) receipt: Option<Receipt>,
}

/// An acknowledgement that has not been given yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Receipt {
    packet: u16,
    link: u64,
}

/// Bytes of a PUBLISH that are neither topic nor payload nor correlation data, generously.
pub(super) const PACKET_OVERHEAD: usize = 128;

/// A connection, or an attempt at one.
pub(super) struct Link {
    number: u64,
    client: AsyncClient,
    events: mpsc::Receiver<Result<Event, Lost>>,
    poller: JoinHandle<()>,
    /// Subscriptions that it cannot do without: the first ones.
    needed: usize,
    /// Publishes that the broker allows to be unacknowledged.
    pub(super) in_flight: usize,
    /// Largest packet that the broker accepts.
    pub(super) max_packet: usize,
    /// Whether an acknowledgement found no room.
    missed: AtomicBool,
}

impl Link {
    pub(super) fn open(options: &Options, number: u64) -> Link {
        let bridge = options.tls.is_some().then(|| Bridge::new(number));
        let (client, eventloop) = AsyncClient::new(client_options(options, bridge.as_ref()), CHANNEL);
        let (sender, events) = mpsc::channel(64);
        let poller = tokio::spawn(poll(eventloop, options.clone(), bridge, sender));
        Link {
            number,
            client,
            events,
            poller,
            needed: 0,
            in_flight: MAX_IN_FLIGHT,
            max_packet: usize::MAX,
            missed: AtomicBool::new(false),
        }
    }

    /// The next thing that the connection tells. Safe to cancel.
    pub(super) async fn news(&mut self) -> News {
        loop {
            let event = match self.events.recv().await {
                Some(Ok(event)) => event,
                Some(Err(lost)) => return News::Lost(lost),
                None => return News::Lost(Lost { reason: "the connection's task ended".into(), taken_over: false }),
            };
            if let Some(news) = self.translate(event) {
                return news;
            }
        }
    }

    fn translate(&mut self, event: Event) -> Option<News> {
        match event {
            Event::Outgoing(Outgoing::Publish(packet)) if packet != 0 => Some(News::Sent(packet)),
            Event::Outgoing(Outgoing::Disconnect) => Some(News::Disconnected),
            Event::Incoming(Packet::ConnAck(ack)) => {
                if let Some(limits) = ack.properties {
                    self.in_flight = limits.receive_max.map_or(MAX_IN_FLIGHT, usize::from);
                    self.max_packet = limits.max_packet_size.map_or(usize::MAX, |bytes| bytes as usize);
                }
                Some(News::Connected)
            }
            Event::Incoming(Packet::SubAck(ack)) => Some(News::Subscribed(
                ack.return_codes.iter().take(self.needed).all(|code| matches!(code, SubscribeReasonCode::Success(_))),
            )),
            Event::Incoming(Packet::PubAck(ack)) => {
                let taken = matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
                Some(News::Acknowledged(ack.pkid, taken))
            }
            Event::Incoming(Packet::Publish(publish)) => Some(News::Message(self.message(publish))),
            _ => None,
        }
    }

    fn message(&self, publish: Publish) -> Message {
        let properties = publish.properties.unwrap_or_default();
        let receipt = (publish.qos != QoS::AtMostOnce).then_some(Receipt { packet: publish.pkid, link: self.number });
        Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.into(),
            retained: publish.retain,
            content_type: properties.content_type,
            response_topic: properties.response_topic,
            correlation: properties.correlation_data.map(Into::into),
            expiry_s: properties.message_expiry_interval,
            preset: properties.user_properties.into_iter().find(|(name, _)| name == "preset").map(|(_, value)| value),
            receipt,
        }
    }

    /// Subscribes to the request tree: QoS 1 at most, no retained messages, and the retain flag as it was published; none of
    /// its own, which MQTT has as an error in a shared subscription. The broker may deny those of `wishes`.
    pub(super) fn subscribe(&mut self, filters: Vec<String>, wishes: Vec<String>) -> bool {
        self.needed = filters.len();
        let filters = filters.into_iter().chain(wishes).map(|path| Filter {
            nolocal: !path.starts_with("$share/"),
            path,
            qos: QoS::AtLeastOnce,
            preserve_retain: true,
            retain_forward_rule: RetainForwardRule::Never,
        });
        self.client.try_subscribe_many(filters).is_ok()
    }

    /// Ends subscriptions, those that there never were included; false when the client takes no more now.
    pub(super) fn unsubscribe(&self, filters: Vec<String>) -> bool {
        filters.into_iter().all(|filter| self.client.try_unsubscribe(filter).is_ok())
    }

    /// Hands an outbox entry over; false when the client takes no more now.
    pub(super) fn publish(&self, entry: &Entry) -> bool {
        let properties = PublishProperties {
            payload_format_indicator: Some(1),
            correlation_data: entry.correlation.clone().map(Into::into),
            user_properties: entry.error.iter().map(|code| ("error".to_owned(), code.to_string())).collect(),
            content_type: entry.content_type.as_deref().map(str::to_owned),
            ..PublishProperties::default()
        };
        let (topic, payload) = (entry.topic.clone(), entry.payload.clone());
        self.client.try_publish_with_properties(topic, QoS::AtLeastOnce, entry.retain, payload, properties).is_ok()
    }

    /// Sends something that may get lost. What the broker would not take is: a packet above its limit costs the
    /// connection.
    pub(super) fn publish_droppable(&self, topic: String, payload: Vec<u8>) {
        self.publish_once(topic, payload, false);
    }

    /// Sends something that may get lost, and that the broker shall keep.
    pub(super) fn publish_retained(&self, topic: String, payload: Vec<u8>) {
        self.publish_once(topic, payload, true);
    }

    fn publish_once(&self, topic: String, payload: Vec<u8>, retain: bool) {
        if topic.len() + payload.len() + PACKET_OVERHEAD > self.max_packet {
            return;
        }
        let _ = self.client.try_publish(topic, QoS::AtMostOnce, retain, payload);
    }

    /// Tells the broker that a message needs no redelivery. A receipt of another connection is void: its message comes
    /// again, with a receipt of this one.
    pub(super) fn acknowledge(&self, receipt: &Receipt) {
        if receipt.link == self.number {
            let publish = Publish { qos: QoS::AtLeastOnce, pkid: receipt.packet, ..Publish::default() };
            // A full channel means a redelivery after the next connection, nothing worse.
            if self.client.try_ack(&publish).is_err() {
                self.missed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether the broker still waits for an acknowledgement that there was no room for; only a new connection brings its
    /// message again.
    pub(super) fn missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    /// Waits until the broker has hung up after [`Link::disconnect`]: what a bridge still carries would be lost with the
    /// process.
    pub(super) async fn closed(&mut self) {
        let _ = timeout(HANG_UP, &mut self.poller).await;
    }

    /// Says farewell, which keeps the broker from publishing the last will.
    pub(super) fn disconnect(&self) {
        let _ = self.client.try_disconnect();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.poller.abort();
    }
}

async fn poll(
    mut eventloop: EventLoop,
    options: Options,
    bridge: Option<Bridge>,
    events: mpsc::Sender<Result<Event, Lost>>,
) {
    if let Err(reason) = cross(&options, bridge.as_ref()).await {
        let _ = events.send(Err(Lost { reason, taken_over: false })).await;
        return;
    }
    loop {
        let event = eventloop.poll().await.map_err(|error| {
            let mut lost = lost(&error);
            if let Some(failure) = bridge.as_ref().and_then(Bridge::failure) {
                lost.reason = format!("{} (TLS: {failure})", lost.reason);
            }
            lost
        });
        let ended = event.is_err();
        if events.send(event).await.is_err() || ended {
            return;
        }
    }
}

/// Makes the encrypted connection, when there is to be one, and opens the bridge to it.
async fn cross(options: &Options, bridge: Option<&Bridge>) -> Result<(), String> {
    let (Some(tls), Some(bridge)) = (&options.tls, bridge) else { return Ok(()) };
    let far = tls.connect(&options.host, options.port).await?;
    bridge.open(far).map_err(|error| format!("bridge to the client library: {error}"))
}

fn client_options(options: &Options, bridge: Option<&Bridge>) -> MqttOptions {
    let host = bridge.map_or(options.host.as_str(), Bridge::path);
    let mut client = MqttOptions::new(&options.client_id, host, options.port);
    if host.starts_with(['/', '\0']) {
        client.set_transport(Transport::unix());
    }
    if let Some(user) = &options.username {
        client.set_credentials(user, options.password.as_deref().unwrap_or_default());
    }
    let will = LastWill::new(options.topics.state(), "offline", QoS::AtLeastOnce, true, None);
    client
        .set_last_will(will)
        .set_keep_alive(options.keep_alive)
        .set_clean_start(false)
        .set_session_expiry_interval(Some(options.session_expiry_s))
        .set_max_packet_size(Some(options.max_packet))
        .set_receive_maximum(Some(options.receive_maximum()))
        .set_outgoing_inflight_upper_limit(4 * MAX_IN_FLIGHT as u16)
        .set_manual_acks(true)
        .set_connection_timeout(10);
    client
}

fn lost(error: &ConnectionError) -> Lost {
    let taken_over = matches!(
        error,
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        })
    );
    let reason = match error {
        ConnectionError::ConnectionRefused(
            code @ (ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized),
        ) => format!("the broker refused user name and password ({code:?}); see `username` and `password_file`"),
        other => other.to_string(),
    };
    Lost { reason, taken_over }
}
