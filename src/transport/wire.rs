//! MQTT payloads and topics, without I/O.
//!
//! Below `<base>/<node>/`:
//!
//! ```text
//! state                      retained  online | offline (last will)
//! info                       retained  JSON: version, model, limits
//! stats                      retained  JSON: load, counts, temperature
//! req/<client>/<id>          in        plain text, or a JSON object
//! req/<client>/<id>/cancel   in        any payload
//! dead                       out       requests that were given up: JSON
//! res/<client>/<id>          out       the answer, QoS 1; JSON for JSON, plain text for plain text
//! res/<client>/<id>/ev       out       queued, started, prefill, ended: JSON, QoS 0
//! res/<client>/<id>/tok      out       pieces of the answer, QoS 0, for JSON requests with "stream": true
//! ```
//!
//! A payload is JSON when its content type says `application/json`, plain text when it says `text/…`; without a content
//! type it is JSON when its first character is `{`.
//!
//! Daemons that share `<base>/<share>/` take turns with what comes to `req` there, and answer below it.
//!
//! The id `-` is for clients that cannot vary their topics: every message is a request of its own, also one that the
//! broker delivers again.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fields::{Fields, conversation, messages};
use super::openai;
use super::preset::{Preset, Presets};
use super::sessions::Session;
use super::tools;
use crate::scheduler::backend::{Input, InputError, Sampling};
use crate::scheduler::{Answer, Failure, Priority};

/// Longest client name or request id, in bytes.
pub const MAX_NAME: usize = 128;

/// Longest Response Topic, in bytes.
pub const MAX_TOPIC: usize = 512;

/// Longest Correlation Data, in bytes.
pub const MAX_CORRELATION: usize = 1024;

/// The id of requests without one.
pub const ANONYMOUS: &str = "-";

/// Who asked, and under which name: the last two levels of the request's topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Whether it came by the tree that several daemons share.
    pub shared: bool,
    /// Name of the requesting client.
    pub client: String,
    /// The client's name for the request.
    pub id: String,
}

impl Key {
    /// Reads what [`Key::path`] gave.
    pub fn parse(path: &str) -> Option<Key> {
        let (shared, path) = path.strip_prefix('/').map_or((false, path), |path| (true, path));
        let (client, id) = path.split_once('/')?;
        Some(Key { shared, client: client.into(), id: id.into() })
    }

    /// The same name, or for a request without an id one that no other request has: no topic level holds a slash.
    pub fn unique(mut self, random: u64) -> Key {
        if self.id == ANONYMOUS {
            self.id = format!("{ANONYMOUS}/{random:016x}");
        }
        self
    }

    /// The id as it stands in topics and answers.
    pub fn level(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }

    /// `client/id`, as it stands in logs and the spool; with a slash before it in the shared tree.
    pub fn path(&self) -> String {
        format!("{}{}/{}", if self.shared { "/" } else { "" }, self.client, self.id)
    }
}

/// What a topic of the request tree asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An answer.
    Answer(Key),
    /// That a request be taken back.
    Cancel(Key),
}

/// The topics of one daemon.
#[derive(Clone, Debug)]
pub struct Topics {
    root: String,
    base: String,
    node: String,
    /// The level of a tree that several daemons answer.
    share: Option<String>,
    /// First level of a tree that no answer may go to.
    closed: Option<String>,
}

/// What a daemon of any configuration may have subscribed to below `root`.
pub fn subscriptions(root: &str) -> Vec<String> {
    let share = root.rsplit('/').next().unwrap_or_default();
    let (requests, cancels) = (format!("{root}/req/+/+"), format!("{root}/req/+/+/cancel"));
    vec![format!("$share/{share}/{requests}"), requests, cancels]
}

impl Topics {
    /// The topics below `base/node/`.
    pub fn new(base: &str, node: &str) -> Topics {
        Topics { root: format!("{base}/{node}"), base: base.into(), node: node.into(), share: None, closed: None }
    }

    /// The same topics; Response Topics below `prefix` are refused as well.
    pub fn closing(self, prefix: Option<&str>) -> Topics {
        Topics { closed: prefix.map(str::to_owned), ..self }
    }

    /// The same topics, and requests below `base/share/` that several daemons take turns with.
    pub fn sharing(self, share: Option<&str>) -> Topics {
        Topics { share: share.map(str::to_owned), ..self }
    }

    fn root(&self, shared: bool) -> String {
        match &self.share {
            Some(share) if shared => format!("{}/{share}", self.base),
            _ => self.root.clone(),
        }
    }

    /// The level of this daemon.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Retained statistics.
    pub fn stats(&self) -> String {
        format!("{}/stats", self.root)
    }

    /// Where a request comes in.
    pub fn request(&self, key: &Key) -> String {
        format!("{}/req/{}/{}", self.root(key.shared), key.client, key.level())
    }

    /// Retained `online` or `offline`.
    pub fn state(&self) -> String {
        format!("{}/state", self.root)
    }

    /// Retained facts.
    pub fn info(&self) -> String {
        format!("{}/info", self.root)
    }

    /// Requests that were given up.
    pub fn dead(&self) -> String {
        format!("{}/dead", self.root)
    }

    /// What the daemon subscribes to. Each request of the shared tree goes to one daemon, each cancellation to all.
    pub fn filters(&self) -> Vec<String> {
        let mut filters = vec![format!("{}/req/+/+", self.root), format!("{}/req/+/+/cancel", self.root)];
        if let Some(share) = &self.share {
            let root = self.root(true);
            filters.extend([format!("$share/{share}/{root}/req/+/+"), format!("{root}/req/+/+/cancel")]);
        }
        filters
    }

    /// Where the answer goes unless the request names another topic.
    pub fn response(&self, key: &Key) -> String {
        format!("{}/res/{}/{}", self.root(key.shared), key.client, key.level())
    }

    /// Where the events go.
    pub fn events(&self, key: &Key) -> String {
        format!("{}/ev", self.response(key))
    }

    /// Where the pieces go.
    pub fn tokens(&self, key: &Key) -> String {
        format!("{}/tok", self.response(key))
    }

    /// Reads the topic of an incoming message; `None` when it is none of the request tree's.
    pub fn asked(&self, topic: &str) -> Option<Asked> {
        let below = |shared| Some((shared, topic.strip_prefix(&self.root(shared))?.strip_prefix("/req/")?));
        let (shared, path) = below(false).or_else(|| below(true))?;
        let mut levels = path.split('/');
        let mut name = || levels.next().filter(|name| (1..=MAX_NAME).contains(&name.len())).map(str::to_owned);
        let key = Key { shared, client: name()?, id: name()? };
        match (levels.next(), levels.next()) {
            (None, _) => Some(Asked::Answer(key)),
            (Some("cancel"), None) => Some(Asked::Cancel(key)),
            _ => None,
        }
    }

    /// A request of another tree, and the root of that tree; `None` when the topic is none of a request or of an own tree.
    pub fn former(&self, topic: &str) -> Option<(String, Key)> {
        let (root, path) = topic.split_once("/req/").filter(|_| topic.len() <= MAX_TOPIC)?;
        let (client, id) = path.split_once('/')?;
        let known = [false, true].map(|shared| self.root(shared)).contains(&root.to_owned());
        let named = |name: &str| (1..=MAX_NAME).contains(&name.len()) && !name.contains('/');
        let key = Key { shared: false, client: client.into(), id: id.into() };
        (!known && !root.is_empty() && named(client) && named(id)).then(|| (root.into(), key))
    }

    /// Whether an answer may be sent to the Response Topic that a request names: a plain topic, none of the broker's own
    /// (`$…`), and none of the tree that this daemon shares with others of its kind, except its own `res/<client>/`: no
    /// answer can become a request, a state, a discovery message or another client's answer.
    ///
    /// # Errors
    ///
    /// Saying what is wrong with it.
    pub fn check_response_topic(&self, client: &str, topic: &str) -> Result<(), InputError> {
        let refuse = |why: String| Err(InputError::new("response_topic", format!("Response Topic: {why}")));
        if topic.is_empty() || topic.len() > MAX_TOPIC {
            return refuse(format!("expected 1 to {MAX_TOPIC} bytes, found {}", topic.len()));
        }
        if topic.contains(['+', '#']) || topic.contains(char::is_control) {
            return refuse("wildcards and control characters are not allowed".into());
        }
        if topic.starts_with('$') {
            return refuse("topics that start with $ belong to the broker".into());
        }
        // The tree is recognised at any depth: a broker's bridge or mount point may put levels before it.
        let tree = format!("/{}/", self.base);
        let slashed = format!("/{topic}/");
        // What is below it, without the slash that was put behind: `res/<client>` itself is nobody's answer.
        let below = slashed.find(&tree).map(|at| slashed.get(at + tree.len()..slashed.len() - 1).unwrap_or_default());
        let own = |below: &str| {
            let mut levels = self.share.iter().chain([&self.node]);
            levels.any(|level| below.starts_with(&format!("{level}/res/{client}/")))
        };
        if below.is_some_and(|below| !own(below)) {
            return refuse(format!("below {}/ only {}/res/{client}/ may be answered to", self.base, self.node));
        }
        if let Some(closed) = &self.closed
            && slashed.starts_with(&format!("/{closed}/"))
        {
            return refuse(format!("nothing below {closed}/ may be answered to"));
        }
        if topic.split('/').any(|level| level == "req") {
            return refuse("a level named req would make the answer a request".into());
        }
        Ok(())
    }
}

/// The form of a request, and so of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// A JSON object.
    Json,
    /// Text only.
    Text,
}

impl Form {
    /// The form of a payload.
    pub fn of(content_type: Option<&str>, payload: &[u8]) -> Form {
        match content_type {
            Some(kind) if kind.starts_with("application/json") => Form::Json,
            Some(kind) if kind.starts_with("text/") => Form::Text,
            _ if payload.trim_ascii_start().starts_with(b"{") => Form::Json,
            _ => Form::Text,
        }
    }

    /// The content type of answers in this form.
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Json => "application/json",
            Form::Text => "text/plain; charset=utf-8",
        }
    }
}

/// A request as it came over MQTT.
#[derive(Clone, Debug, PartialEq)]
pub struct WireRequest {
    /// The prompt.
    pub input: Input,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether pieces of the answer are wanted.
    pub stream: bool,
    /// Whether events are wanted, when the request says.
    pub events: Option<bool>,
    /// Seconds until the answer is no longer wanted.
    pub timeout_s: Option<u64>,
    /// Which requests it goes before.
    pub priority: Priority,
    /// The conversation that it continues.
    pub session: Option<Session>,
}

impl WireRequest {
    /// Reads a payload. JSON has either `prompt` (with `system`, or with `raw` to continue text) or `messages`, and the
    /// sampling fields of the HTTP API.
    ///
    /// # Errors
    ///
    /// Naming the field that is missing or malformed.
    pub fn parse(form: Form, payload: &[u8]) -> Result<WireRequest, InputError> {
        Self::parse_with(form, payload, &Presets::default(), None)
    }

    /// Reads a payload and fills in what it leaves out from the preset that its field `preset` names, or else `preset`.
    ///
    /// # Errors
    ///
    /// Naming the field that is missing or malformed, or the preset that there is not.
    pub fn parse_with(
        form: Form,
        payload: &[u8],
        presets: &Presets,
        preset: Option<&str>,
    ) -> Result<WireRequest, InputError> {
        let mut fields = match form {
            Form::Text => Self::text(payload)?,
            Form::Json => Fields::parse(payload)?,
        };
        let named = fields.text("preset")?;
        let preset = named.as_deref().or(preset).map(|name| presets.get(name)).transpose()?;
        if let Some(preset) = preset {
            preset.complete(&mut fields);
        }
        let mut request = Self::read(fields)?;
        if let Some(most) = preset.and_then(Preset::max_tokens) {
            request.sampling.max_tokens = Some(request.sampling.max_tokens.map_or(most, |wanted| wanted.min(most)));
        }
        Ok(request)
    }

    fn text(payload: &[u8]) -> Result<Fields, InputError> {
        let text = std::str::from_utf8(payload)
            .map_err(|error| InputError::new("payload", format!("the payload is not UTF-8: {error}")))?;
        if text.trim().is_empty() {
            return Err(InputError::new("payload", "the payload is empty; expected a prompt"));
        }
        Ok(Fields::from(Map::from_iter([("prompt".to_owned(), json!(text))])))
    }

    fn read(mut fields: Fields) -> Result<WireRequest, InputError> {
        let enable_thinking = fields.flag("enable_thinking")?.unwrap_or(false);
        let mut sampling = fields.sampling()?;
        let tools = tools::take(&mut fields, &mut sampling, tools::Shape::Chat)?;
        let raw = fields.flag("raw")?.unwrap_or(false);
        let session = Session::take(&mut fields)?;
        if raw && session.is_some() {
            return Err(InputError::new("session", "session: not together with \"raw\": true"));
        }
        let system = fields.text("system")?;
        let mut input = match (fields.text("prompt")?, fields.take("messages")) {
            (Some(_), Some(_)) => return Err(InputError::new("prompt", "prompt: not together with messages")),
            (Some(_), None) if raw && system.is_some() => {
                return Err(InputError::new("system", "system: not together with \"raw\": true"));
            }
            (Some(prompt), None) if raw => Input::Raw(prompt),
            (Some(prompt), None) => conversation(system.as_deref(), &prompt, enable_thinking),
            (None, _) if system.is_some() => {
                return Err(InputError::new("system", "system: only together with prompt; use a message of that role"));
            }
            (None, None) => return Err(InputError::new("prompt", "prompt: missing (or messages)")),
            (None, given) => Input::Chat { messages: messages(given)?, tools: Value::Null, enable_thinking },
        };
        match &mut input {
            Input::Chat { tools: declared, .. } => *declared = tools,
            Input::Raw(_) if tools.is_null() => {}
            Input::Raw(_) => return Err(InputError::new("tools", "tools: not together with \"raw\": true")),
        }
        Ok(WireRequest {
            input,
            stream: fields.flag("stream")?.unwrap_or(false),
            events: fields.flag("events")?,
            timeout_s: fields.integer("timeout_s", 1..=86_400)?,
            priority: fields.priority()?,
            session,
            sampling,
        })
    }
}

/// The payload of a final answer; `session` is what is told of the conversation that it continues.
pub fn answer(form: Form, key: &Key, model: &str, answer: &Answer, session: Option<Value>) -> Vec<u8> {
    match form {
        Form::Text => answer.text.clone().into_bytes(),
        Form::Json => {
            let mut value = json!({
                "id": key.level(),
                "model": model,
                "text": answer.text,
                "finish_reason": openai::finish(answer),
                "usage": openai::usage(answer),
                "seed": answer.seed,
                "timings": openai::timings(answer),
            });
            if !answer.thought.is_empty() {
                value["thought"] = json!(answer.thought);
            }
            if !answer.calls.is_empty() {
                value["tool_calls"] = tools::calls(key.level(), 0, &answer.calls);
            }
            if let Some(session) = session {
                value["session"] = session;
            }
            value.to_string().into_bytes()
        }
    }
}

/// The payload of a refusal. A plain-text one starts with `error` and the code; its MQTT 5 user property `error` tells
/// it from an answer with the same words.
pub fn failure(form: Form, key: &Key, failure: &Failure) -> Vec<u8> {
    match form {
        Form::Text => format!("error {failure}").into_bytes(),
        Form::Json => json!({"id": key.level(), "error": error(failure)}).to_string().into_bytes(),
    }
}

fn error(failure: &Failure) -> Value {
    let mut error = json!({"code": failure.code.name(), "message": failure.message});
    if let Some(param) = &failure.param {
        error["param"] = json!(param);
    }
    if let Some(seconds) = failure.retry_after_s {
        error["retry_after_s"] = json!(seconds);
    }
    error
}

/// The payload of the event that ends a request.
pub fn ended(result: &Result<Answer, Failure>) -> Value {
    match result {
        Ok(answer) => json!({
            "event": "ended",
            "finish_reason": openai::finish(answer),
            "usage": openai::usage(answer),
            "timings": openai::timings(answer),
        }),
        Err(failure) => json!({"event": "ended", "error": error(failure)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Code;

    fn topics() -> Topics {
        Topics::new("home/emberd", "pi")
    }

    #[test]
    fn request_topics_are_read() {
        let key = Key { shared: false, client: "c".into(), id: "7".into() };
        assert_eq!(topics().asked("home/emberd/pi/req/c/7"), Some(Asked::Answer(key.clone())));
        assert_eq!(topics().asked("home/emberd/pi/req/c/7/cancel"), Some(Asked::Cancel(key)));
        for other in
            ["home/emberd/pi/req/c", "home/emberd/pi/req/c/", "home/emberd/pi/req//7", "home/emberd/pi/req/c/7/x"]
        {
            assert_eq!(topics().asked(other), None, "{other}");
        }
        assert_eq!(topics().asked("home/emberd/pi/req/c/7/cancel/x"), None);
        assert_eq!(topics().asked("home/emberd/pie/req/c/7"), None);
        assert_eq!(topics().asked(&format!("home/emberd/pi/req/c/{}", "x".repeat(MAX_NAME + 1))), None);
    }

    #[test]
    fn shared_requests_have_a_tree_of_their_own() {
        let topics = topics().sharing(Some("pool"));
        let filter = "$share/pool/home/emberd/pool/req/+/+";
        assert!(topics.filters().iter().any(|found| found == filter));
        let Some(Asked::Answer(key)) = topics.asked("home/emberd/pool/req/c/7") else { panic!() };
        assert_eq!(topics.response(&key), "home/emberd/pool/res/c/7");
        assert_eq!(Key::parse(&key.path()), Some(key.clone()));
        let own = Key { shared: false, ..key };
        assert_eq!(topics.asked("home/emberd/pi/req/c/7"), Some(Asked::Answer(own.clone())));
        assert_eq!(Key::parse(&own.path()), Some(own));
        assert_eq!(topics.check_response_topic("c", "home/emberd/pool/res/c/7"), Ok(()));
        assert!(topics.check_response_topic("c", "home/emberd/pool/res/d/7").is_err());
        assert_eq!(super::tests::topics().asked("home/emberd/pool/req/c/7"), None);
    }

    #[test]
    fn requests_of_other_trees_are_known_as_such() {
        let topics = topics().sharing(Some("pool"));
        let (root, key) = topics.former("home/emberd/old/req/c/7").unwrap();
        assert_eq!((root.as_str(), key.client.as_str(), key.id.as_str()), ("home/emberd/old", "c", "7"));
        let filters = subscriptions(&root);
        assert!(filters.iter().any(|found| found == "$share/old/home/emberd/old/req/+/+"), "{filters:?}");
        let long = format!("home/emberd/old/req/c/{}", "x".repeat(MAX_NAME + 1));
        for other in [
            "home/emberd/pi/req/c/7",
            "home/emberd/pool/req/c/7",
            "home/emberd/old/req/c",
            "home/emberd/old/req/c/7/cancel",
            "home/emberd/old/res/c/7",
            "home/emberd/old/req//7",
            "/req/c/7",
            &long,
        ] {
            assert!(topics.former(other).is_none(), "{other}");
        }
    }

    #[test]
    fn hostile_response_topics_are_refused() {
        for topic in [
            "",
            "a/+/b",
            "a/#",
            "#",
            "$SYS/broker",
            "$share/group/x",
            "nul\0",
            "home/emberd/pi/req/c/8",
            "home/emberd/pi/res/victim/7",
            "home/emberd/pi/state",
            "home/emberd/pi/info",
            "home/emberd/pi",
            "home/emberd/other/req/c/8",
            "home/emberd/other/res/c/8",
            "home/emberd/other/state",
            "homeassistant/device/x/config",
            "mount/home/emberd/pi/state",
            &"x".repeat(MAX_TOPIC + 1),
        ] {
            let topics = topics().closing(Some("homeassistant"));
            assert!(topics.check_response_topic("c", topic).is_err(), "{topic:?}");
        }
        for topic in ["a", "replies/c/7", "home/emberd/pi/res/c/7", "home/emberdy/x", "a/$b", "my/homeassistant/x"] {
            assert_eq!(topics().check_response_topic("c", topic), Ok(()), "{topic}");
        }
    }

    #[test]
    fn the_form_follows_content_type_or_the_first_character() {
        assert_eq!(Form::of(None, b" \n{\"prompt\""), Form::Json);
        assert_eq!(Form::of(None, b"why {is} this"), Form::Text);
        assert_eq!(Form::of(Some("text/plain"), b"{}"), Form::Text);
        assert_eq!(Form::of(Some("application/json; charset=utf-8"), b"x"), Form::Json);
    }

    #[test]
    fn requests_are_read() {
        let text = WireRequest::parse(Form::Text, "Grüße".as_bytes()).unwrap();
        assert_eq!(text.input, conversation(None, "Grüße", false));
        let json = br#"{"prompt":"p","system":"s","stream":true,"timeout_s":5,"max_tokens":3,"more":1}"#;
        let request = WireRequest::parse(Form::Json, json).unwrap();
        assert_eq!(request.input, conversation(Some("s"), "p", false));
        assert_eq!((request.stream, request.timeout_s, request.sampling.max_tokens), (true, Some(5), Some(3)));
        let raw = WireRequest::parse(Form::Json, br#"{"prompt":"p","raw":true}"#).unwrap();
        assert_eq!(raw.input, Input::Raw("p".into()));
    }

    #[test]
    fn presets_fill_in_what_a_request_leaves_out() {
        let preset = json!({"system": "be brief", "temperature": 0, "max_tokens": 40, "stop": ["END"]});
        let Value::Object(fields) = preset else { unreachable!() };
        let presets: Presets = [("bell".to_owned(), Preset::new(fields).unwrap())].into_iter().collect();
        let read = |payload: &str, preset| {
            WireRequest::parse_with(Form::of(None, payload.as_bytes()), payload.as_bytes(), &presets, preset)
        };
        let short = read("who is it", Some("bell")).unwrap();
        assert_eq!(short.input, conversation(Some("be brief"), "who is it", false));
        assert_eq!((short.sampling.temperature, short.sampling.max_tokens), (Some(0.0), Some(40)));
        assert_eq!(short.sampling.stop, ["END"]);

        let own = read(r#"{"prompt":"p","preset":"bell","system":"s","temperature":1,"max_tokens":90}"#, None).unwrap();
        assert_eq!(own.input, conversation(Some("s"), "p", false));
        assert_eq!((own.sampling.temperature, own.sampling.max_tokens), (Some(1.0), Some(40)), "it stays a limit");
        assert_eq!(read(r#"{"prompt":"p","max_tokens":3}"#, Some("bell")).unwrap().sampling.max_tokens, Some(3));

        let chat = read(r#"{"messages":[{"role":"user","content":"p"}]}"#, Some("bell")).unwrap();
        assert_eq!(chat.input, conversation(Some("be brief"), "p", false));
        let led = r#"{"messages":[{"role":"developer","content":"s"},{"role":"user","content":"p"}]}"#;
        assert_eq!(read(led, Some("bell")).unwrap().input, conversation(Some("s"), "p", false));
        assert_eq!(read(r#"{"prompt":"p","raw":true}"#, Some("bell")).unwrap().input, Input::Raw("p".into()));

        assert_eq!(read("p", None).unwrap().sampling, Sampling::default());
        assert_eq!(read("p", Some("bel")).unwrap_err().param.as_deref(), Some("preset"));
        assert_eq!(read(r#"{"prompt":"p","preset":7}"#, Some("bell")).unwrap_err().param.as_deref(), Some("preset"));
    }

    #[test]
    fn requests_without_an_id_get_one_that_no_topic_has() {
        let key = Key { shared: false, client: "c".into(), id: "-".into() }.unique(7);
        assert_eq!((key.level(), key.path().as_str()), ("-", "c/-/0000000000000007"));
        assert_eq!(topics().response(&key), "home/emberd/pi/res/c/-");
        assert_eq!(topics().events(&key), "home/emberd/pi/res/c/-/ev");
        let other = Key { shared: false, client: "c".into(), id: "-7".into() };
        assert_eq!(other.clone().unique(7), other);
    }

    #[test]
    fn malformed_requests_are_refused_by_field() {
        for (payload, param) in [
            (&b"{}"[..], Some("prompt")),
            (b"{\"prompt\":1}", Some("prompt")),
            (b"{\"prompt\":\"a\",\"messages\":[]}", Some("prompt")),
            (b"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"system\":\"s\"}", Some("system")),
            (b"{\"prompt\":\"a\",\"timeout_s\":0}", Some("timeout_s")),
            (b"{\"prompt\":", None),
        ] {
            let error = WireRequest::parse(Form::Json, payload).unwrap_err();
            assert_eq!(error.param.as_deref(), param, "{}", String::from_utf8_lossy(payload));
        }
        assert!(WireRequest::parse(Form::Text, b"\xff\xfe").is_err());
        assert!(WireRequest::parse(Form::Text, b" \n").is_err());
    }

    #[test]
    fn failures_keep_the_form() {
        let key = Key { shared: false, client: "c".into(), id: "7".into() };
        let busy = Failure { retry_after_s: Some(4), ..Failure::new(Code::Busy, "full") };
        assert_eq!(failure(Form::Text, &key, &busy), b"error busy: full");
        let value: Value = serde_json::from_slice(&failure(Form::Json, &key, &busy)).unwrap();
        assert_eq!(value, json!({"id": "7", "error": {"code": "busy", "message": "full", "retry_after_s": 4}}));
    }
}
