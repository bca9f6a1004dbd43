//! Open requests and their way through one connection after another.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use super::super::waiting::stopped;
use super::super::wire::{self, Asked, Form, Key, MAX_CORRELATION, WireRequest};
use super::link::{Link, Lost, Message, News, PACKET_OVERHEAD, Receipt};
use super::options::Options;
use super::outbox::{Entry, MAX_IN_FLIGHT, Outbox};
use crate::scheduler::backend::InputError;
use crate::scheduler::{Code, Failure, Request, Scheduler, Ticket};

/// Time that the farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a connection is no longer served.
pub(super) enum End {
    /// Everything was said.
    Stopped,
    /// The connection broke.
    Lost(Lost),
}

/// A request between its arrival and the acknowledgement of its answer.
struct Open {
    key: Key,
    ticket: Ticket,
    form: Form,
    reply_to: String,
    correlation: Option<Vec<u8>>,
    receipt: Option<Receipt>,
    digest: u64,
    stream: bool,
    /// Collected for the next batch.
    text: String,
    thought: String,
    prefill: Option<(usize, usize)>,
    pieces: u64,
    answered: bool,
}

/// All requests that came over MQTT.
pub(super) struct Door {
    options: Options,
    scheduler: Scheduler,
    /// In the order of arrival; few enough to be searched.
    open: Vec<Open>,
    outbox: Outbox,
    /// Rung by the scheduler when a ticket has news.
    bell: Arc<Notify>,
}

impl Door {
    pub(super) fn new(options: Options, scheduler: Scheduler) -> Door {
        let (open, outbox, bell) = Default::default();
        Door { options, scheduler, open, outbox, bell }
    }

    /// Serves one connection. `up` is called when the broker has accepted it and the subscriptions.
    pub(super) async fn serve(
        &mut self,
        link: &mut Link,
        stop: &mut watch::Receiver<bool>,
        mut up: impl FnMut(bool),
    ) -> End {
        let bell = Arc::clone(&self.bell);
        let mut batch = interval(self.options.batch);
        batch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut connected, mut farewell) = (false, None);
        loop {
            if connected {
                self.collect(link);
                self.send(link);
            }
            match farewell {
                Some(_) if !connected => return End::Stopped,
                Some(_) if self.outbox.is_empty() => link.disconnect(),
                _ => {}
            }
            let until = farewell.unwrap_or_else(|| Instant::now() + FAREWELL);
            tokio::select! {
                news = link.news() => match news {
                    News::Connected => {
                        connected = true;
                        if !link.subscribe(self.options.topics.filters()) {
                            return End::Lost(Lost { reason: "cannot subscribe".into(), taken_over: false });
                        }
                    }
                    News::Subscribed(true) => {
                        info!(host = self.options.host, "connected to the MQTT broker");
                        if farewell.is_none() {
                            self.announce();
                        }
                        up(true);
                    }
                    News::Subscribed(false) => {
                        let filters = self.options.topics.filters();
                        error!(?filters, "the MQTT broker denies the subscription; see its access rules");
                        return End::Lost(Lost { reason: "subscription denied".into(), taken_over: false });
                    }
                    News::Message(message) => self.arrived(message, link),
                    News::Sent(packet) => self.outbox.sent(packet),
                    News::Acknowledged(packet, taken) => self.acknowledged(packet, taken, link),
                    News::Disconnected => return End::Stopped,
                    News::Lost(_) if farewell.is_some() => return End::Stopped,
                    News::Lost(lost) => return End::Lost(lost),
                },
                () = bell.notified() => {}
                _ = batch.tick(), if self.has_batch() => self.send_batches(link),
                () = stopped(stop), if farewell.is_none() => {
                    farewell = Some(Instant::now() + FAREWELL);
                    self.collect(link);
                    self.outbox.push(self.state("offline"));
                }
                () = sleep_until(until.into()), if farewell.is_some() => return End::Stopped,
            }
        }
    }

    /// The connection is gone: answers wait for the next one, states are announced anew.
    pub(super) fn disconnected(&mut self) {
        self.outbox.disconnected(|entry| !entry.retain);
    }

    fn announce(&mut self) {
        let info = Entry {
            topic: self.options.topics.info(),
            payload: self.options.info.to_string().into_bytes(),
            retain: true,
            content_type: Some(Form::Json.content_type()),
            ..Entry::default()
        };
        self.outbox.push(info);
        self.outbox.push(self.state("online"));
    }

    fn state(&self, word: &str) -> Entry {
        Entry { topic: self.options.topics.state(), payload: word.into(), retain: true, ..Entry::default() }
    }

    fn arrived(&mut self, message: Message, link: &Link) {
        match self.options.topics.asked(&message.topic) {
            None => debug!("message outside the request tree"),
            Some(asked) if message.retained => warn!(?asked, "retained request ignored"),
            Some(Asked::Cancel(key)) => {
                if let Some(open) = find(&mut self.open, &key) {
                    open.ticket.cancel();
                }
            }
            Some(Asked::Answer(key)) => return self.request(key, message, link),
        }
        acknowledge(link, message.receipt.as_ref());
    }

    fn request(&mut self, key: Key, mut message: Message, link: &Link) {
        let digest = digest(&message);
        let receipt = message.receipt.take();
        if let Some(open) = find(&mut self.open, &key)
            && open.digest == digest
        {
            // A redelivery, or a client that repeats itself: the answer is on its way. The newest receipt counts.
            if receipt.is_some() {
                acknowledge(link, std::mem::replace(&mut open.receipt, receipt).as_ref());
            }
            return;
        }
        let form = Form::of(message.content_type.as_deref(), &message.payload);
        let (reply_to, correlation) = match self.reply_address(&key, &message) {
            Ok(address) => address,
            Err(error) => {
                let reply_to = self.options.topics.response(&key);
                self.refuse(&key, form, reply_to, None, &error.into());
                return acknowledge(link, receipt.as_ref());
            }
        };
        match self.submit(&key, form, &message) {
            Ok((ticket, stream)) => {
                debug!(id = key.path(), bytes = message.payload.len(), "request over MQTT");
                let (text, thought, prefill, pieces, answered) = Default::default();
                let open = Open {
                    key,
                    ticket,
                    form,
                    reply_to,
                    correlation,
                    receipt,
                    digest,
                    stream,
                    text,
                    thought,
                    prefill,
                    pieces,
                    answered,
                };
                self.open.push(open);
            }
            Err(failure) if failure.code == Code::ShuttingDown && receipt.is_some() => {}
            Err(failure) => {
                self.refuse(&key, form, reply_to, correlation, &failure);
                acknowledge(link, receipt.as_ref());
            }
        }
    }

    fn reply_address(&self, key: &Key, message: &Message) -> Result<(String, Option<Vec<u8>>), InputError> {
        let correlation = message.correlation.clone();
        if let Some(bytes) = correlation.as_ref().map(Vec::len).filter(|&bytes| bytes > MAX_CORRELATION) {
            let why = format!("Correlation Data: expected at most {MAX_CORRELATION} bytes, found {bytes}");
            return Err(InputError::new("correlation_data", why));
        }
        match &message.response_topic {
            None => Ok((self.options.topics.response(key), correlation)),
            Some(topic) => {
                self.options.topics.check_response_topic(&key.client, topic)?;
                Ok((topic.clone(), correlation))
            }
        }
    }

    fn submit(&self, key: &Key, form: Form, message: &Message) -> Result<(Ticket, bool), Failure> {
        if self.open.iter().any(|open| open.key == *key) {
            let why = "a request with this id and another body is in progress; choose another id";
            return Err(Failure::new(Code::DuplicateMismatch, why));
        }
        if self.open.len() >= self.options.open + MAX_IN_FLIGHT {
            // The broker takes no answers: more of them would only pile up here.
            let why = "the broker does not take the answers of earlier requests";
            return Err(Failure { retry_after_s: Some(10), ..Failure::new(Code::Busy, why) });
        }
        let wire = WireRequest::parse(form, &message.payload)?;
        let limits = [
            Some(self.options.request_timeout),
            message.expiry_s.map(seconds),
            wire.timeout_s.map(Duration::from_secs),
        ];
        let deadline = limits.into_iter().flatten().min().and_then(|limit| Instant::now().checked_add(limit));
        let request = Request { id: key.path(), input: wire.input, sampling: wire.sampling, deadline };
        let bell = Arc::clone(&self.bell);
        let ticket = self.scheduler.submit(request, Box::new(move || bell.notify_one()))?;
        Ok((ticket, wire.stream))
    }

    fn refuse(&mut self, key: &Key, form: Form, reply_to: String, correlation: Option<Vec<u8>>, failure: &Failure) {
        debug!(id = key.path(), code = failure.code.name(), "refused over MQTT");
        let entry = failure_entry(form, key, reply_to, correlation, failure);
        if !self.outbox.push_refusal(entry) {
            warn!(id = key.path(), "too many refusals wait for the broker; one is dropped");
        }
    }

    /// Takes what the tickets have: events go out, pieces are collected, ends go to the outbox.
    fn collect(&mut self, link: &Link) {
        let options = &self.options;
        let event = |key: &Key, value: Value| {
            if options.events {
                link.publish_droppable(options.topics.events(key), value.to_string().into_bytes());
            }
        };
        for open in &mut self.open {
            if open.answered {
                continue;
            }
            let key = &open.key;
            let update = open.ticket.take();
            if let Some(ahead) = update.queued {
                event(key, json!({"event": "queued", "position": ahead}));
            }
            if let Some(tokens) = update.started {
                event(key, json!({"event": "started", "prompt_tokens": tokens}));
            }
            open.prefill = update.prefill.or(open.prefill);
            if open.stream {
                open.text.push_str(&update.text);
                open.thought.push_str(&update.thought);
            }
            let Some(result) = update.ended else { continue };
            open.answered = true;
            if matches!(&result, Err(failure) if failure.code == Code::ShuttingDown) && open.receipt.is_some() {
                info!(id = key.path(), "left to the broker for the next start");
                continue;
            }
            send_batch(options, open, link);
            let key = &open.key;
            event(key, wire::ended(&result));
            let (reply_to, correlation) = (open.reply_to.clone(), open.correlation.clone());
            let entry = match &result {
                Err(failure) => failure_entry(open.form, key, reply_to, correlation, failure),
                Ok(answer) => Entry {
                    topic: reply_to,
                    payload: wire::answer(open.form, key, &options.model, answer),
                    content_type: Some(open.form.content_type()),
                    correlation,
                    ..Entry::default()
                },
            };
            self.outbox.push(Entry { completes: Some(key.clone()), ..entry });
        }
    }

    fn has_batch(&self) -> bool {
        self.open.iter().any(|open| !open.text.is_empty() || !open.thought.is_empty() || open.prefill.is_some())
    }

    fn send_batches(&mut self, link: &Link) {
        for open in &mut self.open {
            send_batch(&self.options, open, link);
        }
    }

    /// Hands the outbox to the client as far as broker and client take it.
    fn send(&mut self, link: &Link) {
        while let Some(entry) = self.outbox.next(link.in_flight) {
            let bytes = entry.topic.len() + entry.payload.len() + entry.correlation.as_ref().map_or(0, Vec::len);
            if bytes + PACKET_OVERHEAD > link.max_packet {
                self.shrink(link.max_packet);
                continue;
            }
            if !link.publish(entry) {
                return;
            }
            self.outbox.handed();
        }
    }

    /// Replaces an answer that the broker would not take (and would break the connection over) by a failure, and
    /// drops a failure that is too large itself.
    fn shrink(&mut self, limit: usize) {
        let Some(entry) = self.outbox.discard() else { return };
        warn!(topic = entry.topic, bytes = entry.payload.len(), limit, "larger than the MQTT broker accepts");
        let Some(key) = entry.completes else { return };
        let Some(open) = find(&mut self.open, &key) else { return };
        if entry.error.is_some() {
            self.open.retain(|open| open.key != key);
            return;
        }
        let failure = Failure::new(Code::TooLarge, format!("the answer is larger than the broker's {limit} bytes"));
        let small = failure_entry(open.form, &key, entry.topic, entry.correlation, &failure);
        self.outbox.push(Entry { completes: Some(key), ..small });
    }

    fn acknowledged(&mut self, packet: u16, taken: bool, link: &Link) {
        let Some(entry) = self.outbox.acknowledged(packet) else { return };
        if !taken {
            warn!(topic = entry.topic, "the MQTT broker refuses this message; see its access rules");
        }
        let Some(key) = entry.completes else { return };
        if let Some(at) = self.open.iter().position(|open| open.key == key) {
            let open = self.open.remove(at);
            acknowledge(link, open.receipt.as_ref());
        }
    }
}

fn send_batch(options: &Options, open: &mut Open, link: &Link) {
    if let Some((done, total)) = open.prefill.take()
        && options.events
    {
        let value = json!({"event": "prefill", "done": done, "total": total});
        link.publish_droppable(options.topics.events(&open.key), value.to_string().into_bytes());
    }
    if open.text.is_empty() && open.thought.is_empty() {
        return;
    }
    let mut value = json!({"seq": open.pieces, "text": std::mem::take(&mut open.text)});
    if !open.thought.is_empty() {
        value["thought"] = json!(std::mem::take(&mut open.thought));
    }
    open.pieces += 1;
    link.publish_droppable(options.topics.tokens(&open.key), value.to_string().into_bytes());
}

fn failure_entry(form: Form, key: &Key, topic: String, correlation: Option<Vec<u8>>, failure: &Failure) -> Entry {
    Entry {
        topic,
        payload: wire::failure(form, key, failure),
        content_type: Some(form.content_type()),
        correlation,
        error: Some(failure.code.name()),
        ..Entry::default()
    }
}

fn acknowledge(link: &Link, receipt: Option<&Receipt>) {
    if let Some(receipt) = receipt {
        link.acknowledge(receipt);
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// Tells a repetition from another request under the same name.
fn digest(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&message.payload, &message.content_type, &message.response_topic, &message.correlation).hash(&mut hasher);
    hasher.finish()
}

fn find<'a>(open: &'a mut [Open], key: &Key) -> Option<&'a mut Open> {
    open.iter_mut().find(|open| open.key == *key)
}
